"""Read one YAML file: text, lists and mappings, with the position of each.

Errors of the parser are reported in our own words: its words may quote the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import yaml
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # the stubs leave it out
from yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from pgmonkey.config.redaction import MASK, may_be_secret
from pgmonkey.config.secret_files import SecretFileError, Snapshot, SnapshotMovedError
from pgmonkey.errors import Problem

#: The file that is merged under every database of a directory.
DEFAULTS_FILE: Final = "_defaults.yaml"
LIMIT: Final = 256 * 1024  # bytes
_MOST_NODES: Final = 2000
DEEPEST: Final = 20
_TOO_DEEP: Final = f"nested deeper than {DEEPEST} levels"
_NULLS: Final = frozenset({"", "~", "null"})

#: Keys and indexes that lead to one part of a file, from the top.
KeyPath = tuple["str | int", ...]
# By key or index: where the key and the value of an entry start, and what is below the value.
Marks = dict[Any, tuple[Any, Any, Any]]


def dotted(path: Iterable[str | int]) -> str | None:
    """Return a path as people write it: `a.b[0]`; `None` for the top.

    What looks like a secret in the place of a key is masked.
    """
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            shown = step if step.isprintable() else json.dumps(step)[1:-1]
            if may_be_secret(step):
                shown = MASK
            text += f".{shown}" if text else shown
    return text or None


class Position(NamedTuple):
    """Hold a position in a file; line and column count from 1."""

    line: int
    column: int


#: The line and column of a problem that has none.
UNKNOWN: Final = (None, None)


def _position_of(mark: Any) -> Position | None:
    """Return the position of a mark of the parser."""
    return None if mark is None else Position(mark.line + 1, mark.column + 1)


def _position_at(content: bytes, offset: int) -> Position:
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


class YamlDocument:
    """Hold the value of one document, and find the position of any part of it.

    All scalars are text: the schema types them. Only plain `null`, `~` and nothing are `None`.
    """

    __slots__ = ("_marks", "_root", "value")

    def __init__(self, value: Any, root: Any, marks: Any) -> None:
        self.value = value
        self._root = root
        self._marks = marks

    def position(self, path: KeyPath, *, of_key: bool = False) -> Position | None:
        """Return where the value of a part starts, or its key; `None` if there is no such part."""
        marks, mark = self._marks, self._root
        for step in path:
            if not isinstance(marks, dict) or step not in marks:
                return None
            key_mark, value_mark, marks = marks[step]
            mark = key_mark if of_key else value_mark
        return _position_of(mark)


def read_yaml(content: bytes) -> YamlDocument:
    """Parse the bytes of one file.

    The limits (256 KiB, 20 levels, 2,000 nodes with aliases expanded) hold while the parser's
    events come in, before anything large or deep is built. A byte order mark is ignored.

    Raises:
        YamlProblem: It is not acceptable; the message quotes nothing from the file.
    """
    if len(content) > LIMIT:
        raise YamlProblem("config.too_large", f"the file is larger than {LIMIT // 1024} KiB")
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
    hint: str | None = None
    code, message = "config.nul", "the file contains a NUL character"
    try:
        content.decode()
        offset = content.find(b"\0")
    except UnicodeDecodeError as error:
        code, message, hint = "config.encoding", "the file is not UTF-8", "save it as UTF-8"
        offset = error.start
    if offset >= 0:
        raise YamlProblem(code, message, _position_at(content, offset), hint)
    try:
        return _Composer(content).document()
    except yaml.MarkedYAMLError as error:
        problem = _syntax_problem(error, content)
    except yaml.YAMLError as error:
        problem = _control_character(error, content)
    raise problem  # outside of the handlers: the parser's own text must not become a cause


class _Composer:
    """Build plain values from the parser's events, in one pass."""

    __slots__ = ("_anchors", "_depth", "_event", "_nodes", "_path")

    def __init__(self, content: bytes) -> None:
        self._event: Any = CParser(content).get_event
        # name -> value, marks, number of nodes; None while the node is still open
        self._anchors: dict[str, tuple[Any, Any, int] | None] = {}
        self._nodes = 0
        self._depth = 0
        self._path: list[str | int] = []

    def document(self) -> YamlDocument:
        self._event()  # the start of the stream
        event = self._event()
        if isinstance(event, StreamEndEvent):
            return YamlDocument(None, None, None)
        first = self._event()
        value, marks = self._node(first)
        self._event()  # the end of the document
        event = self._event()
        if not isinstance(event, StreamEndEvent):
            raise YamlProblem(
                "config.multi_document",
                "only one document per file; a second one starts here",
                _position_of(event.start_mark),
                "give each database a file of its own",
            )
        return YamlDocument(value, first.start_mark, marks)

    def _fail(self, code: str, message: str, event: Any, hint: str | None = None) -> YamlProblem:
        return YamlProblem(code, message, _position_of(event.start_mark), hint, dotted(self._path))

    def _count(self, nodes: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > _MOST_NODES:
            message = f"more than {_MOST_NODES} values in one file, with aliases expanded"
            raise self._fail("config.too_many_nodes", message, event)

    def _node(self, event: Any) -> tuple[Any, Any]:
        kind = type(event)
        if kind is AliasEvent:
            return self._alias(event)
        if event.tag is not None:
            raise self._fail("config.tag", "tags are not allowed", event, "remove the tag")
        before = self._nodes
        anchor = event.anchor
        if anchor is not None:
            self._anchors[anchor] = None
        self._count(1, event)
        marks: Any = None
        value: Any
        if kind is ScalarEvent:
            value = event.value
            if not event.style and value in _NULLS:  # no style: plain
                value = None
        else:
            self._depth += 1
            if self._depth > DEEPEST:
                raise self._fail("config.too_deep", _TOO_DEEP, event)
            value, marks = self._mapping() if kind is MappingStartEvent else self._sequence()
            self._depth -= 1
        if anchor is not None:
            self._anchors[anchor] = value, marks, self._nodes - before
        return value, marks

    def _alias(self, event: Any) -> tuple[Any, Any]:
        found = self._anchors.get(event.anchor)
        if found is None:
            if event.anchor in self._anchors:
                raise self._fail("config.alias", "an alias inside its own anchor", event)
            hint = "a value that starts with * needs quotes"
            raise self._fail("config.alias", "an alias without an anchor before it", event, hint)
        value, marks, nodes = found
        self._count(nodes, event)
        return value, marks

    def _sequence(self) -> tuple[list[Any], Marks]:
        values: list[Any] = []
        marks: Marks = {}
        path = self._path
        while type(event := self._event()) is not SequenceEndEvent:
            path.append(len(values))
            value, below = self._node(event)
            path.pop()
            marks[len(values)] = event.start_mark, event.start_mark, below
            values.append(value)
        return values, marks

    def _mapping(self) -> tuple[dict[str, Any], Marks]:
        values: dict[str, Any] = {}
        marks: Marks = {}
        merges: list[tuple[Any, Any]] = []
        next_event, path = self._event, self._path
        # Nine of ten nodes are plain scalars in mappings: they are done here, without calls.
        while (kind := type(event := next_event())) is not MappingEndEvent:
            if kind is ScalarEvent and event.tag is None and event.anchor is None:
                self._nodes += 1
                key = event.value
                if not event.style and key in _NULLS:
                    key = None
            else:
                key, _ = self._node(event)
            if not isinstance(key, str):
                raise self._fail("config.key", "keys must be text", event, "put the key in quotes")
            content = next_event()
            if key in values:
                raise self._twice(key, event, marks[key][0])
            if key == "<<" and kind is ScalarEvent and not event.style:
                merges += self._merge(content)
                continue
            if type(content) is ScalarEvent and content.tag is None and content.anchor is None:
                value: Any = content.value
                below: Any = None
                if not content.style and value in _NULLS:
                    value = None
                self._nodes += 1
                if self._nodes > _MOST_NODES:
                    self._count(0, content)
            else:
                path.append(key)
                value, below = self._node(content)
                path.pop()
            values[key] = value
            marks[key] = event.start_mark, content.start_mark, below
        for merged, merged_marks in merges:  # an own key wins, then the earlier of several
            for key, value in merged.items():
                if key not in values:
                    values[key] = value
                    marks[key] = merged_marks[key]
        return values, marks

    def _twice(self, key: str, event: Any, mark: Any) -> YamlProblem:
        self._path.append(key)  # the event may be an alias
        first = _position_of(mark)
        where = f" (first at {first.line}:{first.column})" if first else ""
        message = f"the key appears twice{where}"
        return self._fail("config.duplicate_key", message, event, "keep one of them")

    def _merge(self, event: Any) -> list[tuple[Any, Any]]:
        value, marks = self._node(event)
        pairs = [(value, marks)]
        if isinstance(value, list):
            pairs = [(item, marks[index][2]) for index, item in enumerate(value)]
        if not all(isinstance(item, dict) for item, _ in pairs):
            message = "expected a mapping, or a list of mappings, to merge"
            raise self._fail("config.merge", message, event)
        return pairs


def _syntax_problem(error: yaml.MarkedYAMLError, content: bytes) -> YamlProblem:
    """Return the problem for an error of the parser."""
    words = f"{error.context or ''} {error.problem or ''}"
    position = _position_of(error.problem_mark or error.context_mark)
    if _character(content, position) == "\t":
        message = "tab used for indentation; YAML allows only spaces"
        return YamlProblem("config.syntax", message, position, "indent with spaces")
    if "nesting depth" in words:  # a limit of libyaml's own: it reads ahead of its events
        return YamlProblem("config.too_deep", _TOO_DEEP, position)
    if "quoted scalar" in words and "escape" not in words:
        return YamlProblem(
            "config.syntax",
            "text is opened with a quote here and not closed",
            _position_of(error.context_mark) or position,
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


def _control_character(error: yaml.YAMLError, content: bytes) -> YamlProblem:
    """Return the problem for a character that no YAML may hold."""
    offset = getattr(error, "position", None)
    return YamlProblem(
        "config.control_character",
        "the file contains a control character",
        _position_at(content, offset) if isinstance(offset, int) else None,
        "remove it, or write it as an escape in double quotes",
    )


class Defaults(NamedTuple):
    """Hold the document that is merged under every database, and the file it came from."""

    path: str
    document: YamlDocument


def parse(content: bytes, path: str) -> tuple[YamlDocument | None, tuple[Problem, ...]]:
    """Parse the bytes of one file; return the document, or its problems."""
    try:
        document = read_yaml(content)
    except YamlProblem as error:
        line, column = error.position or UNKNOWN
        return None, (Problem(path, error.code, str(error), line, column, error.key, error.hint),)
    if isinstance(document.value, dict):
        return document, ()
    message = "expected a mapping with connection_settings"
    if document.value is None:
        hint = "to remove the database, remove the file"
        return None, (Problem(path, "config.empty", f"the file is empty; {message}", hint=hint),)
    position = document.position(()) or Position(1, 1)
    if isinstance(document.value, list):
        message, hint = f"{message}, got a list", "one database per file"
        return None, (Problem(path, "config.shape", message, *position, hint=hint),)
    return None, (Problem(path, "config.shape", f"{message}, got text", *position),)


def unreadable(path: str, error: SecretFileError, name: str | None = None) -> Problem:
    """Return the problem of a database file that cannot be read."""
    code = error.code.replace("secret.", "config.")
    return Problem(path, code, f"the file {error}", hint=error.hint, database=name)


def read_with_defaults(path: str) -> Iterator[tuple[str, YamlDocument]]:
    """Parse a loaded file and the defaults under it again, for positions: a config keeps none.

    A file that is gone is left out.
    """
    # Not by `Path`, which would take the dot of `./orders.yaml` away.
    for file in (path, os.path.join(os.path.dirname(path), DEFAULTS_FILE)):
        if (document := read_again(file)) is not None:
            yield file, document


def read_again(path: str) -> YamlDocument | None:
    """Parse a loaded file again; `None` if it is gone."""
    try:
        with Snapshot() as snapshot:
            content, _ = snapshot.read_bytes(path, LIMIT)
    except (SecretFileError, SnapshotMovedError):
        return None
    document, _ = parse(content, path)
    return document
