"""The steps of a generation that sync and async handles share: first, current, retired, drained."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pgmonkey.errors import ConnectError
from pgmonkey.pool.connection import FRESH, LONG_IDLE
from pgmonkey.pool.dialer import Dialer
from pgmonkey.pool.limits import Gate
from pgmonkey.pool.login_pauses import login_pauses
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.checkout import Checkout
    from pgmonkey.pool.connect_failure import ConnectFailure
    from pgmonkey.pool.connection import AsyncPooledConnection, PooledConnection
    from pgmonkey.pool.generation import Generation
    from pgmonkey.pool.limits import Share
    from pgmonkey.pool.target import Applied, Target
    from pgmonkey.pool.usage import Usage

PoolT = TypeVar("PoolT")

#: How many clients that gave up may stand in the queue of a pool with nothing to give. psycopg_pool
#: takes them out when a connection comes; until then each costs some kilobytes, and later time.
LONGEST_QUEUE: Final = 1000

#: What a child process got from its parent. It is never touched again, and never freed: the
#: destructors of pools and connections take locks that may be held for ever.
_inherited: Final[list[object]] = []
_all: Final[weakref.WeakSet[Lifecycle[Any]]] = weakref.WeakSet()


class Lifecycle(ABC, Generic[PoolT]):
    """Keep the current generation of one handle (in one event loop), and its retired ones.

    Decides and remembers, but never waits, so sync and async share it.
    """

    name: str
    connection_type: ConnectionType
    target: Target
    usage: Usage
    share: Share

    def __init__(self) -> None:
        limit = self.target.applied.config.pool(self.connection_type).max_size
        self.gate = Gate(limit, self.usage, self.share)
        #: The current generation. Read without a lock, replaced by one assignment under it.
        self.generation: Generation[PoolT] | None = None
        self.retired: list[Generation[PoolT]] = []
        # Guards the step from one generation to the next. Never held while waiting, and never
        # while a connection or a pool is opened or closed.
        self._lock = threading.Lock()
        #: The generations whose pools are open; what is left here is closed with the handle.
        self.open_generations: set[Generation[PoolT]] = set()
        _all.add(self)

    def is_gone(self) -> bool:
        """Tell whether the handle is of no use any more."""
        return self.target.gone is not None

    def refuse_if_gone(self) -> None:
        """Raise why the handle is of no use any more, if so."""
        if (gone := self.target.gone) is not None:
            raise type(gone)(*gone.args)

    def make_dialer(self, applied: Applied) -> Dialer:
        """Return the dialer of a new generation."""
        failed = weakref.WeakMethod(self.failed)  # a pool must not keep its handle alive

        def on_failure(dialer: Dialer, failure: ConnectFailure, asked: bool) -> None:
            if (method := failed()) is not None:
                method(dialer, failure, asked=asked)

        return Dialer(applied.config, self.connection_type, self.gate, on_failure)

    def failed(self, dialer: Dialer, failure: ConnectFailure, *, asked: bool) -> None:
        """Act on a failed connect, in the worker of the pool that tried it.

        A refused login may mean that the files have changed already: they are looked at now.
        When nothing is open and waiting will not mend it, the clients that wait must hear of it.

        Args:
            dialer: What tried.
            failure: Its failure.
            asked: Whether the server was asked, or said so before.
        """
        if failure.reason == "auth" and asked:
            self.refused()
        if failure.lasting and self.gate.count == 0:
            self.dead_end(dialer)

    @abstractmethod
    def refused(self) -> None:
        """Tell the registry, if there is one, that a login was refused."""

    @abstractmethod
    def dead_end(self, dialer: Dialer) -> None:
        """Give up the generation of this dialer: it cannot connect, and waiting will not mend it."""

    def no_room(self, config: DatabaseConfig) -> ConnectError:
        """Return the error of a reload that finds every connection in use.

        Args:
            config: What was to be tried.
        """
        full = self.share.explain(config)
        why = full or f"all {self.gate.count} connections are in use"
        return ConnectError(
            f"{why}, so none is left to probe the new configuration",
            database=self.name,
            reason="too_many_connections",
            hint="the reload is tried again; shorten the transactions"
            f" or raise {'max_connections' if full else 'max_size'}",
        )

    def publish_first(
        self, generation: Generation[PoolT], overtaken: Callable[[], bool] = lambda: False
    ) -> bool:
        """Make the first generation current, unless another config or another first came by.

        Args:
            generation: The first one.
            overtaken: Tells, under the lock, whether the handle was closed since it was begun.
        """
        with self._lock:
            if (
                overtaken()
                or self.generation is not None
                or self.target.gone is not None
                or self.target.applied.since != generation.applied.since
            ):
                return False
            self.generation = generation
        events.emit(
            "database.opened",
            database=self.name,
            connection_type=self.connection_type,
            generation=generation.version,
            config=generation.applied.config.redacted(),
        )
        return True

    def unfit(
        self,
        connection: PooledConnection | AsyncPooledConnection,
        generation: Generation[PoolT],
        now: float,
    ) -> str | None:
        """Return why a connection must not be handed out, as far as no server is asked.

        Returns:
            The reason under which it counts as evicted, or `None`.
        """
        if now >= connection.expires_at:
            return "lifetime"
        if now - connection.returned_at >= FRESH and not connection.is_alive():
            return "dead"
        if generation.wants_primary and connection.is_standby():
            return "standby"
        return None

    def needs_ping(
        self,
        connection: PooledConnection | AsyncPooledConnection,
        generation: Generation[PoolT],
        now: float,
    ) -> bool:
        """Tell whether to ping the server before this checkout."""
        return generation.pings or now - connection.returned_at >= LONG_IDLE

    def count_replaced(self, generation: Generation[PoolT]) -> None:
        """Count the connections of a generation that is about to be closed for a newer one."""
        self.usage.evicted["rotation"] += generation.size()

    def give_up(self, generation: Generation[PoolT], why: str) -> bool:
        """Let a generation be current no more, without a successor: the next checkout opens one.

        Returns:
            False if it was not current.
        """
        with self._lock:
            if self.generation is not generation:
                return False
            self.generation = None
            self.retired.append(generation)
        self.count_replaced(generation)
        events.emit(
            "database.given_up",
            database=self.name,
            connection_type=self.connection_type,
            generation=generation.version,
            reason=why,
        )
        return True

    def is_clogged(self, generation: Generation[PoolT]) -> bool:
        """Tell whether the pool's queue is full of clients that gave up, and nothing will clear it.

        Asked after a timeout. What is out clears the queue when it comes back.
        """
        queue: int = generation.pool.get_stats()["requests_waiting"]  # type: ignore[attr-defined]  # both pool classes have it
        return queue > LONGEST_QUEUE + generation.waiting() and not generation.out()

    def wants_another_try(self, now: float) -> bool:
        """Tell whether a connect that failed is to be tried again, though no client asks.

        Args:
            now: The monotonic clock.
        """
        config = self.target.applied.config
        return (
            self.generation is None
            and self.gate.last_failure is not None
            and self.target.gone is None
            and not login_pauses.is_paused(config.account, config.connect_digest, now)
        )

    def let_go(self, checkout: Checkout, generation: Generation[PoolT]) -> None:
        """Forget a checkout that got no connection from this generation."""
        generation.checkouts.discard(checkout)
        self.gate.wake()  # a worker that connects for it need not wait for the budget any more
        if generation.retired:
            self.drained_if_empty(generation)

    def drained_if_empty(self, generation: Generation[PoolT]) -> None:
        """Let a retired generation go when its last checkout has ended."""
        if generation.checkouts:
            return
        try:
            self.retired.remove(generation)
        except ValueError:
            return  # another thread did
        self.usage.queued += generation.pool.get_stats().get("requests_queued", 0)  # type: ignore[attr-defined]  # both pool classes have it
        events.emit(
            "database.drained",
            database=self.name,
            connection_type=self.connection_type,
            generation=generation.version,
            duration=round(monotonic() - generation.retired_at, 6),
        )

    def report_swap(self, old: Generation[PoolT], new: Generation[PoolT], seconds: float) -> None:
        """Report that a new generation took over."""
        events.emit(
            "database.swapped",
            database=self.name,
            connection_type=self.connection_type,
            old=old.version,
            new=new.version,
            duration=round(seconds, 6),
        )

    def returned_late(self, checkout: Checkout, now: float) -> None:
        """Report that a checkout which was reported as leaked has come back."""
        events.emit(
            "checkout.returned_late",
            database=self.name,
            connection_type=self.connection_type,
            seconds=round(now - checkout.taken, 3),
            place=checkout.place,
        )

    def forget(self) -> None:
        """Forget the parent's connections in a child process, without touching them."""
        _inherited.append((list(self.open_generations), self.__dict__.copy()))
        self.generation = None
        self.retired = []
        self.open_generations.clear()
        self.gate = Gate(self.gate.limit, self.usage, self.share)
        self._lock = threading.Lock()


def _after_fork() -> None:
    for lifecycle in list(_all):
        lifecycle.forget()


os.register_at_fork(after_in_child=_after_fork)
