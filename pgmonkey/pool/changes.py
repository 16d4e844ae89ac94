"""What a block may change of its connection besides data, and the signs of it: sync and async."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary, WeakMethod

from psycopg import IsolationLevel, sql
from psycopg.abc import Dumper, Loader
from psycopg.adapt import AdaptersMap
from psycopg.errors import FeatureNotSupported, InvalidSqlStatementName
from psycopg.rows import dict_row, namedtuple_row, scalar_row, tuple_row
from psycopg.types import TypeInfo, TypesRegistry

#: The functions that make rows, by their names in a file.
ROW_FACTORIES: Final[Mapping[str, Any]] = {
    one.__name__: one for one in (tuple_row, dict_row, namedtuple_row, scalar_row)
}
_LISTEN: Final = re.compile(r"\blisten\b", re.IGNORECASE)
#: The function of PostgreSQL that finds a prepared statement changed, among many others that say
#: that a feature is not supported. Its text may be in any language.
_FINDS_CHANGED_PLAN: Final = "RevalidateCachedQuery"


class Settings(NamedTuple):
    """What the client side of a connection is set to."""

    autocommit: bool
    isolation_level: IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    prepare_threshold: int | None
    prepared_max: int | None
    row_factory: Any
    cursor_factory: Any
    server_cursor_factory: Any
    adapters: AdaptersMap | None
    notice_handlers: tuple[Any, ...]
    notify_handlers: tuple[Any, ...]


class Session:
    """What is known of the state of one connection, beyond what psycopg tells."""

    __slots__ = (
        "adapters",
        "cursor_factory",
        "in_two_phase",
        "made_with",
        "may_listen",
        "notice_handlers",
        "notify_handlers",
        "opened",
        "resets",
        "row_factory",
        "server_cursor_factory",
        "stale",
    )

    def __init__(self) -> None:
        self.row_factory: Any = None
        self.cursor_factory: Any = None
        self.server_cursor_factory: Any = None
        self.adapters: Adapters | None = None
        self.notice_handlers: list[Any] = []
        self.notify_handlers: list[Any] = []
        #: What each block gets.
        self.made_with: Settings | None = None
        #: Whether the server's side is reset, too, when the connection comes back.
        self.resets = False
        #: What reads or writes step by step, such as `stream()`, by what it is called.
        self.opened: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        #: Whether a two-phase transaction was begun and not finished.
        self.in_two_phase = False
        #: Whether it may have been told to LISTEN.
        self.may_listen = False
        #: Whether its prepared statements fit the server no more.
        self.stale = False


class Adapters(AdaptersMap):
    """The adapters of one connection, which tell it when a block registers others.

    Args:
        template: What they begin with.
        note_change: A method of the connection.
    """

    def __init__(self, template: AdaptersMap, note_change: Callable[[], object]) -> None:
        super().__init__(template)
        self._note_change = WeakMethod(note_change)
        self.types = _Types(self.types, self._note_change)

    def register_dumper(self, cls: type | str | None, dumper: type[Dumper]) -> None:
        """Register a dumper, until the connection is given back."""
        _call(self._note_change)
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: int | str, loader: type[Loader]) -> None:
        """Register a loader, until the connection is given back."""
        _call(self._note_change)
        super().register_loader(oid, loader)


class _Types(TypesRegistry):
    def __init__(self, template: TypesRegistry, note_change: WeakMethod[Any]) -> None:
        super().__init__(template)
        self._note_change = note_change

    def add(self, info: TypeInfo) -> None:
        _call(self._note_change)
        super().add(info)

    def clear(self) -> None:
        _call(self._note_change)
        super().clear()


def _call(method: WeakMethod[Any]) -> None:
    if (alive := method()) is not None:
        alive()


def is_open(opened: object) -> bool:
    """Tell whether a generator has not come to its end; anything else has not."""
    return (
        getattr(opened, "gi_frame", opened) is not None
        and getattr(opened, "ag_frame", opened) is not None
    )


def may_listen(query: Any) -> bool:
    """Tell whether a statement may be a LISTEN. Costs a tenth of a microsecond if it is a string.

    Args:
        query: Whatever psycopg executes.
    """
    # Two looks for what nearly no statement has are cheaper than one that ignores case.
    if isinstance(query, str):
        return ("isten" in query or "ISTEN" in query) and _LISTEN.search(query) is not None
    if isinstance(query, bytes):
        return (b"isten" in query or b"ISTEN" in query) and may_listen(query.decode("latin-1"))
    if isinstance(query, sql.SQL):
        return may_listen(query.as_string())
    if isinstance(query, sql.Composed):
        return any(map(may_listen, query))
    if strings := getattr(query, "strings", ()):  # a template string
        return any(map(may_listen, strings)) or any(
            may_listen(one.value) for one in query.interpolations if not isinstance(one.value, str)
        )
    return False


def makes_stale(error: BaseException) -> bool:
    """Tell whether an error means that a prepared statement fits the server no more.

    A migration has changed the type of its result (0A000), or the server has forgotten it (26000).
    """
    if isinstance(error, FeatureNotSupported):
        return error.diag.source_function in (None, _FINDS_CHANGED_PLAN)
    return isinstance(error, InvalidSqlStatementName)
