"""`pgmonkey budget`: the connections that a fleet can open, beside what its servers allow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, formatted
from pgmonkey.cli.registry_files import scan
from pgmonkey.cli.servers import Found, find, side_by_side

if TYPE_CHECKING:
    from pgmonkey.config.budget import Demand, Fleet, Limits, Sum
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import Problem

_TITLES: Final = ("SERVER", "LIMIT OF", "OPEN", "ROTATING", "ALLOWED", "LEFT", "DATABASES")


@click.command("budget")
@options.directory
@options.fleet
@click.option("--offline", is_flag=True, help="Do not connect; the limits are then unknown.")
@options.output
@options.references
def command(
    directory: Path,
    fleet: Fleet,
    offline: bool,
    output: str,
    references: options.References,
) -> Answer:
    """Count the connections that a fleet can open.

    It compares them with the limits of each server, role and database. Exit code 1: a limit is
    too low. 4: a server cannot be reached, or refuses.
    """
    from pgmonkey.config.budget import budget, demand_of

    found = scan(directory, references)
    found.raise_for_problems()
    limits, failures = _ask([] if offline else found.configs.values())
    demands = [demand_of(config, fleet.loops) for config in found.configs.values()]
    return answer(output, fleet, demands, budget(demands, fleet, limits), failures)


def answer(
    output: str,
    fleet: Fleet,
    demands: Sequence[Demand],
    sums: Sequence[Sum],
    failures: Sequence[Problem] = (),
) -> Answer:
    """Return the answer of the command."""
    code = ExitCode.DATABASE_UNREACHABLE if failures else ExitCode.OK
    if any(one.over for one in sums):
        code = ExitCode.PROBLEM
    data = {
        "fleet": {**fleet._asdict(), "processes": fleet.processes},
        "servers": [{**one._asdict(), "left": one.left, "over": one.over} for one in sums],
        "databases": [
            {
                "name": one.name,
                "server": one.server,
                "pools": one.pools,
                "max_size": one.max_size,
                "max_connections": one.cap,
            }
            for one in demands
        ],
        "problems": [problem.as_dict() for problem in failures],
    }
    text = formatted(output, data, [_TITLES, *map(_row, sums)])
    return Answer(text, code, "" if output == "json" else "\n".join(_notes(sums, failures)))


def _row(one: Sum) -> tuple[str, ...]:
    numbers = (one.open, one.rotating, one.limit, one.left)
    shown = ("-" if number is None else str(number) for number in numbers)
    return one.server, _whose(one), *shown, ", ".join(one.databases)


def _whose(one: Sum) -> str:
    names = {"server": "the server", "pgbouncer": "PgBouncer"}
    return names.get(one.scope) or f"{one.scope} {one.name}"


def _notes(sums: Sequence[Sum], failures: Sequence[Problem]) -> Iterator[str]:
    yield from map(str, failures)
    for one in sums:
        if one.over:
            yield (
                f"{one.server}: {_whose(one)} allows {one.limit} connections,"
                f" and the fleet can open {one.rotating}"
            )
        elif one.scope == "pgbouncer":
            yield f"{one.server}: its max_client_conn must be {one.rotating} or more"


def _ask(configs: Collection[DatabaseConfig]) -> tuple[dict[str, Limits], list[Problem]]:
    """Ask each server what it allows, with the login of each database."""
    asked = [config for config in configs if config.pooler == "none"]
    answers = dict(zip((one.name for one in asked), side_by_side(find, asked), strict=True))
    limits = {name: one.limits for name, one in answers.items() if isinstance(one, Found)}
    return limits, [one for one in answers.values() if not isinstance(one, Found)]
