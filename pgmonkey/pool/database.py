"""The public class of a handle: one database, for the life of the registry."""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import TupleRow

from pgmonkey.errors import WrongSideError
from pgmonkey.pool.checkout import REPORTED, Checkout, abandoned
from pgmonkey.pool.generation import Generation
from pgmonkey.pool.limits import Budget, Gate, Share
from pgmonkey.pool.target import Applied, Target
from pgmonkey.pool.usage import Usage
from pgmonkey.telemetry import events
from pgmonkey.telemetry.status import CheckoutStatus, PoolStatus
from pgmonkey.telemetry.timings import Durations

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType


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

    if TYPE_CHECKING:

        def __enter__(self) -> Connection[TupleRow]: ...
        def __exit__(self, kind: object, error: object, trace: object, /) -> bool | None: ...
        async def __aenter__(self) -> AsyncConnection[TupleRow]: ...
        async def __aexit__(self, kind: object, error: object, trace: object, /) -> bool | None: ...

    def __init__(self, applied: Applied, connection_type: ConnectionType, budget: Budget) -> None:
        self.name = applied.config.name
        self.connection_type = connection_type
        self._count_in(Usage())
        #: Checkouts entered by calling `__enter__` by hand, which have no `__exit__` yet.
        self.loose: list[Checkout] = []
        self.target = Target(applied)
        #: Its part in the connections that all databases may have together.
        self.share = Share(budget, self.target, f"{self.name}/{connection_type}")
        #: Whether a checkout keeps the stack of its borrower.
        self.keeps_stacks = applied.config.leak_stack
        #: Called when the first connection of a process or loop is about to be made.
        self.on_open: Callable[[], object] | None = None
        #: Called when the server has refused a login.
        self.on_refused: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.connection_type}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self!r} cannot be pickled: its connections belong to this process; "
            "make the registry in the other process and ask it for the name"
        )

    def _count_in(self, usage: Usage) -> None:
        self.usage = usage
        # What every checkout calls when it ends, without the way to it.
        self.records = usage.records
        self.record = usage.records.extend

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

    @abstractmethod
    def cursor(self, timeout: float | None = None, **options: Any) -> BorrowedCursor:
        """Borrow a connection for the life of one cursor.

        Args:
            timeout: Seconds to wait for the connection; default: the configured `timeout`.
            options: Passed to psycopg's `Connection.cursor`.

        Example:
            >>> from psycopg.rows import dict_row
            >>> with registry.get("orders").cursor(row_factory=dict_row) as cursor:
            ...     cursor.execute("SELECT 1 AS answer").fetchone()
            {'answer': 1}
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
    def close(self) -> Awaitable[None]:
        """Close the connections; `await` it on an async handle. The next checkout opens again.

        Checkouts in progress go on; their connections close when they end.

        Example:
            >>> _ = registry.get("orders").close()
        """

    def connect(self) -> Awaitable[Database]:
        """Do what `open` does, under its name in pgmonkey 4.0."""
        warnings.warn("handle.connect() is handle.open() now", DeprecationWarning, stacklevel=2)
        return self.open()

    def disconnect(self) -> Awaitable[None]:
        """Do what `close` does, under its name in pgmonkey 4.0."""
        warnings.warn("handle.disconnect() is handle.close() now", DeprecationWarning, stacklevel=2)
        return self.close()

    @abstractmethod
    def __await__(self) -> Generator[Any, None, Database]:
        """Open an async handle."""

    def status(self) -> PoolStatus:
        """Return the numbers of the pools of this handle. It waits for nothing.

        Example:
            >>> registry.get("orders").status().used
            0
        """
        # Before what is out: what ends between the two is then missing once, not counted twice.
        usage = self.usage
        durations = usage.durations()
        ended, queued = durations[0].count + sum(usage.errors.values()), usage.queued
        return self._status(durations, ended, queued, *self._parts())

    def is_open(self) -> bool:
        """Tell whether a pool is open, in any loop."""
        return bool(self._parts()[0])

    def has_room(self) -> bool:
        """Tell whether `max_size` allows another connection, in any loop."""
        return any(gate.count < gate.limit for gate in self._parts()[2])

    def is_draining(self) -> bool:
        """Tell whether a connection of an older version is left, here or at the server."""
        _, retired, gates = self._parts()
        return bool(retired) or any(gate.lingers() for gate in gates)

    def reclaim(self, generation: Generation[Any]) -> None:
        """Take back the connections of lost checkouts, and report them."""
        for one in abandoned(generation.checkouts):
            if one.reclaim():
                self.usage.leaks += 1
                events.emit(
                    "checkout.abandoned",
                    database=self.name,
                    connection_type=self.connection_type,
                    **_describe(one, monotonic()),
                )

    def patrol(self, now: float) -> None:
        """Report checkouts that last too long: leaked ones, and holders of a retired generation.

        Args:
            now: The monotonic clock.
        """
        current, retired, _ = self._parts()
        config = self.target.applied.config
        self.keeps_stacks = config.leak_stack
        for generation in current + retired:
            self.reclaim(generation)
        for generation in retired:
            if not generation.lingers and now - generation.retired_at > config.drain_timeout:
                generation.lingers = True
                events.emit(
                    "database.drain_timeout",
                    database=self.name,
                    connection_type=self.connection_type,
                    generation=generation.version,
                    holders=[_describe(one, now) for one in generation.out()],
                )
        if config.leak_detection is None:
            return
        for generation in current + retired:
            for one in generation.out():
                if one.stage != REPORTED and now - one.taken > config.leak_detection:
                    one.stage = REPORTED
                    self.usage.leaks += 1
                    events.emit(
                        "checkout.leaked",
                        database=self.name,
                        connection_type=self.connection_type,
                        **_describe(one, now),
                    )

    @abstractmethod
    def _parts(self) -> tuple[list[Generation[Any]], list[Generation[Any]], list[Gate]]:
        """Return the current generations, the retired ones, and the gates."""

    def _status(
        self,
        durations: tuple[Durations, Durations, Durations],
        ended: int,
        queued: int,
        current: list[Generation[Any]],
        retired: list[Generation[Any]],
        gates: list[Gate],
    ) -> PoolStatus:
        settings = self.target.applied.config.pool(self.connection_type)
        retired = [one for one in retired if one not in current]  # a swap may be half done
        out = [checkout for generation in current for checkout in generation.out()]
        old = [checkout for generation in retired for checkout in generation.out()]
        everywhere = len(current) or 1
        failure = next((gate.last_failure for gate in gates if gate.last_failure), None)
        now = monotonic()
        held = [
            CheckoutStatus(holder_name(one.owner), now - one.taken, one.place, one.stack)
            for one in out + old
        ]
        idle = 0
        for generation in current:
            stats = generation.pool.get_stats()
            idle += stats["pool_available"]
            queued += stats.get("requests_queued", 0)
        for generation in retired:
            queued += generation.pool.get_stats().get("requests_queued", 0)
        requests, queued = self.usage.counted(ended + len(held), queued)
        return PoolStatus(
            database=self.name,
            connection_type=self.connection_type,
            version=self.target.applied.version,
            opened=bool(current),
            idle=idle,
            used=len(out),
            retired=len(old),
            waiting=sum(generation.waiting() for generation in current),
            min_size=settings.min_size * everywhere,
            max_size=settings.max_size * everywhere,
            longest_checkout=max((one.seconds for one in held), default=0.0),
            requests=requests,
            queued=queued,
            errors=dict(self.usage.errors),
            waits=durations[0],
            uses=durations[1],
            connects=durations[2],
            connect_attempts=self.usage.attempts,
            connect_failures=dict(self.usage.failures),
            evicted=dict(self.usage.evicted),
            leaks=self.usage.leaks,
            last_failure=failure.text if failure else None,
            last_failure_reason=failure.reason if failure else None,
            last_failure_hint=failure.hint if failure else None,
            checkouts=tuple(held),
        )


def _describe(checkout: Checkout, now: float) -> dict[str, Any]:
    described: dict[str, Any] = {
        "holder": holder_name(checkout.owner),
        "seconds": round(now - checkout.taken, 3),
        "place": checkout.place,
    }
    if stack := checkout.stack:
        described["stack"] = list(stack)
    return described


def holder_name(owner: Any) -> str:
    """Return the name of a thread or task, for a person."""
    if isinstance(owner, int):
        for thread in threading.enumerate():
            if thread.ident == owner:
                return f"thread {thread.name}"
        return f"thread {owner} (ended)"
    name = getattr(owner, "get_name", None)
    return f"task {name()}" if name else "unknown"


def wrong_side(handle: Database) -> WrongSideError:
    """Return the error for `with` on an async handle, or the reverse."""
    used, right = (
        ("`async with` or `await`", "with")
        if handle.connection_type in ("normal", "pool")
        else ("`with`", "async with")
    )
    return WrongSideError(
        f"{handle.name} is a {handle.connection_type} database: {used} does not work on it; "
        f'use `{right} registry.get("{handle.name}") as conn:`'
    )
