"""Make the server connections of one generation."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from pgmonkey.errors import ConnectError
from pgmonkey.pool.connect_failure import ConnectFailure, classify
from pgmonkey.pool.connection import (
    FRESH,
    AsyncPool,
    AsyncPooledConnection,
    PooledConnection,
    SyncPool,
    age_limit,
    cancel_soon,
)
from pgmonkey.pool.host_lookup import resolved, resolved_async
from pgmonkey.pool.login_pauses import login_pauses
from pgmonkey.telemetry import events

ConnectionT = TypeVar("ConnectionT", PooledConnection, AsyncPooledConnection)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgmonkey.config.models import ConnectionType, PoolSettings
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.limits import Gate, Slot


class Dialer:
    """Make the connections of one generation: those that it starts from, and the rest.

    A pool is given a method of the dialer as its only connect argument, and reads the secrets
    through it at each connect, so neither the pool nor a traceback of it holds one.

    Args:
        config: The configuration of the generation.
        connection_type: The connection type of the handle.
        gate: The gate of the handle, shared by its generations.
        on_failure: Called when a connect of the generation in force failed, and told whether the
            server was asked.
    """

    __slots__ = (
        "_account",
        "_connection_type",
        "_gate",
        "_login",
        "_lost",
        "_on_failure",
        "_seeds",
        "_settings",
        "checkouts",
        "config",
        "crowded",
        "held",
        "retired",
    )

    def __init__(
        self,
        config: DatabaseConfig,
        connection_type: ConnectionType,
        gate: Gate,
        on_failure: Callable[[Dialer, ConnectFailure, bool], None] | None = None,
    ) -> None:
        self.config = config
        self._account, self._login = config.account, config.connect_digest
        self._connection_type = connection_type
        self._settings: PoolSettings = config.pool(connection_type)
        self._gate = gate
        self._on_failure = on_failure
        self._seeds: deque[PooledConnection | AsyncPooledConnection] = deque()
        #: The checkouts of the generation, to know whether anybody waits.
        self.checkouts: set[Any] = set()
        #: Set while a reload makes room for its probe: nothing else may take the free place.
        self.held = False
        #: Set when the server, or a limit of the role, had no slot left for one more.
        self.crowded = False
        #: How many clients went away while they waited.
        self._lost = 0
        #: Set when the generation is retired: it makes no connection any more.
        self.retired = False

    @property
    def server(self) -> str:
        """Return which server its connections go to."""
        return self.config.server

    def go_on(self, pool: SyncPool) -> None:
        """Let a pool that has given up try again, if somebody waits or it is early yet."""
        if self._shall_go_on():
            pool.check()

    async def go_on_async(self, pool: AsyncPool) -> None:
        """Let a pool that has given up try again; see `go_on`."""
        if self._shall_go_on():
            await pool.check()
            # The look at an idle connection takes a cancellation for its failure.
            if (task := asyncio.current_task()) and task.cancelling():
                cancel_soon(task)

    def _shall_go_on(self) -> bool:
        if self.retired:
            return False
        if self._is_waited_for():
            return True
        return not self._is_starved() and (self._gate.outage() < self._settings.reconnect_timeout)

    def _is_waited_for(self) -> bool:
        return any(one.connection is None and not one.taken for one in self.checkouts.copy())

    def _is_starved(self) -> bool:
        """Tell whether the other databases of the registry left no connection for this one."""
        share = self._gate.share
        return share is not None and share.is_full(self.server)

    def lose(self) -> None:
        """Let the worker of the pool go on with its work: a client went away while it waited.

        The pool may have given it a connection in the same moment, which that worker takes
        back; while that worker waits for the budget, no other client would get the connection.
        """
        self._lost += 1
        self._gate.wake()

    def _given_up(self) -> Callable[[], bool]:
        """Return a function that tells whether the worker of the pool should stop waiting for a slot.

        Without anybody who waits for it, a connection that the budget does not allow now is not
        worth a worker that does nothing else.
        """
        lost = self._lost
        return lambda: (
            self.retired
            or (self._is_starved() and (self._lost != lost or not self._is_waited_for()))
        )

    def plant(self, seed: PooledConnection | AsyncPooledConnection) -> None:
        """Let a connect of the pool return this one, which the reload has made."""
        # From here on it is a pool's, whose loop may end with it: no reason for psycopg to warn.
        seed._pool = None
        self._seeds.append(seed)

    @property
    def planted(self) -> int:
        """Return how many planted connections the pool has not taken yet."""
        return len(self._seeds)

    def uproot(self) -> PooledConnection | AsyncPooledConnection | None:
        """Take back a planted connection that the pool has not taken yet."""
        try:
            return self._seeds.popleft()
        except IndexError:
            return None

    def stop(self) -> None:
        """Make no more connections, and end the wait of those who want to make one."""
        self.retired = True
        self._gate.wake()

    def connect(self) -> PooledConnection:
        """Return a new connection to the pool, as soon as the gate has a slot for it."""
        if seed := self.uproot():
            return cast(PooledConnection, seed)
        slot = self._gate.wait(self._given_up(), lambda: self.held, server=self.server)
        if slot is None:
            raise self._not_now()
        return self.dial(slot)

    def _not_now(self) -> ConnectError:
        """Return the error for a pool that must not connect; only the pool sees it."""
        why = "this generation is retired" if self.retired else "max_connections leaves none for it"
        return ConnectError(why, database=self.config.name)

    async def connect_async(self) -> AsyncPooledConnection:
        """Return a new connection to the pool, as soon as the gate has a slot for it."""
        if seed := self.uproot():
            return cast(AsyncPooledConnection, seed)
        slot = await self._gate.wait_async(self._given_up(), lambda: self.held, server=self.server)
        if slot is None:
            raise self._not_now()
        return await self.dial_async(slot)

    def refusal(self) -> ConnectFailure | None:
        """Take the next attempt of a login that may be paused; else return why it is."""
        return login_pauses.claim(self._account, self._login, monotonic())

    def dial(self, slot: Slot | None, *, probe: bool = False) -> PooledConnection:
        """Make one connection now.

        Args:
            slot: Its place at the gate.
            probe: Whether it tries a candidate, whose failure says nothing of what runs; it is
                tried even while its login is paused.

        Raises:
            ConnectError: with the server's reason, scrubbed; never chained to the driver's
                error, whose frames and attributes hold the password.
        """
        if not probe:
            self._spare(slot)
        began = monotonic()
        try:
            connection, failure = self._try_dial()
            self._met(failure, began, slot, probe=probe)
            return self._admit(cast(PooledConnection, connection), slot)
        except BaseException:  # Ctrl-C, too, while a forced reload connects
            if slot is not None:
                slot.release()
            raise

    async def dial_async(self, slot: Slot | None, *, probe: bool = False) -> AsyncPooledConnection:
        """Make one connection now; see `dial`."""
        if not probe:
            self._spare(slot)
        began = monotonic()
        try:
            connection, failure = await self._try_dial_async()
            self._met(failure, began, slot, probe=probe)
            return self._admit(cast(AsyncPooledConnection, connection), slot)
        except BaseException:
            if slot is not None:
                slot.release()
            raise

    def _try_dial(self) -> tuple[PooledConnection | None, ConnectFailure | None]:
        try:
            return PooledConnection.connect(
                **resolved(self.config.connect_kwargs(self._connection_type))
            ), None
        except Exception as error:  # noqa: BLE001 - any error of a connect is its reason, and is raised by _met
            return None, classify(error, self.config.secrets)
        except BaseException as interrupt:  # noqa: BLE001 - it goes on, without the frames
            interrupt.__context__ = None  # the driver's frames hold the password
            raise interrupt.with_traceback(None) from None

    async def _try_dial_async(self) -> tuple[AsyncPooledConnection | None, ConnectFailure | None]:
        loop = asyncio.get_running_loop()
        try:
            return await AsyncPooledConnection.connect(
                **await resolved_async(self.config.connect_kwargs(self._connection_type))
            ), None
        except Exception as error:  # noqa: BLE001 - any error of a connect is its reason, and is raised by _met
            if not loop.is_closed():
                return None, classify(error, self.config.secrets)
        except BaseException as interrupt:  # noqa: BLE001 - it goes on, without the frames
            interrupt.__context__ = None  # the driver's frames hold the password
            raise interrupt.with_traceback(None) from None
        # It was being destroyed after its loop, which is no failure of the server; psycopg tried to
        # take its socket out of that loop.
        raise GeneratorExit

    def _spare(self, slot: Slot | None) -> None:
        """Raise what the server said the last time, while it must not be asked again."""
        if (failure := self.refusal()) is not None:
            self._fail(failure, slot, probe=False, asked=False)

    def _met(
        self, failure: ConnectFailure | None, began: float, slot: Slot | None, *, probe: bool
    ) -> None:
        """Record the result of a connect, and raise its failure."""
        now = monotonic()
        self._gate.count_attempt(failure, now - began)
        if failure is None:
            login_pauses.accepted(self._account, self._login)
            if not probe:
                self._report(None, self._gate.note(None))
            return
        if failure.reason == "too_many_connections":
            self.crowded = True
        if failure.lasting:
            login_pauses.refused(self._account, self._login, failure, now)
        self._fail(failure, slot, probe=probe, asked=True)

    def _fail(
        self, failure: ConnectFailure, slot: Slot | None, *, probe: bool, asked: bool
    ) -> NoReturn:
        if slot is not None:
            slot.release()
        if not probe:
            self._report(failure, self._gate.note(failure))
            if self._on_failure is not None and not self.retired:
                self._on_failure(self, failure, asked)
        raise failure.error(self.config.name)

    def _report(self, failure: ConnectFailure | None, outage: float | None) -> None:
        """Emit that connects began to fail, or work again: once for each change of state."""
        if failure is not None and outage == 0.0:
            events.emit(
                "connect.failed",
                database=self.config.name,
                reason=failure.reason,
                error=failure.text,
            )
        elif failure is None and outage is not None:
            events.emit("connect.recovered", database=self.config.name, outage=round(outage, 3))

    def _admit(self, connection: ConnectionT, slot: Slot | None) -> ConnectionT:
        if slot is not None:
            connection.slot = slot
            slot.fill(connection)
        # Nobody has used it yet, and it may wait in the pool for long: the first checkout looks
        # at it, as at one that came back a while ago.
        connection.returned_at = monotonic() - FRESH
        connection.expires_at = age_limit(self._settings.max_lifetime, random.random())  # noqa: S311 - jitter, no secret
        return connection
