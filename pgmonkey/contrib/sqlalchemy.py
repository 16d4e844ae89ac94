"""Engines of SQLAlchemy 2 on databases of a registry, sync and async.

    from pgmonkey.contrib.sqlalchemy import create_engine

    engine = create_engine(registry["orders"])

An engine has a pool of its own (see `Database.with_own_pool`), whose connections SQLAlchemy sets up
once each. What borrows them is `HandlePool`, in the place of SQLAlchemy's
`QueuePool`. docs/recipes/sqlalchemy.md has the rest.
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

#: Under which an entry of a pool keeps the connection that it stands for.
_BORROWED: Final = "pgmonkey.borrowed"
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
    work, so `pool_pre_ping` is not needed. A borrow costs 5 microseconds more than from a `QueuePool`.

    Args:
        database: A handle of type `pool` or `normal`.
        options: As `sqlalchemy.create_engine` takes them: `echo`, `isolation_level`,
            `json_serializer`, `execution_options`, ... Those of its pool and its connections are in
            the file.

    Raises:
        TypeError: the handle is async, or an option belongs into the file.

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
        TypeError: the handle is a sync one, or an option belongs into the file.

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
    open there. SQLAlchemy's entry for a connection is kept with it, so that `connect` events, and
    what they do, come once for each server connection. Use it through `create_engine`.

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
        self._engine_dialect = dialect
        if own is None:
            # What JSON, hstore and addresses become: SQLAlchemy's dialect passes it to psycopg.
            _, arguments = dialect.create_connect_args(URL.create("postgresql+psycopg"))
            own = handle.with_own_pool(arguments.get("context"))
        self._handle = own
        # By the connection that they stand for: what was set up, and is handed out again.
        self._entries: dict[Any, _ConnectionRecord] = {}

    def recreate(self) -> HandlePool:
        """Return a pool in the place of this one, for `dispose`.

        On the same copy of the handle, so a test whose application disposes of its engine still sees
        what was done before: see `Registry.override`.
        """
        self.logger.info("Pool recreating")
        return type(self)(
            None,
            handle=self._handle,
            own=self._handle,
            dialect=self._engine_dialect,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
        )

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
        connection = self._borrow()
        entry = self._entries.get(connection)
        if entry is not None:
            return entry
        entry = _ConnectionRecord(self, connect=False)
        _note(entry)[_BORROWED] = connection
        try:
            entry.get_connection()  # calls `_connect`, and the listeners of `connect`
        except BaseException:
            connection = _note(entry)[_BORROWED]
            if not _is_shared(connection):
                self._wait(connection.close())
            self._wait(self._handle.putconn(connection))
            raise
        connection = _note(entry)[_BORROWED]
        if _is_shared(connection):
            return entry
        connection.keep_settings()
        for closed in [one for one in list(self._entries) if one.closed]:
            self._entries.pop(closed, None)
        self._entries[connection] = entry
        return entry

    def _connect(self, rec: Any) -> Any:
        """Return a connection as SQLAlchemy wants it, that no listener of `connect` has seen yet.

        Args:
            rec: An entry: a new one with its connection, or one whose connection was refused by a
                listener of `checkout`.
        """
        note = _note(rec)
        connection = note[_BORROWED]
        while connection.closed or connection in self._entries:
            self._wait(connection.close())
            self._wait(self._handle.putconn(connection))
            self._entries.pop(connection, None)
            connection = note[_BORROWED] = self._borrow()
        connection.row_factory = tuple_row
        if issubclass(
            connection.cursor_factory, (RawCursor, AsyncRawCursor)
        ):  # `$1` is not its style
            connection.cursor_factory = _CURSORS[self._engine_dialect.is_async]
        if connection.autocommit:
            self._wait(connection.set_autocommit(False))
        if not self._engine_dialect.is_async:
            return connection
        return self._engine_dialect.loaded_dbapi.connect(async_creator_fn=_Given(connection))

    def _borrow(self) -> Any:
        checkout = self._handle.checkout_class.bound(self._handle, None, _borrower())
        try:
            return self._wait(checkout.enter_by_hand())
        except CheckoutTimeout as error:
            if error.reason is not None:
                raise  # SQLAlchemy makes an OperationalError of it, as of a failed connect
            raise exc.TimeoutError(str(error)) from error

    # Giving back

    def _do_return_conn(self, record: Any) -> None:
        """Give a connection back, open or closed."""
        connection = _note(record)[_BORROWED]
        if _collecting == get_ident():
            # A client has dropped it. This thread may hold any lock at this moment, so it is dropped
            # here, too: see Database.getconn.
            self._entries.pop(connection, None)
            return
        if record.dbapi_connection is None:
            self._entries.pop(connection, None)
            if not connection.closed:
                return  # it was detached: its client closes it, and gives it back with that
        elif record._is_hard_or_soft_invalidated() or not (
            self._entries.get(connection) is record or _is_shared(connection)
        ):
            self._entries.pop(connection, None)
            record.close()
        self._wait(self._handle.putconn(connection))
        if connection.closed:  # it was of an older version
            self._entries.pop(connection, None)

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,
    ) -> None:
        """Close one connection that was found dead. Which others are dead, too, pgmonkey finds out."""
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)


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


def _note(entry: ConnectionPoolEntry) -> dict[Any, Any]:
    """Return the dictionary of an entry, which stays with it when its connection changes."""
    note = entry.record_info
    assert note is not None
    return note


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
