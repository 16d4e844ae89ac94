"""Problems of a document, and how each gets its file, line and column."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pgmonkey.config.models import hints_of
from pgmonkey.config.redaction import MASK, may_be_quoted
from pgmonkey.config.yaml_reader import (
    UNKNOWN,
    Defaults,
    KeyPath,
    Position,
    YamlDocument,
    dotted,
)
from pgmonkey.errors import Problem, sorted_problems


class KeyProblem(NamedTuple):
    """Describe what is wrong with one part of a document, before its position is known."""

    path: KeyPath
    code: str
    message: str  # without values
    hint: str | None = None
    at_key: bool = False  # the key is wrong, not its value
    show: bool = False  # the value may be shown, if it is neither sensitive nor from outside
    beside: KeyPath = ()  # another part that it does not agree with
    quoted: str = ""  # what the message quotes of the file
    unquoted: str = ""  # the message to use if that may be a secret


@dataclass(frozen=True, slots=True)
class Positions:
    """Find the file, line and column of the problems of one database."""

    name: str
    path: str
    document: YamlDocument | None = None  # `None` if there is no file
    defaults: Defaults | None = None  # merged under it
    wrapped: bool = False  # it may have the `postgresql:` wrapper of old files

    def problems(
        self, found: Iterable[KeyProblem], secrets: Collection[str] = ()
    ) -> tuple[Problem, ...]:
        """Return problems with their positions, each once, in reading order.

        What may be a secret, or is one of these, is not quoted.
        """
        return sorted_problems(self._problem(one, secrets) for one in dict.fromkeys(found))

    def _problem(self, found: KeyProblem, secrets: Collection[str]) -> Problem:
        path, position = self._find(found.path, of_key=found.at_key)
        message = found.message
        if found.quoted and not may_be_quoted(found.quoted, secrets):
            message = found.unquoted
        if found.beside:
            other, beside = self._find(found.beside)
            if beside is not None:
                file = "" if other == path else f"{other}:"
                message += f" ({found.beside[-1]} at {file}{beside.line}:{beside.column})"
        line, column = position or self._nearest(found.path) or UNKNOWN
        key = dotted(_shown(found.path, secrets))
        return Problem(path, found.code, message, line, column, key, found.hint, self.name)

    def place(self, path: KeyPath) -> str:
        """Return file, line and column of a value, and its key, as problems begin."""
        file, position = self._find(path)
        line, column = position or UNKNOWN
        where = (file, line, column) if position else (file,)
        return f"{':'.join(map(str, where))}: {dotted(path)}"

    def file_of(self, path: KeyPath) -> str | None:
        """Return the file that has a part; `None` if there is no file."""
        return None if self.document is None else self._find(path)[0]

    def _find(self, path: KeyPath, *, of_key: bool = False) -> tuple[str, Position | None]:
        """Return the file that has a part, and its position there."""
        if self.document is None or not path:
            return self.path, None
        position = self.document.position(path, of_key=of_key)
        if position is None and self.wrapped:  # inside the old wrapper
            position = self.document.position(("postgresql", *path), of_key=of_key)
        if position is None and self.defaults is not None:
            position = self.defaults.document.position(path, of_key=of_key)
            if position is not None:
                return self.defaults.path, position
        return self.path, position

    def _nearest(self, path: KeyPath) -> Position | None:
        """Return the position of the closest part around a path that the file has."""
        if self.document is None:
            return None
        while path := path[:-1]:
            position = self.document.position(path, of_key=True)
            if position is not None:
                return position
        return None


def _shown(path: KeyPath, secrets: Collection[str]) -> Iterator[str | int]:
    """Yield the steps of a path, without a secret in the place of a key."""
    for at, step in enumerate(path):
        if isinstance(step, int) or step in hints_of(path[:at]) or may_be_quoted(step, secrets):
            yield step
        else:
            yield MASK


_WRAPPER: Final = ("postgresql",)
#: What other programs call a `url`.
_MEANING_URL: Final = frozenset({"dsn", "uri", "conninfo", "database_url", "connection_string"})
#: What pydantic calls an unknown key, of a dataclass and of a dictionary.
_UNKNOWN_KEY: Final = ("unexpected_keyword_argument", "extra_forbidden")


def schema_problem(details: Mapping[str, Any], path: KeyPath | None = None) -> KeyProblem:
    """Turn one error of pydantic into a problem; the message of pydantic is never shown."""
    path = tuple(details["loc"]) if path is None else path
    at_key = bool(path) and path[-1] == "[key]"
    if at_key:
        path = path[:-1]
    match details["type"]:
        case "pgmonkey":
            context = details["ctx"]
            return KeyProblem(
                path, context["code"], context["message"], context["hint"], at_key, show=not at_key
            )
        case "unexpected_keyword_argument" | "extra_forbidden":
            return _unknown_key(path)
        case "missing":
            return KeyProblem(path, "config.required", f"{path[-1]} is required")
        case "string_type" | "is_instance_of":
            return KeyProblem(path, "config.type", "expected text")
        case _:
            return KeyProblem(path, "config.type", "expected a mapping", show=True)


def meant_key(details: Mapping[str, Any]) -> KeyPath | None:
    """Return the key that an unknown one probably means, for an error of pydantic about one."""
    if details["type"] not in _UNKNOWN_KEY:
        return None
    path = tuple(details["loc"])
    if path == _WRAPPER:
        return ("connection_settings",)
    near = _near(path)
    return (*path[:-1], near) if near else None


def _unknown_key(path: KeyPath) -> KeyProblem:
    key = str(path[-1])
    shown = json.dumps(key)
    strange = "" if key.isascii() else " contains letters that are not ASCII"
    if near := _near(path):
        hint = f'did you mean "{near}"?'
    elif home := _home(key):
        hint = f'"{key}" belongs in {home}'
    elif key == "name" and len(path) == 1:
        hint = "a database has the name of its file"
    elif path == _WRAPPER:
        hint = "the old layout: move its contents up one level"
    else:
        hint = "the reference lists every key, and so does pgmonkey schema"
    return KeyProblem(
        path,
        "config.unknown_key",
        f"unknown key {shown}{strange}",
        hint,
        at_key=True,
        quoted=key,
        unquoted="unknown key (not shown: it may be a secret)",
    )


def _near(path: KeyPath) -> str | None:
    from difflib import get_close_matches  # only when something is wrong

    key = str(path[-1]).strip().lower().replace("-", "_").replace(" ", "_")
    if key in _MEANING_URL and "url" in hints_of(path[:-1]):
        return "url"
    return next(iter(get_close_matches(key, hints_of(path[:-1]), 1, 0.7)), None)


def _home(key: str) -> str | None:
    """Return the section that has a key."""
    if key in hints_of(()):
        return "the top level of the file"
    sections = ("connection_settings", "pool_settings")
    return next((section for section in sections if key in hints_of((section,))), None)
