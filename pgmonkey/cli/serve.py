"""`pgmonkey serve`: the status page, metrics and health checks of a registry."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer

if TYPE_CHECKING:
    from pgmonkey.config.trust import Trust
    from pgmonkey.service.server import Listener
    from pgmonkey.telemetry.logging import LogFormat, LogLevel


def _names(
    _context: click.Context, _: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...] | None:
    if not given:
        return None
    names = tuple(name.strip() for one in given for name in one.split(",") if name.strip())
    if not names:  # a variable of a script that was not set
        raise click.BadParameter("give at least one name")
    return names


@click.command("serve")
@options.directory
@click.option(
    "--listen",
    "address",
    metavar="HOST:PORT",
    default="127.0.0.1:9749",
    help="The address to listen on; port 0: any free one.",
)
@click.option(
    "--admin-listen",
    "admin_address",
    metavar="HOST:PORT",
    help="Another address for the page, its data and reloads; --listen keeps /metrics, /healthz"
    " and /readyz.",
)
@click.option(
    "--allow-host",
    "hosts",
    metavar="NAME",
    multiple=True,
    help="Another name or address that the Host of a request may have; may be repeated. localhost"
    " and the address that the request was sent to are always allowed.",
)
@click.option(
    "--reload-token-file",
    "token_file",
    metavar="FILE",
    type=options.PATH,
    help="Allow POST /-/reload with the token in this file; without it, reloads are off.",
)
@click.option(
    "--tls-cert", metavar="FILE", type=options.PATH, help="Encrypt with this certificate (PEM)."
)
@click.option(
    "--tls-key", metavar="FILE", type=options.PATH, help="The private key of --tls-cert (PEM)."
)
@options.duration(
    "--grace",
    default="1s",
    help="How long /readyz answers 503 before the service stops.",
)
@click.option(
    "--names",
    metavar="NAME,...",
    multiple=True,
    callback=_names,
    envvar="PGMONKEY_NAMES",
    show_envvar=True,
    help="Serve only these databases; the other files are not read.  [default: all]",
)
@options.duration(
    "--probe-interval",
    least=0.1,
    default="15s",
    envvar="PGMONKEY_PROBE_INTERVAL",
    show_envvar=True,
    help="The time between two background probes of a database.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    envvar="PGMONKEY_MAX_CONNECTIONS",
    show_envvar=True,
    help="Server connections that this process may have at a time; probes wait for room."
    "  [default: no limit]",
)
@click.option(
    "--no-histograms",
    is_flag=True,
    envvar="PGMONKEY_NO_HISTOGRAMS",
    show_envvar=True,
    help="Export the times of reloads and pools as count and sum, without buckets.",
)
@options.log_format(default="auto")
@options.log_level
@options.references
@options.trust(default="strict")
def command(
    directory: Path,
    address: str,
    admin_address: str | None,
    hosts: tuple[str, ...],
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    grace: float,
    names: tuple[str, ...] | None,
    probe_interval: float,
    max_connections: int | None,
    no_histograms: bool,
    log_format: LogFormat,
    log_level: LogLevel,
    references: options.References,
    trust: Trust,
) -> Answer:
    """Serve the status page, metrics and health of a registry.

    SIGTERM or Ctrl-C ends it. It watches the files; SIGHUP makes it read them at once.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.BadParameter("one needs the other", param_hint="--tls-cert and --tls-key")
    from pgmonkey.registry.registry import Registry
    from pgmonkey.service.auth import TokenFile
    from pgmonkey.service.runner import ServiceOptions, note_signals, serve
    from pgmonkey.service.tls import Certificate
    from pgmonkey.telemetry.logging import configure_logs

    token = TokenFile(token_file) if token_file else None
    if token is not None:
        token.read()  # an unreadable file fails now, not at the first reload
    noted = note_signals()
    with ExitStack() as sockets:
        listener = sockets.enter_context(_listen(address, "--listen"))
        admin = None
        if admin_address is not None:
            admin = sockets.enter_context(_listen(admin_address, "--admin-listen"))
        configure_logs(log_format, log_level)
        serve(
            lambda metrics: Registry(
                directory,
                names,
                metrics=metrics,
                histograms=not no_histograms,
                probe_interval=probe_interval,
                trust=trust,
                max_connections=max_connections,
                **references,
            ),
            listener,
            ServiceOptions(
                admin=admin,
                hosts=hosts,
                grace=grace,
                token=token,
                certificate=Certificate(tls_cert, tls_key) if tls_cert and tls_key else None,
            ),
            noted,
        )
    return Answer()


def _listen(address: str, option: str) -> Listener:
    from pgmonkey.service.server import ServiceError, listen

    try:
        return listen(address)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
    except ServiceError as error:
        hint = f"{option} names another address or port; port 0 takes any free one"
        raise ServiceError(f"{error}\n  hint: {hint}") from None
