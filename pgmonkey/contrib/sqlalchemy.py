"""Engines of SQLAlchemy 2 on databases of a registry, sync and async.

    from pgmonkey.contrib.sqlalchemy import create_engine

    engine = create_engine(registry["orders"])

An engine has a pool of its own (see `Database.with_own_pool`), whose connections SQLAlchemy sets up
once each. What borrows them is `HandlePool`, in the place of SQLAlchemy's `QueuePool`.
docs/recipes/sqlalchemy.md has the rest.

SQLAlchemy documents no way to write a pool, and those that it documents do not do: a `NullPool` with
a `creator` calls the listeners of `connect` at each checkout, and a `QueuePool` keeps what it has
borrowed. So `HandlePool` overrides three methods that SQLAlchemy's own pools override, and `_Entry`
is a `_ConnectionRecord`. They are the same in SQLAlchemy 2.0.40 to 2.1.9, and a test says if one is
missing in a later version.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Mapping
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from psycopg import AsyncRawCursor, RawCursor
from psycopg.rows import tuple_row
from sqlalchemy import exc
from sqlalchemy.engine import URL
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import await_only

from pgmonkey.errors import CheckoutTimeout
from pgmonkey.pool._async.changes import WATCHED_CURSORS as ASYNC_CURSORS
from pgmonkey.pool._sync.changes import WATCHED_CURSORS as SYNC_CURSORS
from pgmonkey.pool.handle import Database

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["HandlePool", "create_async_engine", "create_engine"]

#: What SQLAlchemy takes for its own pools and connections, and where it belongs.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "pool_size": "pool_settings: {max_size: ...} in the file of the database",
    "max_overflow": "pool_settings: {max_size: ...} in the file of the database",
    "pool_timeout": "pool_settings: {timeout: ...} in the file of the database",
    "pool_recycle": "pool_settings: {max_lifetime: ...} in the file of the database",
    "pool_use_lifo": "nothing: a pool of pgmonkey hands out the connection that came back last",
    "connect_args": "connection_settings in the file of the database",
    "client_encoding": "connection_settings: {client_encoding: ...} in the file of the database",
    "creator": "registry.configure(name, function), which is called with each new connection",
    "async_creator": "registry.configure(name, function), which is called with each new connection",
    "pool": "nothing: the connections come from the handle",
    "poolclass": "nothing: the connections come from the handle",
}
#: What makes cursors for placeholders in SQLAlchemy's style, by whether the dialect is async.
_CURSORS: Final = {False: SYNC_CURSORS["Cursor"], True: ASYNC_CURSORS["Cursor"]}
#: Whose frames are not the application's, by what their file names begin with.
_LIBRARIES: Final = (
    os.path.join(os.path.dirname(sqlalchemy.__file__), ""),  # noqa: PTH118, PTH120 - as frames have it
    __file__,
    contextlib.__file__,
)


def create_engine(database: Database, **options: Any) -> sqlalchemy.Engine:
    """Return an engine on a database of a registry, as `sqlalchemy.create_engine` does.

    It connects to nothing before its first use. Its connections are its own: up to `max_size` of the
    file, beside those of `with registry["orders"]`. Reloads, rotations and outages are pgmonkey's
    work, so `pool_pre_ping` is not needed. A borrow costs 3 microseconds more than from a `QueuePool`.

    Args:
        database: A handle of type `pool` or `normal`.
        options: As `sqlalchemy.create_engine` takes them: `echo`, `isolation_level`,
            `json_serializer`, `execution_options`, ... Those of its pool and its connections are in
            the file.

    Raises:
        TypeError: the handle is async, or an option belongs in the file.

    Example:
        >>> from sqlalchemy import text
        >>> engine = create_engine(registry["orders"])
        >>> with engine.connect() as conn:
        ...     conn.scalar(text("SELECT 1"))
        1
    """
    _check(database, options, ("normal", "pool"))
    return sqlalchemy.create_engine(
        _url(database), poolclass=HandlePool, handle=database, **options
    )


def create_async_engine(database: Database, **options: Any) -> sqlalchemy_asyncio.AsyncEngine:
    """Return an async engine on a database of a registry; see `create_engine`.

    It may be used in several event loops, one after the other or at once: each has connections of
    its own.

    Args:
        database: A handle of type `async_pool` or `async`.
        options: As `sqlalchemy.ext.asyncio.create_async_engine` takes them.

    Raises:
        TypeError: the handle is a sync one, or an option belongs in the file.

    Example:
        >>> import asyncio
        >>> from sqlalchemy import text
        >>> async def answer():
        ...     engine = create_async_engine(registry["events"])
        ...     async with engine.connect() as conn:
        ...         return await conn.scalar(text("SELECT 1"))
        >>> asyncio.run(answer())
        1
    """
    _check(database, options, ("async", "async_pool"))
    return sqlalchemy_asyncio.create_async_engine(
        _url(database), poolclass=HandlePool, handle=database, **options
    )


def _check(database: Database, options: Mapping[str, Any], types: tuple[str, str]) -> None:
    """Refuse what cannot work, with what does.

    Raises:
        TypeError: the handle is none, or of the other side; or an option belongs somewhere else.
    """
    if not isinstance(database, Database):
        raise TypeError(
            f'expected a handle, such as registry["orders"], not {type(database).__name__}'
        )
    name, connection_type = database.name, database.connection_type
    if connection_type not in types:
        function = "create_engine" if types[0] == "async" else "create_async_engine"
        raise TypeError(
            f"{name} is a {connection_type} database: use {function}(), or"
            f' registry.get("{name}", "{types[1]}") for a handle of another type'
        )
    for option in options:
        if option in _ELSEWHERE:
            raise TypeError(f"{name}: in the place of {option}, use {_ELSEWHERE[option]}")


def _url(database: Database) -> URL:
    """Return what tools and logs show of an engine: where it led when it was made.

    No one connects with it: it has no user and no password.
    """
    settings = database.version.config.connection_settings
    host, port, dbname = (settings.get(key) for key in ("host", "port", "dbname"))
    single = isinstance(host, str) and "," not in host
    return URL.create(
        "postgresql+psycopg",
        host=host if single else None,
        port=int(port or 5432) if single and str(port or 5432).isdigit() else None,
        database=dbname,
    )


class HandlePool(Pool):
    """Borrow the connections of an engine from a handle, one for each checkout.

    It keeps no connection itself: each goes back to pgmonkey when SQLAlchemy returns it, and stays
    open there. It remembers SQLAlchemy's entry for each, so that `connect` events, and what they do,
    come once for each server connection. Use it through `create_engine`.

    Args:
        _creator: SQLAlchemy's own; not used.
        handle: What to borrow from. The engine gets a pool of its own.
        dialect: The dialect of the engine.
        pre_ping: Not used: a handle looks at its connections itself, and `check_on_checkout` in the file
            asks the server each time.
        own: The copy of the handle, if there is one.
        options: Passed to `sqlalchemy.pool.Pool`.
    """

    # Not by keyword only: SQLAlchemy looks at the names to find what is meant for the pool.
    def __init__(
        self,
        _creator: Any,
        handle: Database,
        dialect: Any,
        pre_ping: bool = False,  # noqa: ARG002 - many programs give it, and none should break for that
        own: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(self._connect, dialect=dialect, **options)
        self._options = options
        self._engine_dialect = dialect
        if own is None:
            # What JSON, hstore and addresses become: SQLAlchemy's dialect passes it to psycopg.
            _, arguments = dialect.create_connect_args(URL.create("postgresql+psycopg"))
            own = handle.with_own_pool(arguments.get("context"))
        self._handle = own
        # By the connection that they stand for: what was set up, and is handed out again.
        self._entries: dict[Any, _Entry] = {}

    def recreate(self) -> HandlePool:
        """Return a pool in the place of this one, for `dispose`.

        On the same copy of the handle, so a test whose application disposes of its engine still sees
        what was done before: see `Registry.override`.
        """
        self.logger.info("Pool recreating")
        options = self._options | {"events": None, "_dispatch": self.dispatch}
        return type(self)(None, self._handle, self._engine_dialect, own=self._handle, **options)

    def dispose(self) -> None:
        """Close the connections; those that are out are closed when they come back."""
        self._entries.clear()
        self._wait(self._handle.close())

    def status(self) -> str:
        """Describe the connections of this moment, in one line."""
        now = self._handle.status()
        return (
            f"{now.database}: {now.used + now.retired} in use, {now.idle} idle,"
            f" {now.waiting} waiting, max_size {now.max_size}"
        )

    def _wait(self, result: Any) -> Any:
        return await_only(result) if self._engine_dialect.is_async else result

    # Borrowing

    def _do_get(self) -> ConnectionPoolEntry:
        """Return the entry of a borrowed connection, which was set up before or is now.

        Raises:
            sqlalchemy.exc.TimeoutError: all connections are in use.
            ConnectError: the server refuses; SQLAlchemy makes an `OperationalError` of it.
        """
        checkout = self._borrow()
        entry = self._entries.get(checkout.connection)
        if entry is None:
            return self._set_up(checkout)
        entry.borrowed = checkout
        return entry

    def _borrow(self) -> Any:
        checkout = self._handle.checkout_class.bound(self._handle, None, _borrower())
        try:
            self._wait(checkout.enter())
        except CheckoutTimeout as error:
            if error.reason is not None:
                raise  # SQLAlchemy makes an OperationalError of it, as of a failed connect
            raise exc.TimeoutError(str(error)) from error
        return checkout

    def _set_up(self, checkout: Any) -> _Entry:
        """Return a new entry, after the listeners of `connect` have seen its connection."""
        entry = _Entry(self, checkout)
        try:
            entry.get_connection()  # calls `_connect`, and the listeners
        except BaseException:
            self._give_up(entry)
            raise
        connection = entry.borrowed.connection
        if not _is_shared(connection):
            connection.keep_settings()
            for closed in [one for one in list(self._entries) if one.closed]:
                self._entries.pop(closed, None)
            self._entries[connection] = entry
        return entry

    def _connect(self, rec: Any) -> Any:
        """Return a connection as SQLAlchemy wants it, that no listener of `connect` has seen yet.

        Args:
            rec: The entry: a new one with its checkout, or one whose connection was refused by a listener of
                `checkout`.
        """
        while rec.borrowed.connection.closed or rec.borrowed.connection in self._entries:
            self._give_up(rec)
            rec.borrowed = self._borrow()
        connection = rec.borrowed.connection
        connection.row_factory = tuple_row
        if issubclass(connection.cursor_factory, (RawCursor, AsyncRawCursor)):
            # Its placeholders are `$1`, which is not SQLAlchemy's style.
            connection.cursor_factory = _CURSORS[self._engine_dialect.is_async]
        if connection.autocommit:
            self._wait(connection.set_autocommit(False))
        if not self._engine_dialect.is_async:
            return connection
        return self._engine_dialect.loaded_dbapi.connect(async_creator_fn=_Given(connection))

    # Giving back

    def _do_return_conn(self, entry: Any) -> None:
        """Give a connection back, open or closed."""
        checkout, entry.borrowed = entry.borrowed, None
        if checkout is None:
            return  # a listener of `checkout` refused it, and no other one could be borrowed
        connection = checkout.connection
        if _collecting == get_ident():
            # A client has dropped it. This thread may hold any lock at this moment, so it is dropped
            # here, too, and the pool finds out: see `Database.getconn`.
            self._entries.pop(connection, None)
            return
        if entry.dbapi_connection is None and not connection.closed:
            self._entries.pop(connection, None)
            checkout.hand_over()  # it was detached: its client closes it, and gives it back with that
            return
        if entry.outworn or not (self._entries.get(connection) is entry or _is_shared(connection)):
            entry.close()
        self._wait(checkout.put_back())
        if connection.closed:  # perhaps just now, because it is of an older version
            self._entries.pop(connection, None)

    def _give_up(self, entry: _Entry) -> None:
        """Close the connection of an entry, if it has one, and give it back."""
        checkout, entry.borrowed = entry.borrowed, None
        if checkout is None:
            return
        connection = checkout.connection
        if not _is_shared(connection):
            self._wait(connection.close())
        self._entries.pop(connection, None)
        self._wait(checkout.put_back())

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,
    ) -> None:
        """Close one connection that was found dead. Which others are dead, too, pgmonkey finds out."""
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)


class _Entry(_ConnectionRecord):
    """Stand for one server connection in SQLAlchemy's pool.

    Args:
        pool: The pool.
        checkout: What holds the connection that it is made for.
    """

    def __init__(self, pool: HandlePool, checkout: Any) -> None:
        #: What holds its connection, while that is out.
        self.borrowed = checkout
        #: Whether its connection is to be closed when it comes back.
        self.outworn = False
        super().__init__(pool, connect=False)

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Close the connection: now, or when it comes back."""
        self.outworn = soft
        super().invalidate(e, soft)


class _Given:
    """Give SQLAlchemy's async dialect a connection that there is."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def __call__(self) -> Any:
        return self.connection


#: The thread that collects garbage now; 0: none does.
_collecting = 0


def _note_collection(phase: str, _info: dict[str, int]) -> None:
    global _collecting
    _collecting = get_ident() if phase == "start" else 0


gc.callbacks.append(_note_collection)


def _is_shared(connection: Any) -> bool:
    """Tell whether all checkouts of a test have this connection: `override(rollback=True)`.

    It is set up for each of them, because they may be nested, and an entry is for one.
    """
    return getattr(connection, "shared", None) is not None


def _borrower() -> FrameType:
    """Return the frame of the application that a connection is borrowed for."""
    nearest = sys._getframe(2)
    frame = _outside(nearest)
    if frame is None and (greenlet := sys.modules.get("greenlet")) is not None:
        # SQLAlchemy runs its code in a greenlet of its own, which the event loop's has called.
        parent = greenlet.getcurrent().parent
        frame = _outside(parent.gr_frame) if parent is not None else None
    return frame or nearest


def _outside(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return frame
