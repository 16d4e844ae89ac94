"""`pgmonkey show`: the effective configuration of one database, and where each value comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, formatted
from pgmonkey.cli.registry_files import scan


@click.command("show")
@options.name
@options.directory
@click.option(
    "--source",
    "sources",
    is_flag=True,
    help="Also show where each value comes from: file and line, variable, secret file, default.",
)
@options.output
@options.references
def command(
    name: str,
    directory: Path,
    sources: bool,
    output: str,
    references: options.References,
) -> Answer:
    """Show the effective configuration of a database.

    Secrets are masked.
    """
    from pgmonkey.config.explain import explain, format_value

    found = scan(directory, references, [name])
    found.raise_for_problems()
    config = found.configs[name]
    values = explain(config)
    data: dict[str, Any] = {"name": name, "path": config.path, "settings": {}}
    for value in values:
        section, _, key = value.key.partition(".")
        if key:
            data["settings"].setdefault(section, {})[key] = _typed(section, key, value.value)
        else:
            data["settings"][section] = value.value
    rows = [("KEY", "VALUE", "SOURCE")]
    rows += [(one.key, format_value(one.value), str(one.source)) for one in values]
    if sources:
        data["sources"] = {value.key: value.source._asdict() for value in values}
        return Answer(formatted(output, data, rows))
    return Answer(formatted(output, data, [row[:2] for row in rows]))


def _typed(section: str, key: str, value: Any) -> Any:
    """Return a value with the type of its key; libpq takes every connection setting as text."""
    from pgmonkey.config.libpq import keywords

    keyword = keywords().get(key) if section == "connection_settings" else None
    if keyword is None or not isinstance(value, str) or value.strip("-0123456789,"):
        return value  # no setting of libpq, or masked
    match keyword.kind:
        case "integer" | "seconds" | "milliseconds":
            return int(value)
        case "flag":
            return value == "1"
        case "port":
            ports = [int(port) if port else None for port in value.split(",")]
            return ports if len(ports) > 1 else ports[0]
        case _:
            return value
