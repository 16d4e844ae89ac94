"""A problem of a YAML text: what the parser found, in our own words, and where."""

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


class Place(NamedTuple):
    """Hold a position in a file; line and column count from 1."""

    line: int
    column: int


def place_of(mark: Any) -> Place | None:
    """Return the place of a mark of the parser."""
    return None if mark is None else Place(mark.line + 1, mark.column + 1)


def place_at(content: bytes, offset: int) -> Place:
    """Return the place of a byte; before it there may be others that are not UTF-8."""
    start = content.rfind(b"\n", 0, offset) + 1
    column = len(content[start:offset].decode("utf-8", "replace")) + 1
    return Place(content.count(b"\n", 0, offset) + 1, column)


class YamlProblem(Exception):
    """Report text that is no acceptable YAML. The message never quotes the text.

    Args:
        code: The stable code of the problem, such as `config.syntax`.
        message: What is wrong.
        place: Where.
        hint: What to do about it.
        key: The dotted key, if it is known.
    """

    def __init__(
        self,
        code: str,
        message: str,
        place: Place | None = None,
        hint: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.place = place
        self.hint = hint
        self.key = key


def syntax_problem(error: yaml.MarkedYAMLError, content: bytes) -> YamlProblem:
    """Say in our own words what the parser found; its words may quote the file."""
    mark = error.problem_mark or error.context_mark
    said = f"{error.context or ''} {error.problem or ''}"
    place = place_of(mark)
    character = _character(content, place)
    if character == "\t":
        return YamlProblem(
            "config.syntax",
            "tab used for indentation; YAML allows only spaces",
            place,
            "indent with spaces",
        )
    if "nesting depth" in said:  # a limit of libyaml's own: it reads ahead of its events
        return YamlProblem("config.too_deep", TOO_DEEP, place)
    if "quoted scalar" in said and "escape" not in said:
        opened = place_of(error.context_mark) or place
        return YamlProblem(
            "config.syntax",
            "text is opened with a quote here and not closed",
            opened,
            "close the quote, or double a quote that is part of the text",
        )
    for sign, message, hint in _SAID:
        if sign in said:
            return YamlProblem("config.syntax", message, place, hint)
    return YamlProblem(
        "config.syntax", "this is not valid YAML", place, "check indentation, quotes and colons"
    )


_SAID: Final = (
    (
        "mapping values are not allowed",
        '": " inside an unquoted value, or wrong indentation',
        "put the value in quotes",
    ),
    (
        "cannot start any token",
        "the value starts with a character that YAML reserves",
        "put the value in quotes",
    ),
    ("escape", 'unknown escape after a backslash in "double quotes"', "use single quotes"),
    ("directive", "a value or line that starts with % needs quotes", "put the value in quotes"),
    (
        "could not find expected ':'",
        'expected "key: value"',
        "check the colon, the space after it, and the indentation",
    ),
    ("tag", "tags are not allowed", "put a value that starts with ! in quotes"),
    ("anchor", "a name must follow & or *", "put a value that starts with & or * in quotes"),
    ("alias", "a name must follow & or *", "put a value that starts with & or * in quotes"),
    (
        "flow mapping",
        "a { is not closed with }",
        "close it; a value with ${...} needs quotes inside of { }",
    ),
    ("flow sequence", "a [ is not closed with ]", "close it, or put the value in quotes"),
    (
        "block mapping",
        "this line does not belong to the mapping around it",
        "check the indentation",
    ),
    (
        "block collection",
        "this line does not belong to the list around it",
        "check the indentation",
    ),
)


def _character(content: bytes, place: Place | None) -> str:
    if place is None:
        return ""
    lines = content.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    return line[place.column - 1 : place.column]


def control_character(error: yaml.YAMLError, content: bytes) -> YamlProblem:
    """Say where the parser met a character that no YAML may hold."""
    position = getattr(error, "position", None)
    return YamlProblem(
        "config.control_character",
        "the file contains a control character",
        place_at(content, position) if isinstance(position, int) else None,
        "remove it, or write it as an escape in double quotes",
    )
