"""A YAML document: text, lists and mappings, with the place of each. The only reader of YAML."""

from __future__ import annotations

import json
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

LIMIT: Final = 256 * 1024  # bytes
_DEEPEST: Final = 20
_MOST_NODES: Final = 2000
_TOO_DEEP: Final = f"nested deeper than {_DEEPEST} levels"
_NULLS: Final = frozenset({"", "~", "null"})

Path = tuple["str | int", ...]


class Place(NamedTuple):
    """Hold a position in a file; line and column count from 1."""

    line: int
    column: int


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


# By key or index: where the key and the value of an entry start, and what is below the value.
Marks = dict[Any, tuple[Any, Any, Any]]


class YamlDocument:
    """Hold the value of one document, and find the place of any part of it.

    All scalars are text: the schema types them. Only plain `null`, `~` and nothing are `None`.

    Args:
        value: Mappings, lists, text and `None`.
    """

    __slots__ = ("_marks", "_root", "value")

    def __init__(self, value: Any, root: Any, marks: Any) -> None:
        self.value = value
        self._root = root
        self._marks = marks

    def place(self, path: Path, *, of_key: bool = False) -> Place | None:
        """Return where a part of the document starts.

        Args:
            path: Keys and indexes, from the top.
            of_key: Whether the place of the key is wanted instead of that of its value.

        Returns:
            `None` if the document has no such part.
        """
        marks, mark = self._marks, self._root
        for step in path:
            if not isinstance(marks, dict) or step not in marks:
                return None
            key_mark, value_mark, marks = marks[step]
            mark = key_mark if of_key else value_mark
        return _place(mark)


def _place(mark: Any) -> Place | None:
    return None if mark is None else Place(mark.line + 1, mark.column + 1)


def read_yaml(content: bytes) -> YamlDocument:
    """Parse the bytes of one file.

    The limits (256 KiB, 20 levels, 2,000 nodes with aliases expanded) hold while the parser's
    events come in, before anything large or deep is built.

    Args:
        content: The file; UTF-8, with or without a byte order mark.

    Raises:
        YamlProblem: It is not acceptable; the message quotes nothing from the file.
    """
    if len(content) > LIMIT:
        raise YamlProblem("config.too_large", f"the file is larger than {LIMIT // 1024} KiB")
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
    try:
        content.decode()
    except UnicodeDecodeError as error:
        offset = error.start
    else:
        offset = -1
    if offset >= 0:
        line = content.count(b"\n", 0, offset) + 1
        start = content.rfind(b"\n", 0, offset) + 1
        column = len(content[start:offset].decode("utf-8", "replace")) + 1
        raise YamlProblem(
            "config.encoding", "the file is not UTF-8", Place(line, column), "save it as UTF-8"
        )
    if b"\0" in content:
        offset = content.index(b"\0")
        start = content.rfind(b"\n", 0, offset) + 1
        place = Place(content.count(b"\n", 0, offset) + 1, len(content[start:offset].decode()) + 1)
        raise YamlProblem("config.nul", "the file contains a NUL character", place)
    composer = _Composer(content)
    try:
        return composer.document()
    except yaml.MarkedYAMLError as error:
        problem = _syntax(error, content)
    except yaml.YAMLError as error:
        problem = _unreadable(error, content)
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
                _place(event.start_mark),
                "give each database a file of its own",
            )
        return YamlDocument(value, first.start_mark, marks)

    def _fail(self, code: str, message: str, event: Any, hint: str | None = None) -> YamlProblem:
        return YamlProblem(code, message, _place(event.start_mark), hint, dotted(self._path))

    def _count(self, nodes: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > _MOST_NODES:
            raise self._fail(
                "config.too_many_nodes",
                f"more than {_MOST_NODES} values in one file, with aliases expanded",
                event,
            )

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
            if self._depth > _DEEPEST:
                raise self._fail("config.too_deep", _TOO_DEEP, event)
            value, marks = self._mapping() if kind is MappingStartEvent else self._sequence()
            self._depth -= 1
        if anchor is not None:
            self._anchors[anchor] = value, marks, self._nodes - before
        return value, marks

    def _alias(self, event: Any) -> tuple[Any, Any]:
        found = self._anchors.get(event.anchor)
        if found is None:
            known = event.anchor in self._anchors
            raise self._fail(
                "config.alias",
                "an alias inside its own anchor"
                if known
                else "an alias without an anchor before it",
                event,
                None if known else "a value that starts with * needs quotes",
            )
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
        first = _place(mark)
        where = f" (first at {first.line}:{first.column})" if first else ""
        return self._fail(
            "config.duplicate_key", f"the key appears twice{where}", event, "keep one of them"
        )

    def _merge(self, event: Any) -> list[tuple[Any, Any]]:
        value, marks = self._node(event)
        pairs = [(value, marks)]
        if isinstance(value, list):
            pairs = [(item, marks[index][2]) for index, item in enumerate(value)]
        if not all(isinstance(item, dict) for item, _ in pairs):
            raise self._fail(
                "config.merge", "expected a mapping, or a list of mappings, to merge", event
            )
        return pairs


def dotted(path: Path | list[str | int]) -> str | None:
    """Return a path as people write it: `a.b[0]`; `None` for the top."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            shown = step if step.isprintable() else json.dumps(step)[1:-1]
            text += f".{shown}" if text else shown
    return text or None


def _syntax(error: yaml.MarkedYAMLError, content: bytes) -> YamlProblem:
    """Say in our own words what the parser found; its words may quote the file."""
    mark = error.problem_mark or error.context_mark
    said = f"{error.context or ''} {error.problem or ''}"
    place = _place(mark)
    character = _character(content, place)
    if character == "\t":
        return YamlProblem(
            "config.syntax",
            "tab used for indentation; YAML allows only spaces",
            place,
            "indent with spaces",
        )
    if "nesting depth" in said:  # a limit of libyaml's own: it reads ahead of its events
        return YamlProblem("config.too_deep", _TOO_DEEP, place)
    if "quoted scalar" in said and "escape" not in said:
        opened = _place(error.context_mark) or place
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


def _unreadable(error: yaml.YAMLError, content: bytes) -> YamlProblem:
    position = getattr(error, "position", None)
    place = None
    if isinstance(position, int):
        before = content[:position]
        start = before.rfind(b"\n") + 1
        place = Place(before.count(b"\n") + 1, len(before[start:].decode("utf-8", "replace")) + 1)
    return YamlProblem(
        "config.control_character",
        "the file contains a control character",
        place,
        "remove it, or write it as an escape in double quotes",
    )
