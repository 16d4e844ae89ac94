"""What people look for on a handle out of habit, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

C = TypeVar("C", bound=type)

_OF_A_CURSOR: Final = (
    *("copy", "execute", "executemany", "stream"),
    *("fetchall", "fetchmany", "fetchone", "rowcount"),
)
_OF_A_CONNECTION: Final = (
    *("execute", "notifies", "pipeline", "info", "adapters"),
    *("add_notice_handler", "add_notify_handler"),
    *("autocommit", "isolation_level", "read_only", "deferrable"),
    *("row_factory", "cursor_factory", "prepare_threshold"),
)
_COMMITS: Final = (
    "a block commits when it succeeds and rolls back when it raises: `{with} handle as conn:`, and"
    " in it {await}conn.{name}()"
)
_CONNECTS: Final = "{await}handle.open() connects now, and raises why it cannot"
_IS_THE_POOL: Final = "the handle is the pool, and handle.status() has its numbers"
_IN_THE_FILE: Final = "load_config(file) returns what a file has"
_FETCHES: Final = "borrow a connection: `{with} handle as conn:`, and use conn.execute(...)"

#: By the name of an attribute. What is in braces is filled in.
_OF_A_HANDLE: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (*_OF_A_CONNECTION, *_OF_A_CURSOR),
        "borrow a connection: `{with} handle as conn:`, and use conn.{name}",
    ),
    **dict.fromkeys(
        ("fetchall", "fetchmany", "fetchone", "rowcount"),
        "borrow a cursor: `{with} handle.cursor() as cur:`, and use cur.{name}",
    ),
    **dict.fromkeys(
        ("notifies", "add_notify_handler"),
        '`{with} handle.listen("channel") as notes:` waits for notifications',
    ),
    "commit": _COMMITS,
    "rollback": _COMMITS,
    # psycopg_pool, SQLAlchemy, asyncpg, pgmonkey 4.0
    "acquire": _FETCHES,
    "begin": "`{with} handle.transaction() as conn:` borrows a connection with a transaction open",
    "check_on_checkout": "it is a key of the file",
    "config": _IN_THE_FILE,
    "fetch": _FETCHES,
    "fetchrow": _FETCHES,
    "fetchval": _FETCHES,
    "get_stats": "handle.status() has the numbers",
    "pool": _IS_THE_POOL,
    "release": "a connection goes back when its block ends",
    "resize": "write min_size and max_size in the file",
    "test_connection": _CONNECTS,
    "wait": _CONNECTS,
}
#: What the connection of a block had in pgmonkey 4.0, where it was the handle.
_OF_A_BORROWED_ONE: Final[Mapping[str, str]] = {
    "config": _IN_THE_FILE,
    "connection_type": "the handle has it: handle.connection_type",
    "disconnect": "the end of its block gives it back, and handle.close() closes all",
    "pool": "the handle is the pool: `with handle as conn:` borrows from it",
    "test_connection": "a block begins with a connection that works, or raises why there is none",
}


class _Hint:
    """Raise AttributeError with a hint when the attribute is read.

    A descriptor and no `__getattr__`, which would make each attribute of the object slower to find.
    """

    __slots__ = ("_advice", "_name", "_noun")

    def __init__(self, name: str, noun: str, advice: str) -> None:
        self._name = name
        self._noun = noun
        self._advice = advice

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        if instance is None:
            raise AttributeError(f"{owner.__name__} has no {self._name}")
        raise AttributeError(self._message(instance))

    def _message(self, instance: Any) -> str:
        handle = getattr(instance, "handle", instance)
        is_sync = handle.connection_type in ("normal", "pool")
        block = getattr(instance, "block", "")
        words = {
            "with": "with" if is_sync else "async with",
            "await": "" if is_sync else "await ",
            "block": block,
            "borrowed": block.rpartition(" ")[2],
            "name": self._name,
        }
        advice = self._advice.format(**words)
        return f"{handle.name}: {self._noun} has no {self._name}; {advice}"


class _HintOfConnection(_Hint):
    """The same for a connection, which does not know its handle."""

    __slots__ = ()

    def _message(self, instance: Any) -> str:
        del instance
        return f"{self._noun} has no {self._name}; {self._advice}"


def _hinted(noun: str, advice: Mapping[str, str], kind: type[_Hint] = _Hint) -> Callable[[C], C]:
    def add(cls: C) -> C:
        for name, text in advice.items():
            setattr(cls, name, kind(name, noun, text))
        return cls

    return add


#: Decorates the class of handles.
hinted_handle: Final = _hinted("a handle", _OF_A_HANDLE)
#: Decorates the classes of what `connection()`, `transaction()` and `cursor()` return.
hinted_block: Final = _hinted(
    "a block that is not entered",
    dict.fromkeys(
        (*_OF_A_CONNECTION, *_OF_A_CURSOR, "commit", "cursor", "rollback"),
        "write `{with} handle.{block}:`, and use {borrowed}.{name}",
    ),
)
#: Decorates the classes of what a block borrows.
hinted_connection: Final = _hinted("a connection", _OF_A_BORROWED_ONE, _HintOfConnection)
