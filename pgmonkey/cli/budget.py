"""`pgmonkey budget`: the connections that a fleet can open, beside what its servers allow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, formatted
from pgmonkey.cli.servers import connected, side_by_side

if TYPE_CHECKING:
    from pgmonkey.config.budget import Demand, Fleet, Limits, Sum
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import Problem

_TITLES: Final = ("SERVER", "LIMIT OF", "OPEN", "ROTATING", "ALLOWED", "LEFT", "DATABASES")
_COUNT: Final = click.IntRange(min=1)
# What a login may use of a server. Superusers have the reserved connections too, and no limit of a
# role or database counts for them; since PostgreSQL 16 a role can share `reserved_connections`.
_LIMITS: Final = """
SELECT pg_postmaster_start_time()::text || ' ' || current_setting('port'),
       current_setting('max_connections')::int
         - CASE WHEN r.rolsuper THEN 0
           ELSE current_setting('superuser_reserved_connections')::int
             + CASE WHEN EXISTS (SELECT FROM pg_roles u
                                 WHERE u.rolname = 'pg_use_reserved_connections'
                                   AND pg_has_role(r.oid, u.oid, 'USAGE'))
               THEN 0 ELSE coalesce(current_setting('reserved_connections', true)::int, 0) END
           END,
       r.rolname::text,
       CASE WHEN r.rolconnlimit >= 0 AND NOT r.rolsuper THEN r.rolconnlimit END,
       d.datname::text,
       CASE WHEN d.datconnlimit >= 0 AND NOT r.rolsuper THEN d.datconnlimit END
FROM pg_roles r, pg_database d
WHERE r.rolname = session_user AND d.datname = current_database()
"""


@click.command("budget")
@options.directory
@click.option("--replicas", metavar="N", type=_COUNT, default=1, help="How many replicas run.")
@click.option(
    "--workers", metavar="N", type=_COUNT, default=1, help="How many processes each of them has."
)
@click.option(
    "--loops", metavar="N", type=_COUNT, default=1, help="How many event loops each process has."
)
@click.option("--offline", is_flag=True, help="Connect to nothing, and know no limit.")
@options.output
@options.allow_sensitive_defaults
@options.env_file
def command(
    directory: Path,
    replicas: int,
    workers: int,
    loops: int,
    offline: bool,
    output: str,
    allow_sensitive_defaults: bool,
    env: Mapping[str, str] | None,
) -> Answer:
    """Count the connections that a fleet can open.

    They are compared with what each server, role and database allows. Exit code 1: it is too
    little. 4: some server could not be asked.
    """
    from pgmonkey.config.budget import Fleet, budget, demand_of
    from pgmonkey.config.directory import DirectoryLoader

    scan = DirectoryLoader(
        directory, allow_sensitive_defaults=allow_sensitive_defaults, env=env
    ).scan()
    scan.raise_for_problems()
    limits, failures = _ask([] if offline else scan.configs.values())
    fleet = Fleet(replicas, workers, loops)
    demands = [demand_of(config, loops) for config in scan.configs.values()]
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
    from pgmonkey.config.budget import Limits

    asked = [config for config in configs if config.pooler == "none"]
    answers = dict(zip((one.name for one in asked), side_by_side(_ask_one, asked), strict=True))
    limits = {name: one for name, one in answers.items() if isinstance(one, Limits)}
    return limits, [one for one in answers.values() if not isinstance(one, Limits)]


def _ask_one(config: DatabaseConfig) -> Limits | Problem:
    from psycopg import Error
    from psycopg.rows import tuple_row

    from pgmonkey.config.budget import Limits
    from pgmonkey.config.failed_probes import failed_probe
    from pgmonkey.config.redaction import scrub
    from pgmonkey.errors import Problem
    from pgmonkey.pool.failures import classify

    connection = connected(config)
    if isinstance(connection, Problem):
        return connection
    try:
        # The row factory of the file is for its application.
        with connection.cursor(row_factory=tuple_row) as cursor:
            (row,) = cursor.execute(_LIMITS)
    except Error as error:
        return failed_probe(config, classify(error, config).error(config.name))
    finally:
        connection.close()
    found = Limits(*row)
    return found._replace(
        role=scrub(found.role, config.secrets), dbname=scrub(found.dbname, config.secrets)
    )
