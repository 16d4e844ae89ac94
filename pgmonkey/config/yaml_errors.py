"""Positions in a YAML file, and errors of the parser in our own words: its words may quote it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import yaml

DEEPEST: Final = 20
TOO_DEEP: Final = f"nested deeper than {DEEPEST} levels"

#: Keys and indexes that lead to one part of a file, from the top.
KeyPath = tuple["str | int", ...]


def dotted(path: Iterable[str | int]) -> str | None:
    """Return a path as people write it: `a.b[0]`; `None` for the top."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            shown = step if step.isprintable() else json.dumps(step)[1:-1]
            text += f".{shown}" if text else shown
    return text or None


class Position(NamedTuple):
    """Hold a position in a file; line and column count from 1."""

    line: int
    column: int


#: The line and column of a problem that has none.
UNKNOWN: Final = (None, None)


def position_of(mark: Any) -> Position | None:
    """Return the position of a mark of the parser."""
    return None if mark is None else Position(mark.line + 1, mark.column + 1)


def position_at(content: bytes, offset: int) -> Position:
    """Return the position of a byte; bytes before it may not be UTF-8."""
    start = content.rfind(b"\n", 0, offset) + 1
    column = len(content[start:offset].decode("utf-8", "replace")) + 1
    return Position(content.count(b"\n", 0, offset) + 1, column)


class YamlProblem(Exception):
    """Report text that is no acceptable YAML. The message never quotes the text."""

    def __init__(
        self,
        code: str,
        message: str,
        position: Position | None = None,
        hint: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.position = position
        self.hint = hint
        self.key = key


def syntax_problem(error: yaml.MarkedYAMLError, content: bytes) -> YamlProblem:
    """Return the problem for an error of the parser."""
    words = f"{error.context or ''} {error.problem or ''}"
    position = position_of(error.problem_mark or error.context_mark)
    if _character(content, position) == "\t":
        message = "tab used for indentation; YAML allows only spaces"
        return YamlProblem("config.syntax", message, position, "indent with spaces")
    if "nesting depth" in words:  # a limit of libyaml's own: it reads ahead of its events
        return YamlProblem("config.too_deep", TOO_DEEP, position)
    if "quoted scalar" in words and "escape" not in words:
        return YamlProblem(
            "config.syntax",
            "text is opened with a quote here and not closed",
            position_of(error.context_mark) or position,
            "close the quote, or double a quote that is part of the text",
        )
    message, hint = next(
        (found for sign, *found in _MESSAGES if sign in words),
        ("this is not valid YAML", "check indentation, quotes and colons"),
    )
    return YamlProblem("config.syntax", message, position, hint)


_QUOTE_IT: Final = "put the value in quotes"
_QUOTE_NAME: Final = "put a value that starts with & or * in quotes"
_INDENTATION: Final = "check the indentation"
#: A part of the parser's message, our message, and the hint.
_MESSAGES: Final = (
    (
        "mapping values are not allowed",
        '": " inside an unquoted value, or wrong indentation',
        _QUOTE_IT,
    ),
    ("cannot start any token", "the value starts with a character that YAML reserves", _QUOTE_IT),
    ("escape", 'unknown escape after a backslash in "double quotes"', "use single quotes"),
    ("directive", "a value or line that starts with % needs quotes", _QUOTE_IT),
    (
        "could not find expected ':'",
        'expected "key: value"',
        "check the colon, the space after it, and the indentation",
    ),
    ("tag", "tags are not allowed", "put a value that starts with ! in quotes"),
    ("anchor", "a name must follow & or *", _QUOTE_NAME),
    ("alias", "a name must follow & or *", _QUOTE_NAME),
    (
        "flow mapping",
        "a { is not closed with }",
        "close it; a value with ${...} needs quotes inside of { }",
    ),
    ("flow sequence", "a [ is not closed with ]", "close it, or put the value in quotes"),
    ("block mapping", "this line does not belong to the mapping around it", _INDENTATION),
    ("block collection", "this line does not belong to the list around it", _INDENTATION),
)


def _character(content: bytes, position: Position | None) -> str:
    if position is None:
        return ""
    lines = content.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    line = lines[position.line - 1] if position.line <= len(lines) else ""
    return line[position.column - 1 : position.column]


def control_character(error: yaml.YAMLError, content: bytes) -> YamlProblem:
    """Return the problem for a character that no YAML may hold."""
    offset = getattr(error, "position", None)
    return YamlProblem(
        "config.control_character",
        "the file contains a control character",
        position_at(content, offset) if isinstance(offset, int) else None,
        "remove it, or write it as an escape in double quotes",
    )
