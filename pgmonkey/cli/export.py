"""`pgmonkey export`: files for other programs, made of a registry, without any secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer
from pgmonkey.cli.registry_files import scan

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig


@click.command("export")
@click.argument(
    "form",
    metavar="pgbouncer|pg_service|env|compose",
    type=click.Choice(["pgbouncer", "pg_service", "env", "compose"]),
)
@options.directory
@click.option(
    "--name",
    "names",
    metavar="NAME",
    multiple=True,
    shell_complete=options.declared,
    help="Only this database; may be given several times. env takes one.",
)
@options.references
def command(
    form: str,
    directory: Path,
    names: tuple[str, ...],
    references: options.References,
) -> Answer:
    """Print a file for another program.

    pgbouncer: its [databases]. pg_service: a service file of libpq. env: the variables of libpq
    for one database. compose: what a service of Docker Compose needs for the registry. Secrets are
    left out; a comment says where they belong.
    """
    found = scan(directory, references, names)
    found.raise_for_problems()
    if form == "env" and len(found.configs) != 1:
        raise click.UsageError("env is for one database: give its --name")
    return Answer("\n".join(_lines(form, directory, found.configs)))


def _lines(form: str, directory: Path, configs: Mapping[str, DatabaseConfig]) -> list[str]:
    from pgmonkey.config import export

    entries = [config.portable() for _, config in sorted(configs.items())]
    match form:
        case "pgbouncer":
            return list(export.pgbouncer(entries))
        case "pg_service":
            return list(export.pg_service(entries))
        case "env":
            return list(export.env(entries[0]))
        case _:
            sources = [config.sources for config in configs.values()]
            return list(
                export.compose(
                    os.path.abspath(directory),  # noqa: PTH100 - a link stays a link
                    (name for one in sources for name in one.variables),
                    (path for one in sources for path in one.directories),
                )
            )
