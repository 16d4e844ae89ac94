"""`pgmonkey status`: the databases of a running service."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, formatted, table, tell

if TYPE_CHECKING:
    from pgmonkey.service.client import ServiceClient
    from pgmonkey.telemetry.status import DatabaseState

_EVERY: Final = 2.0  # seconds between two looks of --watch
_TITLES: Final = ("NAME", "STATE", "TYPE", "USED", "WAITING", "VERSION", "LAST RELOAD", "ERROR")


@click.command("status")
@options.service
@click.option("--watch", is_flag=True, help="Look again every 2 seconds, until Ctrl-C.")
@click.option(
    "--fail-on",
    type=click.Choice(["down", "stale"]),
    help="Exit code 1 if a database is in this state or in a worse one, for scripts.",
)
@options.output
def command(
    client: ServiceClient, watch: bool, fail_on: DatabaseState | None, output: str
) -> Answer:
    """Show the databases of a running service.

    Exit code 5: the service cannot be reached.
    """
    if watch and fail_on is not None:
        raise click.BadParameter("it cannot be combined with --watch", param_hint="--fail-on")
    from pgmonkey.service.client import UnreachableError

    report = client.overview()
    if not watch:
        failures = _failures(report, fail_on)
        return Answer(
            formatted(output, report, _rows(report)),
            ExitCode.PROBLEM if failures else ExitCode.OK,
            "\n".join(failures),
        )
    clear = "\x1b[H\x1b[J" if sys.stdout.isatty() else ""
    while True:
        click.echo(clear + (json.dumps(report) if output == "json" else table(_rows(report))))
        while True:
            time.sleep(_EVERY)
            try:
                report = client.overview()
                break
            except UnreachableError as error:
                tell(str(error))  # it may be restarting


def _failures(report: Mapping[str, Any], fail_on: DatabaseState | None) -> list[str]:
    """Return a line for what is as bad as a state or worse; none without a state."""
    from pgmonkey.errors import Problem
    from pgmonkey.telemetry.status import STATES

    if fail_on is None:
        return []
    bad = STATES[: STATES.index(fail_on) + 1]
    names = {
        state: [one["name"] for one in report["databases"] if one["state"] == state]
        for state in bad
    }
    lines = [f"{state}: {', '.join(names[state])}" for state in bad if names[state]]
    if fail_on == "stale":  # the directory itself, or its defaults
        lines += [str(Problem(**problem)) for problem in report["registry"]["problems"]]
    return lines


def _rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [_TITLES, *(_row(database, report["at"]) for database in report["databases"])]


def _row(database: Mapping[str, Any], now: float) -> tuple[str, ...]:
    from pgmonkey.config.durations import format_duration

    pools = database["pools"]
    used = sum(pool["used"] + pool["retired"] for pool in pools)
    size = sum(pool["max_size"] for pool in pools)
    reload = database["last_reload"]
    return (
        database["name"],
        database["state"],
        database["connection_type"] or "-",
        f"{used}/{size}" if pools else "-",
        str(sum(pool["waiting"] for pool in pools)) if pools else "-",
        str(database["version"] or "-"),
        f"{reload['outcome']} {format_duration(max(0, round(now - reload['at'])))} ago"
        if reload
        else "-",
        _error(database),
    )


def _error(database: Mapping[str, Any]) -> str:
    error, problems = database["error"], database["problems"]
    if error:
        return f"{error['reason']}: {error['text']}"
    if problems:
        first = problems[0]
        place = first["path"] + (f":{first['line']}" if first["line"] else "")
        return f"{place}: {first['message']}"
    return "-"
