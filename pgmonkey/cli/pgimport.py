"""`pgmonkey pgimport`: a CSV file into a table, all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgmonkey.cli import options
from pgmonkey.cli.csv_options import csv_options, database_and_table
from pgmonkey.cli.output import Answer

if TYPE_CHECKING:
    from pgmonkey.cli.csv_options import Place


@click.command("pgimport")
@click.option(
    *("--import_file", "--import-file", "path"),
    metavar="FILE",
    type=options.PATH,
    required=True,
    help="The CSV file; - for standard input.",
)
@database_and_table
@click.option(
    "--columns",
    metavar="NAME,...",
    help="The columns of the table, in the order of the file; the header is then ignored.",
)
@click.option(
    "--create-table/--no-create-table",
    "auto_create_table",
    default=None,
    help="Whether to create a missing table, with columns of type text.  [default: yes]",
)
@click.option(
    "--lowercase/--no-lowercase",
    "enforce_lowercase",
    default=None,
    help="Whether `First Name` in a header is the column first_name.  [default: yes]",
)
@csv_options
def command(
    path: Path,
    place: Place,
    columns: str | None,
    settings: Path | None,
    given: Mapping[str, Any],
) -> Answer:
    """Import a CSV file into a table.

    It imports all rows, or none: the error names the line and the column of a bad row. A missing
    table is created from the header, with columns of type text.
    """
    from pgmonkey.cli.csv_format import chosen_format, rows
    from pgmonkey.cli.csv_import import import_csv

    form = chosen_format(path, settings, given, place.connconfig)
    named = None if columns is None else [one.strip() for one in columns.split(",")]
    done = import_csv(place.config, path, place.table, form, named)
    created = f", created with the columns {', '.join(done.created)}" if done.created else ""
    return Answer(f"{rows(done.rows)} imported into {place.table}{created}")
