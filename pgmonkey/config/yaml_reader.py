"""Read one YAML file: text, lists and mappings, with the position of each."""

from __future__ import annotations

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

from pgmonkey.config.secret_files import SecretFileError, Snapshot, SnapshotMovedError
from pgmonkey.config.yaml_errors import (
    DEEPEST,
    TOO_DEEP,
    UNKNOWN,
    KeyPath,
    Position,
    YamlProblem,
    control_character,
    dotted,
    position_at,
    position_of,
    syntax_problem,
)
from pgmonkey.errors import Problem

#: The file that is merged under every database of a directory.
DEFAULTS_FILE: Final = "_defaults.yaml"
LIMIT: Final = 256 * 1024  # bytes
_MOST_NODES: Final = 2000
_NULLS: Final = frozenset({"", "~", "null"})


# By key or index: where the key and the value of an entry start, and what is below the value.
Marks = dict[Any, tuple[Any, Any, Any]]


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
        """Return where a part of the document starts; `None` if there is no such part.

        Args:
            path: Keys and indexes, from the top.
            of_key: Return the position of the key instead of that of its value.
        """
        marks, mark = self._marks, self._root
        for step in path:
            if not isinstance(marks, dict) or step not in marks:
                return None
            key_mark, value_mark, marks = marks[step]
            mark = key_mark if of_key else value_mark
        return position_of(mark)


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
    problem = None
    try:
        content.decode()
    except UnicodeDecodeError as error:
        position = position_at(content, error.start)
        message, hint = "the file is not UTF-8", "save it as UTF-8"
        problem = YamlProblem("config.encoding", message, position, hint)
    if problem is None and (offset := content.find(b"\0")) >= 0:
        position = position_at(content, offset)
        problem = YamlProblem("config.nul", "the file contains a NUL character", position)
    if problem is not None:
        raise problem
    try:
        return _Composer(content).document()
    except yaml.MarkedYAMLError as error:
        problem = syntax_problem(error, content)
    except yaml.YAMLError as error:
        problem = control_character(error, content)
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
                position_of(event.start_mark),
                "give each database a file of its own",
            )
        return YamlDocument(value, first.start_mark, marks)

    def _fail(self, code: str, message: str, event: Any, hint: str | None = None) -> YamlProblem:
        return YamlProblem(code, message, position_of(event.start_mark), hint, dotted(self._path))

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
                raise self._fail("config.too_deep", TOO_DEEP, event)
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
        first = position_of(mark)
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
        hint = "remove the file if the database is to go"
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


def read_again(path: str) -> YamlDocument | None:
    """Parse a loaded file again, for its positions: a config keeps none. `None` if it is gone."""
    try:
        with Snapshot() as snapshot:
            content, _ = snapshot.read_bytes(path, LIMIT)
    except (SecretFileError, SnapshotMovedError):
        return None
    document, _ = parse(content, path)
    return document
