"""The command line: parses, calls, and turns what is expected to go wrong into a line and a code.

Exit codes: 0 ok, 1 problem found, 2 usage, 4 database unreachable, 5 service unreachable,
130 interrupted. What a command was asked for goes to standard output, all else to standard error.
"""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from pgmonkey.cli import service_commands
from pgmonkey.cli.options import (
    AllowSensitiveDefaults,
    Directory,
    LogFormat,
    LogFormatChoice,
    LogLevel,
    LogLevelChoice,
    Name,
    NamedDirectory,
    Output,
    OutputChoice,
    Trust,
    TrustChoice,
)
from pgmonkey.cli.output import ExitCode, expecting, tell
from pgmonkey.version import __version__

# Everything else is imported by the command that needs it: `pgmonkey --help` pays for none of it.


class ConnectionTypeChoice(StrEnum):
    """The connection types, as an option."""

    NORMAL = "normal"
    POOL = "pool"
    ASYNC = "async"
    ASYNC_POOL = "async_pool"


class LibraryChoice(StrEnum):
    """What a generated program is built on."""

    PGMONKEY = "pgmonkey"
    PSYCOPG = "psycopg"


class KindChoice(StrEnum):
    """The kind of database; there is one."""

    PG = "pg"


class CheckOutputChoice(StrEnum):
    """How problems are written."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


app: Final = typer.Typer(
    help="Every PostgreSQL database of an application, declared in files, reloaded without"
    " losing a query.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # a traceback with local variables shows passwords
    context_settings={"help_option_names": ["-h", "--help"]},
)
pgconfig: Final = typer.Typer(
    help="Make, test and use a single config file.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(pgconfig, name="pgconfig")


def main() -> None:
    """Run the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a name that the locale cannot show is no reason to stop
            reconfigure(errors="backslashreplace")
    app(prog_name="pgmonkey")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgmonkey {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


# The registry


@app.command()
@expecting
def check(
    directory: Directory = Path("registry.d"),
    output: Annotated[
        CheckOutputChoice,
        typer.Option("-o", "--output", help="github: annotations of a workflow."),
    ] = CheckOutputChoice.TEXT,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="Judge the files alone: variables, secret files and TLS files need not be there.",
        ),
    ] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Also connect to each database once.")
    ] = False,
    trust: Trust = TrustChoice.OFF,
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
) -> None:
    """Say what is wrong with the files of a registry; nothing, if all is well.

    Connects to nothing without --online. Exit code 1: there are problems.
    """
    if static and online:
        raise typer.BadParameter("it cannot be combined with --static", param_hint="--online")
    if static and trust is not TrustChoice.OFF:
        raise typer.BadParameter("it cannot be combined with --static", param_hint="--trust")
    from pgmonkey.cli.check import check as check_files

    report = check_files(
        directory,
        static=static,
        online=online,
        trust=trust.value,
        on_untrusted=(lambda _, reason: tell(reason)) if trust is TrustChoice.WARN else None,
        allow_sensitive_defaults=allow_sensitive_defaults,
    )
    text = getattr(report, f"as_{output.value}")()
    if text:
        typer.echo(text)
    if report.problems:
        if output is CheckOutputChoice.TEXT:
            tell(report.summary())
        raise typer.Exit(ExitCode.PROBLEM)
    if not report.databases:
        tell(f"{directory} declares no database")


@app.command("list")
@expecting
def list_databases(
    directory: Directory = Path("registry.d"),
    output: Output = OutputChoice.TABLE,
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
) -> None:
    """List the databases that a registry declares. Exit code 1: some of the files are bad."""
    from pgmonkey.cli.list import Listing

    listing = Listing(directory, allow_sensitive_defaults=allow_sensitive_defaults)
    typer.echo(listing.as_json() if output is OutputChoice.JSON else listing.as_table())
    if not listing.good:
        raise typer.Exit(ExitCode.PROBLEM)


@app.command()
@expecting
def show(
    name: Name,
    directory: NamedDirectory = Path("registry.d"),
    source: Annotated[
        bool,
        typer.Option(
            "--source",
            help="Say where each value comes from: file and line, variable, secret file, default.",
        ),
    ] = False,
    output: Output = OutputChoice.TABLE,
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
) -> None:
    """Show the effective configuration of a database, with secrets masked."""
    from pgmonkey.cli.show import Explanation
    from pgmonkey.errors import UnknownDatabaseError

    try:
        explanation = Explanation(
            directory, name, allow_sensitive_defaults=allow_sensitive_defaults
        )
    except UnknownDatabaseError as error:
        tell(str(error))
        raise typer.Exit(ExitCode.USAGE) from None
    written = explanation.as_json if output is OutputChoice.JSON else explanation.as_table
    typer.echo(written(sources=source))


@app.command("schema")
@expecting
def print_schema() -> None:
    """Print a JSON Schema (draft 7) of a database file, for editors and validators."""
    import json

    from pgmonkey.config.json_schema import schema

    typer.echo(json.dumps(schema(), indent=2))


@app.command()
@expecting
def demo(
    directory: Directory = Path("registry.d"),
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The service's port; 0: any free one.")
    ] = 9749,
    rotate_every: Annotated[
        float, typer.Option("--rotate-every", min=0.1, help="Seconds between two rotations.")
    ] = 20.0,
    duration: Annotated[
        float | None,
        typer.Option("--duration", min=0.0, help="Seconds after which it ends by itself."),
    ] = None,
    log_format: LogFormat = LogFormatChoice.CONSOLE,
    log_level: LogLevel = LogLevelChoice.INFO,
) -> None:
    """Show pgmonkey at work on a real PostgreSQL.

    Three databases under load, passwords that rotate, files to edit. Ctrl-C stops everything and
    leaves nothing behind.
    """
    from pgmonkey.demo.run import run_demo
    from pgmonkey.service.server import listen
    from pgmonkey.telemetry.logging import configure_logs

    configure_logs(log_format.value, log_level.value)
    run_demo(
        directory,
        listen(f"127.0.0.1:{port}"),
        rotate_every=rotate_every,
        duration=duration,
    )


service_commands.add_to(app)

# Single config files

ConfigFile = Annotated[
    Path,
    typer.Option(
        "--connconfig", "--filepath", metavar="FILE", help="The config file.", show_default=False
    ),
]
ConnectionType = Annotated[
    ConnectionTypeChoice | None,
    typer.Option("--connection-type", help="Another type than the file says."),
]
ResolveEnv = Annotated[
    bool,
    typer.Option("--resolve-env", help="Resolve ${NAME}, from_env and from_file in the file."),
]
Kind = Annotated[KindChoice, typer.Option("--type", help="The kind of database.")]


@pgconfig.command()
@expecting
def create(path: ConfigFile, kind: Kind = KindChoice.PG) -> None:
    """Write a new config file to fill in. An existing file is left as it is."""
    del kind  # there is one
    from pgmonkey.cli.config_template import create_config

    try:
        create_config(path)
    except FileExistsError as error:
        if error.filename != str(path):
            raise  # a file where its directory should be
        tell(f"{path} exists already and was left as it is")
        raise typer.Exit(ExitCode.PROBLEM) from None
    typer.echo(f"{path} is written, readable for you alone; fill it in and try it:")
    typer.echo(shlex.join(["pgmonkey", "pgconfig", "test", "--connconfig", str(path)]))


@pgconfig.command("test")
@expecting
def try_file(
    path: ConfigFile,
    connection_type: ConnectionType = None,
    resolve_env: ResolveEnv = False,
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
) -> None:
    """Connect as a config file says, and show what answered. Exit code 4: it cannot be reached."""
    import logging

    from pgmonkey.cli.connection_test import try_config

    # What went wrong is this command's answer; the same as an event beside it is noise.
    logging.getLogger("pgmonkey").addHandler(logging.NullHandler())
    report = try_config(
        path,
        connection_type.value if connection_type else None,
        resolve_env=resolve_env,
        allow_sensitive_defaults=allow_sensitive_defaults,
    )
    typer.echo(report)


@pgconfig.command("generate-code")
@expecting
def generate_code(
    path: ConfigFile,
    connection_type: ConnectionType = None,
    library: Annotated[
        LibraryChoice, typer.Option("--library", help="What the program is built on.")
    ] = LibraryChoice.PGMONKEY,
    resolve_env: ResolveEnv = False,
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
) -> None:
    """Print a program that connects as a config file says. It holds no secret, only the path."""
    from pgmonkey.cli.generated_code import generate

    program = generate(
        path,
        connection_type.value if connection_type else None,
        library.value,
        resolve_env=resolve_env,
        allow_sensitive_defaults=allow_sensitive_defaults,
    )
    typer.echo(program, nl=False)
