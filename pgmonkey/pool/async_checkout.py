"""The async checkout: from entering an `async with` block to leaving it."""

from __future__ import annotations

import asyncio
from sys import _getframe
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
from psycopg.errors import ReadOnlySqlTransaction

from pgmonkey.pool.checkout import ENTERED, PAIRED, REPORTED, Checkout
from pgmonkey.pool.connection import FRESH, LONG_IDLE, AsyncPooledConnection
from pgmonkey.pool.database import wrong_side
from pgmonkey.pool.generation import AsyncPool, Generation
from pgmonkey.pool.refusal import checkout_timeout, guard
from pgmonkey.pool.usage import FOLD_AT

if TYPE_CHECKING:
    from pgmonkey.pool.async_handle import AsyncDatabase

#: What may end a wait without leaving the pool's count wrong; a coroutine that is being destroyed
#: cannot wait for anything besides.
_FORESEEN = (Exception, asyncio.CancelledError, GeneratorExit)


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
        self.owner = asyncio.current_task()
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
                    # An interrupt on the way from the pool to the block: the pool counts a
                    # connection as out that nobody has, or that it was about to hand over.
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
        """Give up a generation whose pool may count a connection as out that nobody has.

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
    """Give a connection back as the next borrower shall find it; drop it if that fails."""
    if connection.closed:
        return
    try:
        await connection.set_autocommit(True)
        await connection.execute("DISCARD ALL")
        await connection.set_autocommit(autocommit)
    except psycopg.Error:
        await connection.close()
