"""A psycopg connection that notes what a block changes of it, and takes that back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from inspect import getattr_static
from typing import Any, Final, Self

from psycopg import (
    AsyncClientCursor,
    AsyncCursor,
    AsyncRawCursor,
    AsyncServerCursor,
    IsolationLevel,
    Notify,
)
from psycopg.adapt import AdaptersMap
from psycopg.errors import FeatureNotSupported, InvalidSqlStatementName
from psycopg.rows import AsyncRowFactory, Row, TupleRow

from pgmonkey.pool._async.waiting import AsyncDriverConnection, acquire
from pgmonkey.pool.changes import (
    ROW_FACTORIES,
    Adapters,
    Session,
    Settings,
    is_open,
    makes_stale,
    may_listen,
)
from pgmonkey.pool.failures import chain

#: Seconds to wait for what a block has dropped without ending it: an event loop ends dropped
#: generators a moment later. psycopg gives a cancelled query as long.
_LONGEST_END: Final = 5.0
# psycopg's own, for use where nothing is to be noted.
_THRESHOLD: Final = getattr_static(AsyncDriverConnection, "prepare_threshold")
_PREPARED_MAX: Final = getattr_static(AsyncDriverConnection, "prepared_max")


class AsyncWatchedConnection(AsyncDriverConnection[TupleRow]):
    """A `psycopg.AsyncConnection` whose settings can be taken back.

    Each method that changes something notes that at once, so that the return of a connection of
    which nothing was changed costs nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.session = Session()
        super().__init__(*args, **kwargs)
        self.cursor_factory = AsyncWatchedCursor

    @abstractmethod
    def note_change(self) -> None:
        """Note that something was changed that the next block must not get."""

    def keep_settings(self) -> None:
        """Take what the connection is set to now for what each block gets.

        For who makes it, and for who sets up the connections of a pool of its own: see
        `Database.with_own_pool`.
        """
        session = self.session
        before, now = session.made_with, self._settings()
        if now.adapters is None and before is not None:  # no one has looked at them since
            now = now._replace(adapters=before.adapters)
        session.made_with = now
        session.adapters = None

    def _settings(self) -> Settings:
        session = self.session
        return Settings(
            self.autocommit,
            self.isolation_level,
            self.read_only,
            self.deferrable,
            self.prepare_threshold,
            self.prepared_max,
            session.row_factory,
            session.cursor_factory,
            session.server_cursor_factory,
            session.adapters,
            tuple(session.notice_handlers),
            tuple(session.notify_handlers),
        )

    async def restore(self) -> None:
        """Take back what was changed. Needs an idle connection; asks the server nothing.

        Raises:
            psycopg.Error: it is not idle.
        """
        session, now = self.session, self._settings()
        made_with = session.made_with or now
        if now.autocommit != made_with.autocommit:
            await super().set_autocommit(made_with.autocommit)
        if now.isolation_level != made_with.isolation_level:
            await super().set_isolation_level(made_with.isolation_level)
        if now.read_only != made_with.read_only:
            await super().set_read_only(made_with.read_only)
        if now.deferrable != made_with.deferrable:
            await super().set_deferrable(made_with.deferrable)
        _THRESHOLD.__set__(self, made_with.prepare_threshold)
        _PREPARED_MAX.__set__(self, made_with.prepared_max)
        session.row_factory = made_with.row_factory
        session.cursor_factory = made_with.cursor_factory
        session.server_cursor_factory = made_with.server_cursor_factory
        session.adapters = None
        for handler in now.notice_handlers:
            super().remove_notice_handler(handler)
        for handler in made_with.notice_handlers:
            super().add_notice_handler(handler)
        for handler in now.notify_handlers:
            super().remove_notify_handler(handler)
        for handler in made_with.notify_handlers:
            super().add_notify_handler(handler)
        session.notice_handlers = list(made_with.notice_handlers)
        session.notify_handlers = list(made_with.notify_handlers)
        session.may_listen = False

    async def left_open(self) -> str | None:
        """Return what a block has left open on the connection, if it did.

        Waits for what will end by itself: a generator that was dropped, whose event loop ends it.
        """
        session = self.session
        if self.closed and not self.broken:  # by the block itself
            return None
        if self.pgconn.pipeline_status:
            return "pipeline()"
        if self.lock.locked():
            for one, name in session.opened.items():
                if is_open(one):
                    return name
            if not await acquire(self.lock, _LONGEST_END):
                return "a statement"
            self.lock.release()
        if session.in_two_phase and self.pgconn.transaction_status:
            return "tpc_begin()"
        return None

    # What is noted: settings

    async def set_autocommit(self, value: bool) -> None:
        """Set it for this block."""
        self.note_change()
        await super().set_autocommit(value)

    async def set_isolation_level(self, value: IsolationLevel | None) -> None:
        """Set it for this block."""
        self.note_change()
        await super().set_isolation_level(value)

    async def set_read_only(self, value: bool | None) -> None:
        """Set it for this block."""
        self.note_change()
        await super().set_read_only(value)

    async def set_deferrable(self, value: bool | None) -> None:
        """Set it for this block."""
        self.note_change()
        await super().set_deferrable(value)

    @property
    def prepare_threshold(self) -> int | None:
        """How often a statement is executed before it is prepared."""
        return super().prepare_threshold

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self.note_change()
        _THRESHOLD.__set__(self, value)

    @property
    def prepared_max(self) -> int | None:
        """How many prepared statements there may be."""
        return super().prepared_max

    @prepared_max.setter
    def prepared_max(self, value: int | None) -> None:
        self.note_change()
        _PREPARED_MAX.__set__(self, value)

    @property
    def row_factory(self) -> AsyncRowFactory[TupleRow]:
        """What makes the rows of its cursors."""
        factory: AsyncRowFactory[TupleRow] = self.session.row_factory
        return factory

    @row_factory.setter
    def row_factory(self, value: AsyncRowFactory[TupleRow]) -> None:
        self.note_change()
        self.session.row_factory = value

    @property
    def cursor_factory(self) -> type[AsyncCursor[TupleRow]]:
        """What makes its cursors."""
        factory: type[AsyncCursor[TupleRow]] = self.session.cursor_factory
        return factory

    @cursor_factory.setter
    def cursor_factory(self, value: type[AsyncCursor[TupleRow]]) -> None:
        self.note_change()
        self.session.cursor_factory = value

    @property
    def server_cursor_factory(self) -> type[AsyncServerCursor[TupleRow]]:
        """What makes its cursors that have a name."""
        factory: type[AsyncServerCursor[TupleRow]] = self.session.server_cursor_factory
        return factory

    @server_cursor_factory.setter
    def server_cursor_factory(self, value: type[AsyncServerCursor[TupleRow]]) -> None:
        self.note_change()
        self.session.server_cursor_factory = value

    @property
    def adapters(self) -> AdaptersMap:
        """How values are converted. What a block registers here is noted."""
        session = self.session
        if session.adapters is None:
            made_with = session.made_with
            template = made_with.adapters if made_with is not None else None
            session.adapters = Adapters(template or super().adapters, self.note_change)
        return session.adapters

    def add_notice_handler(self, callback: Any) -> None:
        """Call it for each notice, until the connection is given back."""
        self.note_change()
        super().add_notice_handler(callback)
        self.session.notice_handlers.append(callback)

    def remove_notice_handler(self, callback: Any) -> None:
        """Call it no more."""
        self.note_change()
        super().remove_notice_handler(callback)
        self.session.notice_handlers.remove(callback)

    def add_notify_handler(self, callback: Any) -> None:
        """Call it for each notification, until the connection is given back."""
        self.note_listen()
        super().add_notify_handler(callback)
        self.session.notify_handlers.append(callback)

    def remove_notify_handler(self, callback: Any) -> None:
        """Call it no more."""
        self.note_change()
        super().remove_notify_handler(callback)
        self.session.notify_handlers.remove(callback)

    # What is noted: what may be left open

    def pipeline(self) -> Any:
        """Begin a pipeline, which must end before the block."""
        self.note_change()
        return super().pipeline()

    def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> AsyncGenerator[Notify, None]:
        """Yield notifications. Their generator must end before the block, or be dropped."""
        self.note_listen()
        notifications = super().notifies(timeout=timeout, stop_after=stop_after)
        self.session.opened[notifications] = "notifies()"
        return notifications

    async def tpc_begin(self, xid: Any) -> None:
        """Begin a two-phase transaction; one that is not finished closes the connection."""
        self.note_change()
        await super().tpc_begin(xid)
        self.session.in_two_phase = True

    async def tpc_commit(self, xid: Any = None) -> None:
        """Commit a two-phase transaction."""
        await super().tpc_commit(xid)
        self.session.in_two_phase = False

    async def tpc_rollback(self, xid: Any = None) -> None:
        """Roll a two-phase transaction back."""
        await super().tpc_rollback(xid)
        self.session.in_two_phase = False

    def note_listen(self) -> None:
        """Note that the session may have been told to LISTEN."""
        self.session.may_listen = True
        self.note_change()

    def note_errors(self, error: BaseException) -> None:
        """Note an error, and all that it comes from: they may say that the session is stale."""
        if any(map(makes_stale, chain(error))):
            self.session.stale = True
            self.note_change()


class AsyncWatchedCursor(AsyncCursor[Row]):
    """A `psycopg.AsyncCursor` that tells its connection of what cannot be seen afterwards."""

    __slots__ = ()

    async def execute(  # psycopg's own arguments pass through
        self,
        query: Any,
        params: Any = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        """Execute a statement."""
        if may_listen(query) and isinstance(self.connection, AsyncWatchedConnection):
            self.connection.note_listen()
        try:
            return await super().execute(query, params, prepare=prepare, binary=binary)
        except (FeatureNotSupported, InvalidSqlStatementName) as error:
            self._note_error(error)
            raise

    async def executemany(
        self, query: Any, params_seq: Iterable[Any], *, returning: bool = False
    ) -> None:
        """Execute a statement with each of the parameters."""
        try:
            await super().executemany(query, params_seq, returning=returning)
        except (FeatureNotSupported, InvalidSqlStatementName) as error:
            self._note_error(error)
            raise

    def stream(
        self, query: Any, params: Any = None, *, binary: bool | None = None, size: int = 1
    ) -> AsyncIterator[Row]:
        """Yield rows as they come. Their generator must end before the block, or be dropped."""
        rows = super().stream(query, params, binary=binary, size=size)
        self._note_opened(rows, "stream()")
        return rows

    def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> Any:
        """Begin a COPY, which must end before the block."""
        copying = super().copy(statement, params, writer=writer)
        self._note_opened(copying, "copy()")
        return copying

    def _note_error(self, error: BaseException) -> None:
        if isinstance(self.connection, AsyncWatchedConnection):
            self.connection.note_errors(error)

    def _note_opened(self, opened: object, name: str) -> None:
        if isinstance(self.connection, AsyncWatchedConnection):
            self.connection.session.opened[opened] = name


class AsyncWatchedClientCursor(AsyncClientCursor[Row], AsyncWatchedCursor[Row]):
    """A `psycopg.AsyncClientCursor` that does the same."""

    __slots__ = ()


class AsyncWatchedRawCursor(AsyncRawCursor[Row], AsyncWatchedCursor[Row]):
    """A `psycopg.AsyncRawCursor` that does the same."""

    __slots__ = ()


#: The classes of cursors, by their names in a file.
PLAIN_CURSORS: Final[Mapping[str, type[AsyncCursor[Any]]]] = {
    "Cursor": AsyncCursor,
    "ClientCursor": AsyncClientCursor,
    "RawCursor": AsyncRawCursor,
}
#: Those of pooled connections.
WATCHED_CURSORS: Final[Mapping[str, type[AsyncCursor[Any]]]] = {
    "Cursor": AsyncWatchedCursor,
    "ClientCursor": AsyncWatchedClientCursor,
    "RawCursor": AsyncWatchedRawCursor,
}


async def set_up(connection: AsyncDriverConnection[Any], settings: Mapping[str, Any]) -> None:
    """Set what the file of a database says of psycopg; asks the server nothing.

    Args:
        connection: A new one, connected with its class of cursors.
        settings: By their keys in the file.
    """
    for key, value in settings.items():
        match key:
            case "isolation_level":
                level = IsolationLevel[value.upper().replace(" ", "_")]
                await connection.set_isolation_level(level)
            case "read_only":
                await connection.set_read_only(value)
            case "deferrable":
                await connection.set_deferrable(value)
            case "prepared_max":
                connection.prepared_max = value
            case "row_factory":
                connection.row_factory = ROW_FACTORIES[value]
