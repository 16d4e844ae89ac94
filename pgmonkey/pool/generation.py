"""The pool of one handle that was made from one configuration, and its checkouts."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import psycopg_pool

from pgmonkey.pool.connection import (
    AsyncPool,
    AsyncPooledConnection,
    PooledConnection,
    SyncPool,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgmonkey.config.models import ConnectionType, PoolSettings
    from pgmonkey.pool.dialer import Dialer
    from pgmonkey.pool.target import Applied

#: The types that hold one connection, whose blocks take turns.
SINGLE: Final = frozenset({"normal", "async"})

#: What the names of our pools, and so of their threads, begin with.
POOL_PREFIX: Final = "pgmonkey/"
#: Seconds for which psycopg_pool repeats an attempt by itself.
RECONNECT_WINDOW: Final = 2.0

PoolT = TypeVar("PoolT")


class Generation(Generic[PoolT]):
    """Hold one pool, what it was made from, and the checkouts that are out or waiting.

    Args:
        applied: What it was made from.
        connection_type: The connection type of its handle.
        dialer: What makes its connections.
        pool: The pool, not opened yet.
    """

    __slots__ = (
        "applied",
        "checkouts",
        "crowd",
        "dialer",
        "examined",
        "getconn",
        "gives_up",
        "guarded",
        "lingers",
        "pings",
        "pool",
        "putconn",
        "resets",
        "retired",
        "retired_at",
        "settings",
        "single",
        "timeout",
        "wants_primary",
    )

    def __init__(
        self, applied: Applied, connection_type: ConnectionType, dialer: Dialer, pool: PoolT
    ) -> None:
        self.applied = applied
        self.dialer = dialer
        self.pool = pool
        # The two calls that every checkout makes, without the way to them.
        self.getconn: Any = pool.getconn  # type: ignore[attr-defined]  # both pool classes have it
        self.putconn: Any = pool.putconn  # type: ignore[attr-defined]  # both pool classes have it
        self.settings: PoolSettings = applied.config.pool(connection_type)
        self.timeout = self.settings.timeout
        self.single = connection_type in SINGLE
        #: Every checkout that is out or waits. Adding and discarding are atomic, so no lock.
        self.checkouts: set[Any] = set()
        dialer.checkouts = self.checkouts
        #: How many may be out or wait, or `None`: `max_waiting` counts who waits, truly.
        waiting = self.settings.max_waiting
        self.crowd = self.settings.max_size + waiting if waiting else None
        #: Whether each checkout asks the server for a sign of life.
        self.pings = self.settings.check_on_checkout
        self.wants_primary = applied.config.wants_primary
        #: Whether each checkout looks at its connection, however fresh it is.
        self.examined = self.pings or self.wants_primary
        self.resets = applied.config.reset_on_return
        #: Whether a checkout must be looked at before it may wait.
        self.guarded = self.single or self.crowd is not None
        #: Whether the next checkout that ends closes its connection, to make room.
        self.gives_up = False
        self.retired = False
        self.retired_at = 0.0
        #: Whether the `drain_timeout` event was emitted.
        self.lingers = False

    @property
    def version(self) -> int:
        """Return the version of the config that it was made from."""
        return self.applied.version

    def retire(self) -> None:
        """Mark that no new checkout may use it."""
        self.retired_at = monotonic()
        self.retired = True
        self.dialer.stop()

    def idle(self) -> int:
        """Return how many connections can be had without waiting."""
        number: int = self.pool.get_stats()["pool_available"]  # type: ignore[attr-defined]  # both pool classes have it
        return number

    def out(self) -> list[Any]:
        """Return the checkouts that hold a connection, oldest first."""
        holders = [one for one in self.checkouts.copy() if one.connection is not None]
        return sorted(holders, key=lambda one: one.began)

    def waiting(self) -> int:
        """Return how many checkouts wait for a connection."""
        # One that has had its connection is on its way out.
        return sum(one.connection is None and not one.taken for one in self.checkouts.copy())

    def size(self) -> int:
        """Return how many server connections it has, idle or out."""
        return self.idle() + len(self.out())


class Candidate(NamedTuple, Generic[PoolT]):
    """Hold the next configuration of a handle and, if it was open, the generation made from it.

    Args:
        applied: What the handle runs after the swap.
        replaces: The generation that was current when this was prepared, or `None`.
        generation: The verified generation, or `None` when no connection is touched.
    """

    applied: Applied
    replaces: Generation[PoolT] | None
    generation: Generation[PoolT] | None


def pool_arguments(
    applied: Applied, connection_type: ConnectionType, dialer: Dialer, make: Callable[[], object]
) -> dict[str, Any]:
    """Return the arguments of a pool for this generation, for either pool class.

    `max_waiting`, `check` and `reset` stay with the handle, which knows its clients.
    """
    settings = applied.config.pool(connection_type)
    return {
        "kwargs": {"make": make},
        "name": f"{POOL_PREFIX}{applied.config.name}/{connection_type}/{applied.since}",
        # At its start a pool connects as often as this, and so takes what is planted. It gets its
        # own size then: so the pool's scheduler has begun when it makes the others. Before Python
        # 3.12 a program that ended in that moment would wait for the scheduler for ever.
        "min_size": dialer.planted,
        "max_size": settings.max_size,
        "timeout": settings.timeout,
        "max_idle": settings.max_idle,
        "max_lifetime": settings.max_lifetime,
        # Within this window psycopg_pool doubles its pauses, and then gives up; the dialer goes
        # on while somebody waits. A longer window would only mean a later recovery.
        "reconnect_timeout": min(settings.reconnect_timeout, RECONNECT_WINDOW),
        "num_workers": settings.num_workers,
        "open": False,
    }


def make_pool(applied: Applied, connection_type: ConnectionType, dialer: Dialer) -> SyncPool:
    """Return the pool of a `normal` or `pool` generation, not opened."""
    return psycopg_pool.ConnectionPool(
        connection_class=PooledConnection,
        reconnect_failed=dialer.go_on,
        **pool_arguments(applied, connection_type, dialer, dialer.connect),
    )


def make_async_pool(applied: Applied, connection_type: ConnectionType, dialer: Dialer) -> AsyncPool:
    """Return the pool of an `async` or `async_pool` generation, not opened."""
    return psycopg_pool.AsyncConnectionPool(
        connection_class=AsyncPooledConnection,
        reconnect_failed=dialer.go_on_async,
        **pool_arguments(applied, connection_type, dialer, dialer.connect_async),
    )
