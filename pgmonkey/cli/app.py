"""The command line: its commands, and the entry point of `pgmonkey`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pgmonkey.cli import (
    budget,
    check,
    demo,
    diff,
    export,
    init,
    options,
    pgconfig,
    pgexport,
    pgimport,
    pgserverconfig,
    psql,
    reload,
    schema,
    serve,
    show,
    status,
    test,
)
from pgmonkey.cli import list as list_
from pgmonkey.cli.output import run
from pgmonkey.version import __version__

# These modules import click and the standard library alone. A command imports everything else
# when it runs, so `pgmonkey --help` and the completion of a word load no driver.


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, message="%(prog)s %(version)s")
@options.env_file_of_all
def app(env_file: Path | None) -> None:
    """PostgreSQL databases by name, from YAML files; passwords, hosts and pool sizes reload without dropping a query."""
    del env_file  # commands look it up: see `options.env_file`


for _module in (
    *(budget, check, demo, diff, export, init, list_, pgconfig),
    *(pgexport, pgimport, pgserverconfig, psql, reload, schema, serve, show, status, test),
):
    app.add_command(_module.command)


def main() -> None:
    """Run the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # escape what the locale cannot show, instead of failing
            reconfigure(errors="backslashreplace")
    sys.exit(run(app, sys.argv[1:]))
