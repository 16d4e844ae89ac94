r"""Variables that do not come from the environment: from a mapping, or from a `.env` file.

A `.env` file has lines of the form `NAME=value`:

    # for development
    export ORDERS_HOST=localhost     # `export` may stand there; a comment begins after a space
    ORDERS_USER='app'                # as it is, up to the next single quote, also over several lines
    ORDERS_PASSWORD="t\"e\n\$a"      # \n \r \t \" \$ \\ are one character; other pairs stay

Docker Compose and python-dotenv read the same values from it, except for some backslashes:
python-dotenv keeps that of `\$`, and both know more escapes. They also replace `${NAME}` outside of
single quotes, by rules that differ: here that is refused. Of two lines with one name, the last
counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from pgmonkey.config.secret_files import SecretFileError, Snapshot, SnapshotMovedError
from pgmonkey.errors import ConfigError, Problem

_LIMIT: Final = 256 * 1024  # bytes
_EMPTY: Final = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_START: Final = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=")
_SINGLE: Final = re.compile(r"[ \t]*'([^']*)'")
_DOUBLE: Final = re.compile(r'[ \t]*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_END: Final = re.compile(r"(?:[ \t]+#[^\n]*|[ \t]*)(?:\n|\Z)")
_COMMENT: Final = re.compile(r"[ \t]#")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "$": "$", "\\": "\\"}
_REFERENCE: Final = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
_FORM: Final = "write NAME=value, NAME='value' or NAME=\"value\""


class Variables(Mapping[str, str]):
    """Look variables up in a mapping that may change, and print none of their values.

    A value that is no text counts as its text; `None` as if the variable were not set.
    """

    __slots__ = ("_variables",)

    def __init__(self, variables: Mapping[str, Any]) -> None:
        if not isinstance(variables, Mapping):
            raise TypeError(
                f"env must be a mapping, not {type(variables).__name__};"
                ' read_env_file(".env") makes one of a file'
            )
        self._variables = variables

    def __getitem__(self, name: str) -> str:
        value = self._variables[name]
        if value is None:
            raise KeyError(name)
        return str(value)

    def __iter__(self) -> Iterator[str]:
        return (name for name, value in self._variables.items() if value is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Variables: {len(self)} names>"


def read_env_file(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Return the variables of a `.env` file. The environment of the process stays as it is.

    Use it for development, with `Registry(env=...)`. It costs one read; nothing is watched.

    Args:
        path: The file: lines `NAME=value`, with or without quotes, `export` and comments.

    Raises:
        ConfigError: The file, or a line of it, cannot be read.

    Example:
        >>> sorted(read_env_file(".env"))
        ['ORDERS_LOG']
    """
    name = os.fspath(path)
    variables, problems = _read(name)
    if problems:
        del variables  # a traceback may show locals
        raise ConfigError(problems)
    return variables


def _read(path: str) -> tuple[Variables, list[Problem]]:
    variables: dict[str, str] = {}
    text, message = "", ""
    try:
        with Snapshot() as snapshot:
            text = snapshot.read_bytes(path, _LIMIT)[0].decode("utf-8-sig")
    except SecretFileError as error:
        message = str(error)
    except SnapshotMovedError:
        message = "is replaced while it is read"
    except UnicodeDecodeError:
        message = "is not UTF-8 text"
    if message:
        return Variables(variables), [
            Problem(path, "environment.unreadable", f"the file {message}")
        ]
    problems = [
        Problem(path, "environment.syntax", wrong.message, wrong.line, hint=wrong.hint)
        for wrong in parse_env(text, variables)
    ]
    return Variables(variables), problems


class WrongLine(NamedTuple):
    """Say what is wrong with one line. It quotes nothing of it."""

    line: int
    message: str
    hint: str


def parse_env(text: str, variables: dict[str, str]) -> Iterator[WrongLine]:
    """Add the variables of a text in the form of a `.env` file; yield what is wrong with it."""
    text = text.replace("\r\n", "\n")
    at, line = 0, 1
    while at < len(text):
        began = at
        if (match := _EMPTY.match(text, at)) is not None:
            at = match.end()
        elif (match := _START.match(text, at)) is None:
            yield WrongLine(line, "expected NAME=value", _FORM)
            at = _end_of_line(text, at)
        else:
            value, at, wrong = _value(text, match.end())
            if wrong is None:
                variables[match[1]] = value
            else:
                yield WrongLine(line, *wrong)
        line += text.count("\n", began, at)


def _value(text: str, start: int) -> tuple[str, int, tuple[str, str] | None]:
    """Return the value that starts here, where its last line ends, and what is wrong with it."""
    if (match := _SINGLE.match(text, start)) is not None:
        value = match[1]
    elif (match := _DOUBLE.match(text, start)) is not None:
        if _REFERENCE.search(match[1]):
            return "", _end_of_line(text, match.end()), _NOT_REPLACED
        value = _ESCAPE.sub(lambda pair: _ESCAPED.get(pair[1], pair[0]), match[1])
    else:
        end = _end_of_line(text, start)
        value = _COMMENT.split(text[start:end], 1)[0].strip(" \t\n")
        if value.startswith(("'", '"')):
            # Where it ends cannot be guessed, so nothing after it can be read.
            return "", len(text), ("a quote is not closed", _FORM)
        return value, end, _NOT_REPLACED if "${" in value else None
    if (after := _END.match(text, match.end())) is None:
        wrong = "there is text after the closing quote", _FORM
        return "", _end_of_line(text, match.end()), wrong
    return value, after.end(), None


_NOT_REPLACED: Final = (
    "${ refers to another variable, which is not replaced in this file",
    "write its value, or put the value into single quotes if ${ is a part of it",
)


def _end_of_line(text: str, at: int) -> int:
    return text.find("\n", at) + 1 or len(text)
