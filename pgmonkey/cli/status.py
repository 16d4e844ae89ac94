"""The status of a service as a table, for terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgmonkey.cli.output import table
from pgmonkey.config.durations import spoken

_TITLES = ("NAME", "STATE", "TYPE", "USED", "WAITING", "GENERATION", "LAST RELOAD", "ERROR")


def as_table(report: Mapping[str, Any]) -> str:
    """Return one row for each database.

    Args:
        report: What /api/v1/databases says.
    """
    rows = [_row(one, report["at"]) for one in report["databases"]]
    return table([_TITLES, *rows])


def _row(database: Mapping[str, Any], now: float) -> tuple[str, ...]:
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
        f"{reload['outcome']} {spoken(max(0, round(now - reload['at'])))} ago" if reload else "-",
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
