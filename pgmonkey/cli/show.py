"""`pgmonkey show`: the effective configuration of one database, and where each value comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, Failure, formatted

if TYPE_CHECKING:
    from pgmonkey.config.explain import Value


@click.command("show")
@click.argument("name")
@options.directory
@click.option(
    "--source",
    "sources",
    is_flag=True,
    help="Also show where each value comes from: file and line, variable, secret file, default.",
)
@options.output
@options.allow_sensitive_defaults
def command(
    name: str, directory: Path, sources: bool, output: str, allow_sensitive_defaults: bool
) -> Answer:
    """Show the effective configuration of a database.

    Secrets are masked.
    """
    from pgmonkey.config.directory import DirectoryLoader
    from pgmonkey.config.explain import explain
    from pgmonkey.errors import UnknownDatabaseError

    scan = DirectoryLoader(
        directory, names=[name], allow_sensitive_defaults=allow_sensitive_defaults
    ).scan()
    if scan.directory_ok and name in scan.missing:
        declared = DirectoryLoader(directory).scan().present
        unknown = UnknownDatabaseError.among(declared, name, str(directory))
        raise Failure(str(unknown), ExitCode.USAGE)
    scan.raise_for_problems()
    config = scan.configs[name]
    values = explain(config, directory)
    data = {"name": name, "path": config.path, **_data(values, sources=sources)}
    return Answer(formatted(output, data, _rows(values, sources=sources)))


def _rows(values: Sequence[Value], *, sources: bool) -> list[tuple[str, ...]]:
    from pgmonkey.config.explain import text_of

    rows = [("KEY", "VALUE", "SOURCE")]
    rows += [(one.key, text_of(one.value), str(one.source)) for one in values]
    return [row if sources else row[:2] for row in rows]


def _data(values: Sequence[Value], *, sources: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for value in values:
        section, _, key = value.key.partition(".")
        if not key:
            settings[section] = value.value
            continue
        shown = _typed(key, value.value) if section == "connection_settings" else value.value
        settings.setdefault(section, {})[key] = shown
    if not sources:
        return {"settings": settings}
    return {
        "settings": settings,
        "sources": {value.key: value.source._asdict() for value in values},
    }


def _typed(key: str, value: Any) -> Any:
    """Return a connection setting with the type of its keyword; libpq takes them all as text."""
    from pgmonkey.config.libpq import keywords

    kind = keywords()[key].kind if key in keywords() else "text"
    if not isinstance(value, str) or value.strip("-0123456789,"):
        return value  # of psycopg, or masked
    match kind:
        case "integer" | "seconds":
            return int(value)
        case "flag":
            return value == "1"
        case "port" if "," in value:
            return [int(port) if port else None for port in value.split(",")]
        case "port":
            return int(value)
    return value
