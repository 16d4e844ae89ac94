"""`pgmonkey demo`: pgmonkey at work on a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer

if TYPE_CHECKING:
    from pgmonkey.telemetry.logging import LogFormat, LogLevel


@click.command("demo")
@options.directory
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9749,
    help="The port of the service; 0: any free one.",
)
@options.duration(
    "--rotate-every",
    least=0.1,
    default="20s",
    help="The time between two rotations of a password.",
)
@options.duration("--duration", help="Stop after this time.")
@options.log_format(default="console")
@options.log_level
def command(
    directory: Path,
    port: int,
    rotate_every: float,
    duration: float | None,
    log_format: LogFormat,
    log_level: LogLevel,
) -> Answer:
    """Run a demonstration on a real PostgreSQL.

    Three databases under load, passwords that rotate, files to edit. Ctrl-C stops everything and
    leaves nothing behind.
    """
    from pgmonkey.demo.run import run_demo
    from pgmonkey.service.server import listen
    from pgmonkey.telemetry.logging import configure_logs

    listener = listen(f"127.0.0.1:{port}")
    configure_logs(log_format, log_level)
    run_demo(directory, listener, rotate_every=rotate_every, duration=duration)
    return Answer()
