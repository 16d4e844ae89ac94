"""The commands of the service: run it, look at it, tell it to look at its files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgmonkey.cli.options import (
    AllowSensitiveDefaults,
    Directory,
    LogFormat,
    LogFormatChoice,
    LogLevel,
    LogLevelChoice,
    Output,
    OutputChoice,
    Trust,
    TrustChoice,
)
from pgmonkey.cli.output import ExitCode, expecting, tell

if TYPE_CHECKING:
    from pgmonkey.service.server import Listener

_EVERY: Final = 2.0  # seconds between two looks of --watch


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line.

    Args:
        app: The command line.
    """
    for command in (serve, status, reload):
        app.command()(command)


ServiceUrl = Annotated[
    str,
    typer.Option("--url", envvar="PGMONKEY_URL", help="Where the service is, without a path."),
]


@expecting
def serve(
    directory: Directory = Path("registry.d"),
    address: Annotated[
        str,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Where to answer; port 0: any free one."
        ),
    ] = "127.0.0.1:9749",
    admin_address: Annotated[
        str | None,
        typer.Option(
            "--admin-listen",
            metavar="HOST:PORT",
            help="Where the page, its data and reloads are instead; --listen keeps /metrics,"
            " /healthz and /readyz.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Another name or address that requests may come for; repeat for more. localhost"
            " and the address that a request came in at always may.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--reload-token-file",
            metavar="FILE",
            help="Let POST /-/reload in with the token in this file. Off without it.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option("--tls-cert", metavar="FILE", help="Encrypt with this certificate (PEM)."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", metavar="FILE", help="The private key of --tls-cert (PEM)."),
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
    trust: Trust = TrustChoice.STRICT,
) -> None:
    """Serve the status page, /metrics, /healthz and /readyz of a registry.

    SIGTERM or Ctrl-C ends it. SIGHUP looks at the files at once; they are watched all the same.
    """
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("one needs the other", param_hint="--tls-cert and --tls-key")
    from pgmonkey.service.auth import TokenFile
    from pgmonkey.service.runner import ServiceOptions, note_signals
    from pgmonkey.service.runner import serve as serve_registry
    from pgmonkey.service.tls import Certificate
    from pgmonkey.telemetry.logging import configure_logs

    configure_logs(log_format.value, log_level.value)
    token = TokenFile(token_file) if token_file else None
    if token is not None:
        token.read()  # what cannot be read is said now, not at the first reload
    certificate = Certificate(tls_cert, tls_key) if tls_cert and tls_key else None
    noted = note_signals()
    with ExitStack() as sockets:
        listener = sockets.enter_context(_listen(address, "--listen"))
        admin = None
        if admin_address is not None:
            admin = sockets.enter_context(_listen(admin_address, "--admin-listen"))
        serve_registry(
            directory,
            listener,
            ServiceOptions(
                admin=admin,
                hosts=tuple(allow_host or ()),
                grace=grace,
                token=token,
                certificate=certificate,
            ),
            noted,
            allow_sensitive_defaults=allow_sensitive_defaults,
            trust=trust.value,
        )


def _listen(address: str, option: str) -> Listener:
    from pgmonkey.service.server import listen

    try:
        return listen(address)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


@expecting
def status(
    url: ServiceUrl = "http://127.0.0.1:9749",
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every 2 seconds, until Ctrl-C.")
    ] = False,
    output: Output = OutputChoice.TABLE,
) -> None:
    """Show what a running service shows: every database, and how it is.

    Exit code 5: the service cannot be reached.
    """
    import json
    import sys
    import time

    from pgmonkey.cli.status import as_table
    from pgmonkey.service.client import UnreachableError

    client = _client(url)
    clear = "\x1b[H\x1b[J" if watch and sys.stdout.isatty() else ""
    met = False
    while True:
        try:
            report = client.overview()
        except UnreachableError as error:
            if not met:
                raise _unreachable(error) from None
            tell(str(error))  # it may be restarting
        else:
            met = True
            text = json.dumps(report) if watch else json.dumps(report, indent=2)
            typer.echo(clear + (text if output is OutputChoice.JSON else as_table(report)))
        if not watch:
            return
        time.sleep(_EVERY)


@expecting
def reload(
    url: ServiceUrl = "http://127.0.0.1:9749",
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", metavar="FILE", help="The file that holds the service's token."
        ),
    ] = None,
    output: Output = OutputChoice.TABLE,
) -> None:
    """Let a running service look at its files now, and say what came of it.

    Exit code 1: something was rejected, or the service refuses. 5: it cannot be reached.
    """
    import json

    from pgmonkey.errors import Problem
    from pgmonkey.service.auth import TokenFile
    from pgmonkey.service.client import UnreachableError

    token = TokenFile(token_file).read() if token_file else None
    try:
        result: dict[str, Any] = _client(url).reload(token)
    except UnreachableError as error:
        raise _unreachable(error) from None
    if output is OutputChoice.JSON:
        typer.echo(json.dumps(result, indent=2))
    else:
        for outcome in ("applied", "removed", "unchanged"):
            if result[outcome]:
                typer.echo(f"{outcome}: {', '.join(result[outcome])}")
        for problem in result["rejected"]:
            tell(str(Problem(**problem)))
    if result["rejected"]:
        raise typer.Exit(ExitCode.PROBLEM)


def _client(url: str) -> Any:
    from pgmonkey.service.client import ServiceClient

    try:
        return ServiceClient(url)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None


def _unreachable(error: Exception) -> typer.Exit:
    tell(str(error))
    return typer.Exit(ExitCode.SERVICE_UNREACHABLE)
