"""`pgmonkey pgexport`: a table or a view into a CSV file, which appears when it is complete."""

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


@click.command("pgexport")
@database_and_table
@click.option(
    *("--export_file", "--export-file", "path"),
    metavar="FILE",
    type=options.PATH,
    help="The CSV file; - for standard output.  [default: TABLE.csv]",
)
@csv_options
def command(
    path: Path | None,
    place: Place,
    settings: Path | None,
    given: Mapping[str, Any],
) -> Answer:
    """Export a table or a view to a CSV file.

    An existing file is replaced when the new one is complete. After a failure it is unchanged.
    """
    from pgmonkey.cli.csv_export import export_csv
    from pgmonkey.cli.csv_format import STANDARD, chosen_format, rows

    path = path or Path(f"{place.text}.csv")
    form = chosen_format(path, settings, given, place.connconfig)
    number = export_csv(place.config, place.table, path, form)
    if path == STANDARD:
        return Answer(note=f"{rows(number)} exported from {place.table}")
    return Answer(f"{rows(number)} exported from {place.table} to {path}")
