"""`pgmonkey schema`: the JSON Schema of a database file."""

from __future__ import annotations

import click

from pgmonkey.cli.output import Answer, as_json


@click.command("schema")
def command() -> Answer:
    """Print a JSON Schema of a database file, for editors.

    The schema is of draft 7.
    """
    from pgmonkey.config.json_schema import schema

    return Answer(as_json(schema()))
