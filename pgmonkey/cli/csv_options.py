"""The options that `pgimport` and `pgexport` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from pgmonkey.cli import options
from pgmonkey.cli.registry_files import scan

if TYPE_CHECKING:
    from pgmonkey.cli.csv_tables import Table
    from pgmonkey.config.settings import DatabaseConfig

#: The settings of a format that options may give; the last two are those of imports.
_SETTINGS: Final = (
    *("delimiter", "quotechar", "encoding", "null_text", "has_headers"),
    *("auto_create_table", "enforce_lowercase"),
)


class Place(NamedTuple):
    """Say which table of which database is meant.

    Args:
        config: The database, of a registry or of a single file.
        table: The table.
        text: The table as the user has written it.
        connconfig: The single file, if it is one.
    """

    config: DatabaseConfig
    table: Table
    text: str
    connconfig: Path | None


def database_and_table(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its `place`, from a name or a config file, and a table."""

    @click.argument("name", required=False, shell_complete=options.declared)
    @click.option("--table", "text", metavar="TABLE", required=True, help="table or schema.table.")
    @click.option(
        "--connconfig",
        metavar="FILE",
        type=options.PATH,
        help="The config file of the database, in place of NAME.",
    )
    @options.directory_beside_names
    @options.resolve_env
    @options.references
    @functools.wraps(command)
    def with_place(
        name: str | None,
        text: str,
        connconfig: Path | None,
        directory: Path,
        resolve_env: bool,
        references: options.References,
        **values: Any,
    ) -> Any:
        from pgmonkey.cli.csv_tables import Table

        if (name is None) == (connconfig is None):
            raise click.UsageError("give the NAME of a database, or the config file: --connconfig")
        if connconfig is not None:
            from pgmonkey.config.loader import load_file

            config = load_file(connconfig, resolve=resolve_env, isolate=False, **references)
            # As in 4.0. In a registry the search path of the file decides.
            table = Table.named(text, "public")
        else:
            assert name is not None
            found = scan(directory, references, [name])
            found.raise_for_problems()
            config = found.configs[name]
            table = Table.named(text, None)
        return command(place=Place(config, table, text, connconfig), **values)

    return with_place


def csv_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a format; it gets those that are given as `given`."""

    @click.option(
        "--delimiter", metavar="C", help="The character between two fields.  [default: ,]"
    )
    @click.option(
        "--quotechar", metavar="C", help='The quote around a field, or none.  [default: "]'
    )
    @click.option("--encoding", metavar="NAME", help="The encoding of the file.  [default: utf-8]")
    @click.option("--null-text", metavar="TEXT", help="The text that means NULL.  [default: empty]")
    @click.option(
        "--headers/--no-headers",
        "has_headers",
        default=None,
        help="Whether the first row has the names of the columns.  [default: yes]",
    )
    @click.option(
        "--settings",
        metavar="FILE",
        type=options.PATH,
        help="A YAML file with these settings.  [default: the one beside the CSV file, if any]",
    )
    @functools.wraps(command)
    def with_format(settings: Path | None, **values: Any) -> Any:
        names = [name for name in _SETTINGS if name in values]
        given = {name: value for name in names if (value := values.pop(name)) is not None}
        return command(settings=settings, given=given, **values)

    return with_format
