"""The async handle and its checkouts: an `async` or `async_pool` database, in any event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from sys import _getframe
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import psycopg
import psycopg_pool
from psycopg.errors import ReadOnlySqlTransaction

from pgmonkey.errors import ConnectError, ReloadRejectedError
from pgmonkey.pool.checkout import ENTERED, PAIRED, REPORTED, Checkout, EnterHalf, ExitHalf
from pgmonkey.pool.connection import FRESH, LONG_IDLE, AsyncPool, AsyncPooledConnection
from pgmonkey.pool.database import Borrowed, BorrowedCursor, Database, wrong_side
from pgmonkey.pool.dialer import Dialer
from pgmonkey.pool.generation import Candidate, Generation
from pgmonkey.pool.limits import LONGEST_FAREWELL, Budget, Gate
from pgmonkey.pool.loop_resources import close_stranded
from pgmonkey.pool.loop_side import Forcing, LoopSide
from pgmonkey.pool.refusal import checkout_timeout, guard
from pgmonkey.pool.seeds import LONGEST_WARMING
from pgmonkey.pool.target import Applied
from pgmonkey.pool.usage import FOLD_AT, Usage

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig


#: What may end a wait without leaving the pool's count wrong; a coroutine that is being destroyed
#: cannot wait for anything besides.
_FORESEEN = (Exception, asyncio.CancelledError, GeneratorExit)
#: psycopg_pool waits with `asyncio.wait_for`. Before Python 3.12 that function drops a cancellation
#: which comes at the same moment as its result: the task would go on as if it were not cancelled.
_DROPS_CANCELLATIONS: Final = sys.version_info < (3, 12)


class AsyncCheckout(Checkout):
    """Borrow one connection of an async handle, in the running loop."""

    __slots__ = ()

    async def enter(self) -> AsyncPooledConnection:
        """Return a connection that was alive a moment ago; see `SyncCheckout.enter`."""
        if self.stage != PAIRED:
            self.enter_alone()
        self.stage = ENTERED
        handle: AsyncDatabase = self.handle
        began = self.began = monotonic()
        owner = self.owner = asyncio.current_task()
        cancelled = owner.cancelling() if _DROPS_CANCELLATIONS and owner else 0
        self.connection = None
        self.taken = 0.0
        if handle.keeps_stacks:
            self.keep_stack(_getframe(1))
        timeout = self.timeout
        asked, left = began, -1.0
        side = handle.side()
        while True:
            generation = side.generation
            if generation is None or generation.applied.since != handle.target.applied.since:
                generation = await side.obtain(began, timeout)
            if left < 0.0:
                left = timeout = generation.timeout if timeout is None else timeout
            self.generation = generation
            if generation.guarded:
                guard(handle, self, generation)
            try:
                generation.checkouts.add(self)
                connection: AsyncPooledConnection = await generation.getconn(left)
                if _DROPS_CANCELLATIONS and owner and owner.cancelling() > cancelled:
                    await generation.putconn(connection)
                    raise asyncio.CancelledError
                # One that had come back before it was asked for was there at once; a look at the
                # clock costs as much as the rest of this. A new one counts as come back long ago.
                now = (
                    asked
                    if connection.returned_at <= asked and connection.made_at <= asked
                    else monotonic()
                )
                if side.generation is not generation:
                    await generation.putconn(connection)
                elif (
                    now < connection.expires_at
                    and not generation.examined
                    and (
                        (idle := now - connection.returned_at) < FRESH
                        or (idle < LONG_IDLE and connection.is_alive())
                    )
                ) or await side.is_fit(connection, generation, left - (now - began)):
                    self.connection = connection
                    self.taken = now
                    return connection
                side.let_go(self, generation)
            except psycopg_pool.PoolTimeout:
                side.let_go(self, generation)
                if side.is_clogged(generation):
                    await side.replace_later(generation, "queue")
                raise checkout_timeout(handle, generation, monotonic() - began) from None
            except psycopg_pool.PoolClosed:
                # The generation was retired while this client queued: it goes on with the next
                # one, with what is left of its time. Nothing was sent, so nothing is repeated.
                side.let_go(self, generation)
            except BaseException as error:
                self.connection = None
                side.let_go(self, generation)
                generation.dialer.lose()
                handle.usage.errors["other"] += 1
                if not isinstance(error, _FORESEEN):
                    # Interrupted between the pool and the block: the pool counts a connection as
                    # checked out that no block has, or that it was about to hand over.
                    await side.replace_later(generation, "interrupted")
                raise
            asked = monotonic()
            left = (timeout or 0.0) - (asked - began)
            if left <= 0.0:
                raise checkout_timeout(handle, generation, asked - began)

    __aenter__ = enter

    async def leave(self, kind: object = None, error: object = None, _trace: object = None) -> None:
        """Commit or roll back, and give the connection back."""
        if kind is not None and self._is_stranded():
            return
        out = True
        try:
            connection: AsyncPooledConnection = self.connection
            handle: AsyncDatabase = self.handle
            generation: Generation[AsyncPool] = self.generation
            try:
                if connection.pgconn.transaction_status:  # anything but IDLE, which is 0
                    await _end(connection, failed=kind is not None)
                if generation.resets:
                    await _reset(connection, autocommit=generation.applied.config.autocommit)
            finally:
                self.connection = None
                now = connection.returned_at = monotonic()
                generation.checkouts.discard(self)
                if generation.gives_up:
                    generation.gives_up = False
                    await connection.close()
                await generation.putconn(connection)
                out = False
                taken = self.taken
                handle.record((taken - self.began, now - taken))
                if len(handle.records) >= FOLD_AT:
                    handle.usage.fold()
                if generation.retired:
                    handle.side().drained_if_empty(generation)
                if self.stage == REPORTED:
                    handle.side().returned_late(self, now)
                if (
                    error is not None
                    and generation.wants_primary
                    and isinstance(error, ReadOnlySqlTransaction)
                ):
                    # This server is no primary any more: all its connections are of no use.
                    await handle.side().replace_later(generation, "standby")
        except BaseException as interrupt:
            if out and not isinstance(interrupt, GeneratorExit):  # nothing can be awaited then
                await self._lose()
            raise

    def _is_stranded(self) -> bool:
        """Tell whether the loop was closed under this block, whose coroutine is being destroyed.

        Nothing can be awaited then, and no pool wants the connection: it is closed here.
        """
        owner: asyncio.Task[Any] | None = self.owner
        if owner is None or not owner.get_loop().is_closed():
            return False
        connection: AsyncPooledConnection = self.connection
        self.connection = None
        self.generation.checkouts.discard(self)
        connection.hang_up()
        self.handle.record((self.taken - self.began, monotonic() - self.taken))
        return True

    async def _lose(self) -> None:
        """Give up a generation whose pool may count a connection as checked out that no block has.

        An interrupt, or a second cancellation, came on the way from the block to the pool. The
        connection is not closed here: the pool may have given it to the next one already.
        """
        handle: AsyncDatabase = self.handle
        side = handle.side()
        self.connection = None
        side.let_go(self, self.generation)
        await side.replace_later(self.generation, "interrupted")

    __aexit__ = leave

    def __enter__(self) -> Any:
        raise wrong_side(self.handle)

    def __exit__(self, *exc_info: object) -> Any:
        raise wrong_side(self.handle)


async def _end(connection: AsyncPooledConnection, *, failed: bool) -> None:
    """Commit or roll back what a block has left open.

    Of a block that failed, its own exception is the one that the caller gets.
    """
    try:
        if failed:
            if not connection.closed:
                await connection.rollback()
        elif connection.broken or not connection.closed:
            # A connection that broke unnoticed must not pass for a commit; one that the block
            # itself has closed has nothing to commit.
            await connection.commit()
    except psycopg.Error:
        if not failed:
            raise
        await connection.close()  # what cannot roll back is not given to anybody else
    finally:
        if connection.closed:
            await connection.close()  # a broken one still has its socket and its slot


async def _reset(connection: AsyncPooledConnection, *, autocommit: bool) -> None:
    """Reset the session of a connection for its next borrower; close it if that fails."""
    if connection.closed:
        return
    try:
        await connection.set_autocommit(True)
        await connection.execute("DISCARD ALL")
        await connection.set_autocommit(autocommit)
    except psycopg.Error:
        await connection.close()


class AsyncDatabase(Database):
    """The handle of an `async` or `async_pool` database, in any number of event loops.

    It costs no thread; each loop that uses it has a pool of its own.
    """

    checkout_class = AsyncCheckout
    if not TYPE_CHECKING:
        __aenter__ = EnterHalf()
        __aexit__ = ExitHalf()

        def __enter__(self) -> Any:
            raise wrong_side(self)

        def __exit__(self, *exc_info: object) -> Any:
            raise wrong_side(self)

    def __init__(self, applied: Applied, connection_type: ConnectionType, budget: Budget) -> None:
        super().__init__(applied, connection_type, budget)
        self._sides: dict[asyncio.AbstractEventLoop, LoopSide] = {}
        # Guards `_sides`. Never held while waiting.
        self._sides_lock = threading.Lock()
        self._latest: tuple[asyncio.AbstractEventLoop | None, LoopSide | None] = (None, None)
        self._force_due = False
        _handles.add(self)

    def side(self) -> LoopSide:
        """Return the side of the running loop.

        Raises:
            RuntimeError: no loop is running.
        """
        loop = asyncio.get_running_loop()
        latest, side = self._latest
        if latest is not loop or side is None:
            with self._sides_lock:
                side = self._sides.get(loop)
                if side is None:
                    side = self._sides[loop] = LoopSide(self, loop)
            self._latest = (loop, side)
            self._abandon_closed_loops()
        return side

    def sides(self) -> list[LoopSide]:
        """Return the sides of all loops that are not closed."""
        self._abandon_closed_loops()
        with self._sides_lock:
            return list(self._sides.values())

    def _abandon_closed_loops(self) -> None:
        """Close the connections of loops that have ended: no task can use them any more."""
        with self._sides_lock:
            closed = [loop for loop in self._sides if loop.is_closed()]
            abandoned = [self._sides.pop(loop) for loop in closed]
        for side in abandoned:
            side.abandon()
        close_stranded()

    def connection(self, timeout: float | None = None) -> Borrowed:
        """Do what `Database.connection` says."""
        return self._checkout(timeout)

    def _checkout(self, timeout: float | None) -> AsyncCheckout:
        return AsyncCheckout.bound(self, timeout, _getframe(2))

    def transaction(
        self, timeout: float | None = None, *, force_rollback: bool = False
    ) -> Borrowed:
        """Do what `Database.transaction` says."""
        return self._transaction(self._checkout(timeout), force_rollback)  # type: ignore[return-value]  # its sync half is never there: wrong side

    @asynccontextmanager
    async def _transaction(
        self, checkout: AsyncCheckout, force_rollback: bool
    ) -> AsyncIterator[Any]:
        async with checkout as connection, connection.transaction(force_rollback=force_rollback):
            yield connection

    def cursor(self, timeout: float | None = None, **options: Any) -> BorrowedCursor:
        """Do what `Database.cursor` says."""
        return self._cursor(self._checkout(timeout), options)  # type: ignore[return-value]  # its sync half is never there: wrong side

    @asynccontextmanager
    async def _cursor(self, checkout: AsyncCheckout, options: dict[str, Any]) -> AsyncIterator[Any]:
        async with checkout as connection, connection.cursor(**options) as cursor:
            yield cursor

    async def open(self, timeout: float | None = None) -> Database:
        """Do what `Database.open` says."""
        if self._force_due:
            self._force_due = False
            await self.force_reload()
        await self.side().obtain(monotonic(), timeout)
        return self

    def __await__(self) -> Generator[Any, None, Database]:
        return self.open().__await__()

    def start(self) -> None:
        """Begin to open in the running loop, without waiting for it."""
        side = self.side()
        if side.generation is None:
            side.refuse_if_gone()
            side.move()

    async def close(self) -> None:
        """Do what `Database.close` says."""
        await self._shut()

    async def _shut(self) -> None:
        here = asyncio.get_running_loop()
        sides = self.sides()
        for side in sides:  # before the wait, which may be cancelled
            if side.loop() is not here:
                side.shut_soon()
        for side in sides:
            if side.loop() is here:
                await side.shut()

    def shut(self, gone: Exception) -> list[LoopSide]:
        """End this handle for good, from any thread.

        Returns:
            The sides, each of which closes on its own loop as soon as that loop turns.
        """
        self.target.gone = gone
        sides = self.sides()
        for side in sides:
            side.gate.wake()
            side.shut_soon()
        return sides

    def patrol(self, now: float) -> None:
        """Do what is due: see `Database.patrol`; and try again to connect, when clients could not."""
        super().patrol(now)
        self.catch_up(now)
        for side in self.sides():
            if side.wants_another_try(now):
                side.start_soon()

    def is_draining(self) -> bool:
        """Do what `Database.is_draining` says; a loop that stands still has some left."""
        return super().is_draining() or any(side.is_behind() for side in self.sides())

    def catch_up(self, now: float) -> None:
        """Let the loops that could not move to the newest configuration try again.

        Args:
            now: The monotonic clock.
        """
        for side in self.sides():
            side.catch_up(now)

    # Reload: prepare a candidate, which may fail, then swap to it, which may not.

    def prepare(self, applied: Applied) -> Candidate[AsyncPool]:
        """Probe a configuration with one plain connection, if any loop has a generation open.

        The probe is sync, so it needs no loop and no loop can hold it up. Each loop makes its
        connections itself: now if it turns, else when it comes to it.

        Raises:
            ConnectError: the probe failed; what runs goes on.
        """
        candidate: Candidate[AsyncPool] = Candidate(applied, None, None)
        # After a removal a loop that has not turned yet may still have connections to close:
        # there is nothing to replace.
        gone = self.target.gone is not None
        sides = [] if gone else [side for side in self.sides() if side.generation is not None]
        if applied.since != self.target.applied.since and sides:
            side = sides[0]
            # The probe counts against the connections of one loop, beyond which there may be
            # one more; when even that is taken, by an earlier move, it waits for it to end.
            dialer = Dialer(applied.config, self.connection_type, side.gate)
            slot = side.gate.wait(
                side.is_gone, server=dialer.server, beyond=1, timeout=LONGEST_FAREWELL
            )
            if slot is None and self.share.is_limited:
                slot = side.wait_for_room(dialer)
            if slot is None:
                raise side.no_room(applied.config)
            try:
                dialer.dial(slot, probe=True).close()
            except ConnectError as error:
                # The login was good, or this error would not have come: each loop makes room.
                if error.reason != "too_many_connections":
                    raise
            here = threading.get_ident()  # a loop whose thread reloads cannot run now
            deadline = monotonic() + 2 * LONGEST_WARMING
            try:
                making = [side.make_ready_soon(applied) for side in sides if side.thread != here]
                for made in making:
                    made.wait(max(0.0, deadline - monotonic()))
            except BaseException:  # interrupted: the caller does not get the candidate
                self.drop(candidate)
                raise
        return candidate

    def drop(self, candidate: Candidate[AsyncPool]) -> None:
        """Throw a candidate away; its probe is closed already."""
        for side in self.sides():
            side.drop_ready_soon(candidate.applied)

    def swap_to(self, candidate: Candidate[AsyncPool]) -> bool:
        """Publish the candidate to every loop; each swaps at its next turn, or next checkout."""
        self.target.applied = candidate.applied
        for side in self.sides():
            side.gate.wake()
            side.move_soon()
        return True

    def request_reload(self) -> None:
        """Let the next `await` of this handle replace the generation of its loop."""
        self._force_due = True

    async def force_reload(self, config: DatabaseConfig | None = None) -> None:
        """Replace the generations, though nothing may have changed; open nothing that is closed.

        Callers that ask while another one is at it, in the same loop, share its result.

        Args:
            config: What to run; default: what runs now.

        Raises:
            ReloadRejectedError: the first connection failed; the old generation keeps serving.
        """
        side = self.side()
        before = self.target.applied
        config = config or before.config
        forcing = side.forcing
        if forcing is None or forcing.candidate.config.digest != config.digest:
            forcing = side.forcing = Forcing(before, before.forced(config))
            self.target.applied = forcing.candidate
        if side.generation is None:
            side.forcing = None
            return
        forcing.waiting += 1
        try:
            await side.move_now()
        except ConnectError as error:
            self._take_back(side, forcing)
            raise ReloadRejectedError(
                error.text, database=self.name, reason=error.reason, hint=error.hint
            ) from None
        except BaseException:  # cancelled: no caller will get the result
            if forcing.waiting == 1:
                self._take_back(side, forcing)
            raise
        finally:
            forcing.waiting -= 1
            if not forcing.waiting and side.forcing is forcing:
                side.forcing = None
        for other in self.sides():
            if other is not side:
                other.move_soon()

    def _take_back(self, side: LoopSide, forcing: Forcing) -> None:
        """Let what ran before a forced reload be in force again, unless it has come to its swap."""
        if side.forcing is forcing:
            side.forcing = None
        current, candidate = side.generation, forcing.candidate
        swapped = current is not None and current.applied is candidate
        if self.target.applied is candidate and not swapped:
            self.target.applied = forcing.before

    def forget(self) -> None:
        """Forget the parent's loops and connections in a child process, without touching them."""
        _inherited.append(self._sides)
        self._sides_lock = threading.Lock()
        self._sides = {}
        self._latest = (None, None)
        self._count_in(Usage())
        self.loose.clear()

    def _parts(self) -> tuple[list[Generation[Any]], list[Generation[Any]], list[Gate]]:
        sides = self.sides()
        current = [side.generation for side in sides if side.generation is not None]
        retired = [generation for side in sides for generation in side.retired]
        return list(current), list(retired), [side.gate for side in sides]


_handles: Final[weakref.WeakSet[AsyncDatabase]] = weakref.WeakSet()
_inherited: Final[list[object]] = []


def _after_fork() -> None:
    for handle in list(_handles):
        handle.forget()


os.register_at_fork(after_in_child=_after_fork)
