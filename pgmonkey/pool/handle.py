"""The public class of a handle: one database, for the life of the registry."""

from __future__ import annotations

import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    NamedTuple,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    overload,
)

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.abc import AdaptContext
from psycopg.rows import AsyncRowFactory, Row, RowFactory, TupleRow

from pgmonkey.pool.checkout import REPORTED, Checkout, wrong_side
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.hints import hinted_handle
from pgmonkey.pool.messages import describe, holder_name, not_by_hand
from pgmonkey.pool.stats import Stats
from pgmonkey.telemetry import events
from pgmonkey.telemetry.status import CheckoutStatus, PoolStatus

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.errors import PgmonkeyError
    from pgmonkey.pool.connecting import Outage
    from pgmonkey.pool.failures import Configure
    from pgmonkey.pool.limits import ConnectionLimits
    from pgmonkey.pool.listening import Listener
    from pgmonkey.pool.messages import Numbers
    from pgmonkey.pool.version import Version


Sync_co = TypeVar("Sync_co", covariant=True)
Async_co = TypeVar("Async_co", covariant=True)


class Block(Protocol[Sync_co, Async_co]):
    """Context manager of `connection()`, `transaction()` and `cursor()`: `with` or `async with`."""

    def __enter__(self) -> Sync_co: ...
    def __exit__(self, kind: object, error: object, trace: object, /) -> bool | None: ...
    async def __aenter__(self) -> Async_co: ...
    async def __aexit__(self, kind: object, error: object, trace: object, /) -> bool | None: ...


#: What `connection()` and `transaction()` return: a block that yields a connection.
Borrowed: TypeAlias = Block[Connection[TupleRow], AsyncConnection[TupleRow]]
#: What `cursor()` returns: a block that yields a cursor on a borrowed connection.
BorrowedCursor: TypeAlias = Block[Cursor[Any], AsyncCursor[Any]]

if TYPE_CHECKING:

    class BorrowedByHand(Connection[TupleRow]):
        """What `getconn()` returns: a connection, or what gives one when it is awaited."""

        def __await__(self) -> Generator[Any, None, AsyncConnection[TupleRow]]: ...


class Hooks(NamedTuple):
    """What a handle calls in its registry or manager.

    Args:
        on_open: The first connection of a process or loop is about to be made.
        on_refused: The server refused a login: read the files again. It blocks, and tells
            whether another version is in force now.
        force_reload: Replace the connections; the next `await` of an async handle calls it.
        rejected: Return the first problem of the files of the database, for errors; empty if what
            they say is in force.
        configure: Return what the application wants to be called with each new connection.
        copy: Call `Database.make_copy` while no other version is put in force.
    """

    on_open: Callable[[], object]
    on_refused: Callable[[], object]
    force_reload: Callable[[], object]
    rejected: Callable[[], str]
    configure: Callable[[], Iterable[Configure]]
    copy: Callable[[Any, AdaptContext | None], Any]


class Sharing(NamedTuple):
    """Say how all blocks share one transaction, which is rolled back in the end.

    Args:
        rollbacks: The overrides that roll back, outermost first.
        places: The overrides that lead to another place: each place has its own transaction.
    """

    rollbacks: tuple[object, ...]
    places: tuple[object, ...]


class Closing(NamedTuple):
    """Say what closes the connections of one event loop; `loop` is `None` for threads.

    Args:
        loop: Where to run it.
        thread: The number of the thread that the loop belongs to.
        run: What to call, and to await in a loop.
        open_blocks: Where blocks were begun that lose their connection.
    """

    loop: Any
    thread: int
    run: Callable[[], Any]
    open_blocks: tuple[str, ...] = ()


class Connector(Protocol):
    """The part of a connector that `Database` reads, whichever side it is of."""

    rotating: tuple[float, int] | None
    outage: Outage

    def is_draining(self) -> bool:
        """Tell whether a connection of an older version is left, here or at the server."""


class Listening(Protocol):
    """The part of a group of listeners that `Database` reads, whichever side it is of."""

    @property
    def connector(self) -> Connector:
        """What makes their connections."""

    def listeners(self) -> list[Any]:
        """Return those that are entered."""


class Pool(Protocol):
    """The part of a pool that `Database` reads, whichever side it is of."""

    target: Version
    lingers: bool

    @property
    def connector(self) -> Connector:
        """What makes its connections."""

    @property
    def opened(self) -> bool:
        """Whether it has connected at least once, and is not closed."""

    def numbers(self) -> Numbers:
        """Count the connections of this moment."""


#: What `dir()` shows of a handle, besides the names of Python itself.
_PUBLIC: Final = (
    "close",
    "connection",
    "connection_type",
    "cursor",
    "getconn",
    "is_retired",
    "listen",
    "name",
    "open",
    "putconn",
    "status",
    "transaction",
    "with_own_pool",
)


@hinted_handle
class Database(ABC):
    """Borrow connections of one database; the object stays the same over every reload.

    `registry.get(name)` returns it at once; the first checkout connects. Use a handle of type
    `normal` or `pool` with `with`, one of type `async` or `async_pool` with `async with`. Each
    block is a checkout of its own, in any number of threads or tasks, also nested. It yields
    psycopg's own connection: committed when the block succeeds, rolled back when it raises.

    Attributes:
        name: The name of the database.
        connection_type: `normal`, `pool`, `async` or `async_pool`.

    Example:
        >>> with registry.get("orders") as conn:
        ...     conn.execute("SELECT 1").fetchone()
        (1,)
    """

    name: str
    connection_type: ConnectionType
    #: The listeners of each event loop. Read without a lock.
    listening: dict[Any, Any]

    if TYPE_CHECKING:

        def __enter__(self) -> Connection[TupleRow]: ...
        def __exit__(self, kind: object, error: object, trace: object, /) -> bool | None: ...
        async def __aenter__(self) -> AsyncConnection[TupleRow]: ...
        async def __aexit__(self, kind: object, error: object, trace: object, /) -> bool | None: ...

    def __init__(
        self,
        version: Version,
        connection_type: ConnectionType,
        limits: ConnectionLimits,
        hooks: Hooks,
        original: Database | None = None,
        context: AdaptContext | None = None,
    ) -> None:
        self.name = version.config.name
        self.connection_type = connection_type
        self.limits = limits
        self.hooks = hooks
        #: What is in force.
        self.version = version
        #: How all blocks share one transaction; `None`: they do not.
        self.sharing: Sharing | None = None
        #: Why it may not be used any more.
        self.gone: PgmonkeyError | None = None if original is None else original.gone
        #: Whether a checkout keeps the stack of its borrower.
        self.keeps_stacks = version.config.leak_stack
        #: Checkouts entered by calling `__enter__` by hand, which have no `__exit__` yet.
        self.loose: list[Checkout] = []
        # Guards `gone`, the pools, and who gives a connection back by hand. Reentrant, because a
        # signal handler may close the registry. Never held while waiting.
        self._lock = threading.RLock()
        self._force_due = False
        #: What the adapters of its connections begin with; default: psycopg's.
        self.context = context
        # The handle that this one is a copy of, and counts for; `None`: it is none.
        self._original = original
        # Its copies, which may be dropped by now. Replaced as a whole, so it is read without a lock.
        self._copies: tuple[weakref.ref[Database], ...] = ()
        self.stats = self._new_stats()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.connection_type}>"

    def __dir__(self) -> list[str]:
        python = (name for name in super().__dir__() if name.startswith("__"))
        return [*python, *_PUBLIC]

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self!r} cannot be pickled: its connections belong to this process; "
            "make the registry in the other process and ask it for the name"
        )

    if not TYPE_CHECKING:

        def __enter__(self) -> Any:
            raise wrong_side(self.name, self.connection_type)

        def __exit__(self, *exc_info: object) -> Any:
            raise wrong_side(self.name, self.connection_type)

        def __aenter__(self) -> Any:
            raise wrong_side(self.name, self.connection_type)

        def __aexit__(self, *exc_info: object) -> Any:
            raise wrong_side(self.name, self.connection_type)

    def __await__(self) -> Generator[Any, None, Database]:
        if self.connection_type in ("normal", "pool"):
            raise wrong_side(self.name, self.connection_type)
        return self.open().__await__()

    # Borrowing

    @abstractmethod
    def connection(self, timeout: float | None = None) -> Borrowed:
        """Borrow a connection, with your own timeout.

        Args:
            timeout: Seconds to wait for the connection; default: the configured `timeout`.

        Raises:
            CheckoutTimeout: no connection within the timeout.
            ConnectError: the server refuses, for a reason that waiting does not change.

        Example:
            >>> with registry.get("orders").connection(timeout=2) as conn:
            ...     conn.execute("SELECT 1").fetchone()
            (1,)
        """

    @abstractmethod
    def transaction(
        self, timeout: float | None = None, *, force_rollback: bool = False
    ) -> Borrowed:
        """Borrow a connection with a transaction open on it.

        The same as a checkout with `conn.transaction()` inside. Use it when `autocommit` is on,
        or to send BEGIN at once.

        Args:
            timeout: Seconds to wait for the connection; default: the configured `timeout`.
            force_rollback: Roll back at the end, even on success.

        Example:
            >>> with registry.get("orders").transaction(force_rollback=True) as conn:
            ...     conn.execute("SELECT 1").fetchone()
            (1,)
        """

    @overload
    def cursor(
        self,
        timeout: float | None = None,
        *,
        row_factory: RowFactory[Row] | AsyncRowFactory[Row],
        **options: Any,
    ) -> Block[Cursor[Row], AsyncCursor[Row]]: ...

    @overload
    def cursor(
        self, timeout: float | None = None, *, row_factory: None = None, **options: Any
    ) -> BorrowedCursor: ...

    @abstractmethod
    def cursor(self, timeout: float | None = None, **options: Any) -> BorrowedCursor:
        """Borrow a connection for the life of one cursor.

        Args:
            timeout: Seconds to wait for the connection; default: the configured `timeout`.
            options: Passed to psycopg's `Connection.cursor`; a type checker takes the type of the
                rows from `row_factory`.

        Example:
            >>> from psycopg.rows import dict_row
            >>> with registry.get("orders").cursor(row_factory=dict_row) as cursor:
            ...     cursor.execute("SELECT 1 AS answer").fetchone()
            {'answer': 1}
        """

    @abstractmethod
    def getconn(self, timeout: float | None = None) -> BorrowedByHand:
        """Borrow a connection until `putconn`; `await` it on an async handle.

        For code that cannot be a `with` block: a fixture, a library that takes psycopg_pool's
        methods, a client that holds a connection for long. Call `commit()` before you give it back.
        Status, errors and `leak_detection` name it like every checkout. If the program drops it
        without `putconn`, it is closed, and the event `checkout.abandoned` names the function that
        borrowed it. Its `close()` gives it back, too; a new connection takes its place, which costs a
        connect.

        Args:
            timeout: Seconds to wait for the connection; default: the configured `timeout`.

        Raises:
            CheckoutTimeout, ConnectError: as a checkout does.

        Example:
            >>> conn = registry.get("orders").getconn(timeout=2)
            >>> conn.execute("SELECT 1").fetchone()
            (1,)
            >>> registry.get("orders").putconn(conn)
        """

    @abstractmethod
    def putconn(self, connection: Connection[Any] | AsyncConnection[Any]) -> Awaitable[None]:
        """Give back a connection of `getconn`; `await` it on an async handle.

        What was not committed is rolled back. A broken or closed connection is replaced, and changed
        settings are set back, as after a block. In a forked child process it does nothing.

        Args:
            connection: The connection. Do not use it afterwards: another client may have it.

        Raises:
            ValueError: it was not borrowed with `getconn` of this handle, or was given back before.
            RuntimeError: it belongs to another event loop, which runs.

        Example:
            >>> handle = registry.get("orders")
            >>> conn = handle.getconn()
            >>> try:
            ...     _ = conn.execute("SELECT 1")
            ...     conn.commit()
            ... finally:
            ...     handle.putconn(conn)
        """

    def is_retired(self, connection: Connection[Any] | AsyncConnection[Any]) -> bool:
        """Tell whether a borrowed connection is of an older version of the configuration.

        A client that holds a connection for long calls this now and then. If it is true, the client
        gives the connection back and borrows another one. It costs a microsecond, and no round trip.

        Args:
            connection: What `getconn` or a block of this handle has given.

        Raises:
            ValueError: it is not borrowed from this handle.

        Example:
            >>> with registry.get("orders") as conn:
            ...     registry.get("orders").is_retired(conn)
            False
        """
        checkout = self.held(connection)
        retired: bool = checkout.pool.inherited or connection.version < self.version.since  # type: ignore[union-attr]  # it is one of ours
        return retired

    def held(self, connection: Any) -> Checkout:
        """Return the checkout of this handle that holds a connection.

        Raises:
            ValueError: there is none.
        """
        holder = getattr(connection, "holder", None)
        checkout: Checkout | None = None if holder is None else holder()
        if checkout is None or checkout.handle is not self:
            raise not_by_hand(self, checkout)
        return checkout

    def with_own_pool(self, context: AdaptContext | None = None) -> Self:
        """Return a copy of this handle that has a pool of its own.

        Use it for a part of the application, or a library, that needs connections of its own, for
        example with other type adapters. Use the copy like this handle; no block of either gets a
        connection of the other. Its pool has up to `max_size` connections, beside those of this handle.
        The pool closes with this handle, with `close()` of the copy, and when nothing refers to the
        copy any more: make it once, and keep it. Reloads and overrides reach it, `max_connections`
        limits it, and the status of this handle and the metrics include it. The `status` of the copy
        has its own connections, with the counters of all.

        Args:
            context: The adapters that its connections begin with: a `psycopg.adapt.AdaptersMap`, or
                an object that has one, such as a connection; default: those of psycopg.

        Example:
            >>> from psycopg import adapters
            >>> from psycopg.adapt import AdaptersMap
            >>> from psycopg.types.numeric import FloatLoader
            >>> context = AdaptersMap(adapters)
            >>> context.register_loader("numeric", FloatLoader)
            >>> statistics = registry.get("orders").with_own_pool(context)
            >>> with statistics as conn:
            ...     conn.execute("SELECT 0.1").fetchone()
            (0.1,)
        """
        copy: Self = self.hooks.copy(self._original or self, context)
        return copy

    @abstractmethod
    def listen(self, *channels: str, timeout: float | None = None) -> Listener:
        """Wait for notifications, on a connection of its own, over rotations and outages.

        Enter it with `with` or `async with`, and iterate over it. It yields a `psycopg.Notify` for
        each notification, and a `Gap` after an outage: then look at what may have been missed. It
        costs a server connection, which counts in `max_connections`, not in `max_size`.

        Args:
            channels: Their names, as they are: `listen("Orders")` hears `NOTIFY "Orders"`.
            timeout: Seconds for the first connection; default: the configured `timeout`. After
                that it connects again for as long as it is entered.

        Raises:
            ValueError: no channel, or a name that a server does not take.
            ConnectError: when it is entered: no connection within the timeout.

        Example:
            >>> with registry.get("orders").listen("news") as notes:
            ...     with registry.get("orders") as conn:
            ...         _ = conn.execute("SELECT pg_notify('news', 'tea')")
            ...     for note in notes.notifies(stop_after=1):
            ...         print(note.channel, note.payload)
            news tea
        """

    @abstractmethod
    def open(self, timeout: float | None = None) -> Awaitable[Database]:
        """Connect now, not at the first checkout; `await` it on an async handle.

        Args:
            timeout: Seconds to wait; default: the configured `timeout`.

        Raises:
            CheckoutTimeout, ConnectError: as a checkout does.

        Example:
            >>> _ = registry.get("orders").open(timeout=2)
        """

    @abstractmethod
    def close(self) -> Awaitable[object]:
        """Close the connections; `await` it on an async handle. The next checkout opens again.

        Checkouts in progress go on; their connections close when they end. Those of its copies close,
        too: see `with_own_pool`.

        Example:
            >>> _ = registry.get("orders").close()
        """

    def connect(self) -> Awaitable[Database]:
        """Do what `open` does, under its name in pgmonkey 4.0."""
        warnings.warn("handle.connect() is handle.open() now", DeprecationWarning, stacklevel=2)
        return self.open()

    def disconnect(self) -> Awaitable[object]:
        """Do what `close` does, under its name in pgmonkey 4.0."""
        warnings.warn("handle.disconnect() is handle.close() now", DeprecationWarning, stacklevel=2)
        return self.close()

    # Reload and life, for the registry

    def make_copy(self, context: AdaptContext | None) -> Self:
        """Return a copy that has a pool of its own: see `with_own_pool`.

        Args:
            context: What the adapters of its connections begin with; default: psycopg's.
        """
        made = type(self)(
            self.version, self.connection_type, self.limits, self.hooks, self, context
        )
        made.share(self.sharing)
        kept = (one for one in self._copies if one() is not None)
        self._copies = (*kept, weakref.ref(made))
        return made

    def copies(self) -> list[Self]:
        """Return the copies of this handle that are still in use."""
        copies: list[Any] = [one for ref in self._copies if (one := ref()) is not None]
        return copies

    def _new_stats(self) -> Stats:
        """Return new counters, or those of the original, which counts for its copies."""
        return Stats() if self._original is None else self._original.stats

    @abstractmethod
    def share(self, sharing: Sharing | None) -> None:
        """Let all blocks that begin from now on share one transaction, or no more."""

    def request_reload(self) -> None:
        """Let the next `await` of this handle replace its connections."""
        self._force_due = True

    @abstractmethod
    def redirect(self, version: Version, sharing: Sharing | None) -> list[Closing]:
        """Put a version in force without connecting, at once and from any thread.

        Args:
            version: What the next checkout connects with.
            sharing: How all blocks share one transaction; `None`: they do not.

        Returns:
            What closes the connections that there are. Call it when no lock is held.
        """

    def revive(self) -> None:
        """Let the handle work again: its file came back."""
        with self._lock:
            self.gone = None

    def raise_if_gone(self) -> None:
        """Raise why the handle may not be used any more, if so."""
        if (gone := self.gone) is not None:
            raise type(gone)(*gone.args)

    # Status

    @abstractmethod
    def all_pools(self) -> list[Pool]:
        """Return the pools of this handle: one, or one for each event loop that uses it."""

    def all_listening(self) -> list[Listening]:
        """Return the groups of listeners of this handle that have some."""
        return [one for one in self.listening.copy().values() if one.listeners()]

    def is_open(self) -> bool:
        """Tell whether a pool has connected since it was opened, in any loop, or one listens."""
        return any(pool.opened for pool in self.all_pools()) or bool(self.all_listening())

    def is_draining(self) -> bool:
        """Tell whether a connection of an older version is left, here or at the server."""
        return any(
            pool.connector.is_draining()
            or (pool.opened and pool.target.since != self.version.since)
            for pool in self.all_pools()
        ) or any(one.connector.is_draining() for one in self.listening.copy().values())

    def status(self) -> PoolStatus:
        """Return the numbers of the pools of this handle. It waits for nothing.

        Example:
            >>> registry.get("orders").status().used
            0
        """
        # Before the checkouts in progress: one that ends in between is missing once, not counted twice.
        stats = self.stats
        waits, uses, connects = stats.durations()
        ended, queued = waits.count + sum(stats.errors.values()), stats.queued
        everyone = [self, *self.copies()]
        pools = [pool for one in everyone for pool in one.all_pools()]
        numbers = [pool.numbers() for pool in pools]
        listening = [each for one in everyone for each in one.all_listening()]
        connectors = [pool.connector for pool in pools] + [each.connector for each in listening]
        failures = (connector.outage.failure for connector in connectors)
        failure = next(filter(None, failures), None)
        now = monotonic()
        held = [
            CheckoutStatus(holder_name(one.owner), now - one.taken, one.place, one.stack)
            for each in numbers
            for one in each.held + each.retired
        ]
        requests = stats.total(ended + len(held))
        settings = self.version.config.pool(self.connection_type)
        everywhere = sum(pool.opened for pool in pools) or 1
        return PoolStatus(
            database=self.name,
            connection_type=self.connection_type,
            version=self.version.number,
            opened=any(pool.opened for pool in pools),
            idle=sum(each.idle for each in numbers),
            used=sum(len(each.held) for each in numbers),
            retired=sum(len(each.retired) for each in numbers),
            waiting=sum(each.waiting for each in numbers),
            min_size=settings.min_size * everywhere,
            max_size=settings.max_size * everywhere,
            longest_checkout=max((one.seconds for one in held), default=0.0),
            requests=requests,
            queued=queued,
            errors=dict(stats.errors),
            waits=waits,
            uses=uses,
            connects=connects,
            connect_attempts=stats.attempts,
            connect_failures=dict(stats.failures),
            evicted=dict(stats.evicted),
            leaks=stats.leaks,
            last_failure=failure.text if failure else None,
            last_failure_reason=failure.reason if failure else None,
            last_failure_hint=failure.hint if failure else None,
            checkouts=tuple(held),
            listeners=sum(len(each.listeners()) for each in listening),
        )

    def report_long_checkouts(self, now: float) -> None:
        """Report checkouts that last too long: leaked ones, and those that keep an old version.

        Args:
            now: The monotonic clock.
        """
        config = self.version.config
        for pool in self.all_pools():
            numbers = pool.numbers()
            rotating = pool.connector.rotating
            if (
                rotating is not None
                and not pool.lingers
                and numbers.retired
                and now - rotating[0] > config.drain_timeout
            ):
                pool.lingers = True
                events.emit(
                    "database.drain_timeout",
                    database=self.name,
                    connection_type=self.connection_type,
                    version=rotating[1],
                    holders=[describe(one, now) for one in numbers.retired],
                )
            if config.leak_detection is None:
                continue
            for one in numbers.held + numbers.retired:
                if not one.stage & REPORTED and now - one.taken > config.leak_detection:
                    one.stage |= REPORTED
                    self.stats.leaks += 1
                    events.emit(
                        "checkout.leaked",
                        database=self.name,
                        connection_type=self.connection_type,
                        **describe(one, now),
                    )
