"""`pgmonkey list`: the databases that a registry declares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, formatted
from pgmonkey.cli.registry_files import scan

if TYPE_CHECKING:
    from pgmonkey.config.directory import Scan

_TITLES: Final = ("NAME", "TYPE", "SERVER", "DATABASE", "DESCRIPTION")


@click.command("list")
@options.directory
@options.output
@options.references
def command(directory: Path, output: str, references: options.References) -> Answer:
    """List the databases that a registry declares.

    Exit code 1: some of the files have problems.
    """
    found = scan(directory, references)
    if not found.directory_ok:
        found.raise_for_problems()
    databases = [_database(found, name) for name in sorted(found.present)]
    return Answer(
        formatted(output, {"databases": databases}, [_TITLES, *map(_row, databases)]),
        ExitCode.PROBLEM if found.all_problems() else ExitCode.OK,
    )


def _database(found: Scan, name: str) -> dict[str, Any]:
    from pgmonkey.config.redaction import scrub

    config = found.configs.get(name)
    if config is None:
        problems = found.problems.get(name) or found.general
        return {"name": name, "path": problems[0].path, "problems": len(problems)}
    connection = config.redacted()["connection_settings"]
    return {
        "name": name,
        "path": config.path,
        "problems": 0,
        "connection_type": config.connection_type,
        "description": scrub(config.description, config.secrets),
        "required": config.required,
        "server": scrub(_server(connection), config.secrets),
        "dbname": scrub(connection.get("dbname", ""), config.secrets),
    }


def _row(database: Mapping[str, Any]) -> tuple[str, ...]:
    if number := database["problems"]:
        problems = "1 problem" if number == 1 else f"{number} problems"
        return database["name"], "-", "-", "-", f"{problems}: see pgmonkey check"
    keys = ("name", "connection_type", "server", "dbname", "description")
    return tuple(database[key] or "-" for key in keys)


def _server(connection: Mapping[str, str]) -> str:
    """Return the servers as `host:port`, as the file names them."""
    from pgmonkey.config.settings import host_and_port

    hosts = connection.get("host") or connection.get("hostaddr") or ""
    if not hosts:
        return f"service {connection['service']}" if "service" in connection else ""
    return host_and_port(hosts, connection.get("port", ""))
