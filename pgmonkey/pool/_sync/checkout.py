# Generated from _async/checkout.py by .ci/sync_code: edit that file.
"""A checkout of a sync handle: from entering an `with` block to leaving it."""

from __future__ import annotations

from sys import _getframe
from time import clock_gettime
from typing import TYPE_CHECKING
from weakref import ref

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from pgmonkey.pool import messages
from pgmonkey.pool._sync.connection import IN_ERROR
from pgmonkey.pool._sync.pool import FRESH, LONG_IDLE
from pgmonkey.pool._sync.waiting import is_elsewhere
from pgmonkey.pool.checkout import BY_HAND, ENTERED, PAIRED, ROLLED_BACK, Checkout
from pgmonkey.pool.clock import CLOCK
from pgmonkey.pool.failures import drop_frames
from pgmonkey.pool.stats import FOLD_AT

if TYPE_CHECKING:
    from pgmonkey.pool._sync.connection import SyncPooledConnection
    from pgmonkey.pool._sync.pool import SyncPool


class SyncCheckout(Checkout):
    """Borrow one connection of a sync handle."""

    __slots__ = ()

    def enter(self) -> SyncPooledConnection:
        """Return a connection that was alive a moment ago.

        The way of every checkout: one lap of the loop if nothing is wrong. It takes no lock of
        ours, logs nothing, and asks the server nothing.
        """
        timeout = None
        if self.stage != PAIRED:
            self.enter_alone()
            timeout = self.timeout
        self.stage = ENTERED
        handle = self.handle
        began = asked = self.began = self.taken = clock_gettime(CLOCK)
        connection = None
        if handle.keeps_stacks:
            self.keep_stack(_getframe(1))
        pool: SyncPool | None = handle.pools.get(None)
        if pool is None or pool.target is not handle.version:
            pool = handle.pool_here()
        self.pool = pool
        if pool.guarded:
            pool.admit(self)
        left = timeout = pool.timeout if timeout is None else timeout
        try:
            try:
                pool.waiting.add(self)
                while True:
                    try:
                        connection = recent.pop() if (recent := pool.recent) else pool.getconn(left)
                        connection.holder = ref(self, pool.on_lost)
                    except IndexError:
                        connection = None  # another thread took the recent one
                    except PoolClosed as closed:
                        # Another psycopg_pool took its place while this client queued. Nothing was
                        # sent, so nothing is repeated.
                        pool.raise_if_hopeless()
                        pool = self._go_on(pool, closed)
                    else:
                        # One that came back before it was asked for was there at once; a look at the
                        # clock costs as much as the rest of this.
                        if connection.returned_at <= asked:
                            now = asked
                        else:
                            now = clock_gettime(CLOCK)
                            pool.stats.queued += 1
                        if (
                            connection.version >= pool.floor
                            and now < connection.expires_at
                            and not pool.examined
                            and not connection.pgconn.transaction_status  # IDLE is 0
                            and (
                                (idle := now - connection.returned_at) < FRESH
                                or (idle < LONG_IDLE and connection.is_alive())
                            )
                        ) or pool.is_fit(connection, left - (now - asked)):
                            self.taken = now
                            connection.borrower = self.code
                            self.connection = connection
                            return connection
                        connection = None
                    asked = clock_gettime(CLOCK)
                    left = timeout - (asked - began)
                    if left <= 0.0:
                        raise PoolTimeout
            finally:
                pool.waiting.discard(self)
        except PoolTimeout as timed_out:
            drop_frames(timed_out)
            raise pool.timed_out(clock_gettime(CLOCK) - began) from None
        except BaseException as error:
            pool.waiting.discard(self)  # an interrupt may come inside of the step above
            pool.stats.errors["other"] += 1
            pool.interrupted(connection, error)
            raise

    __enter__ = enter

    def enter_by_hand(self) -> SyncPooledConnection:
        """Return a connection that keeps this checkout alive, until it is put back or dropped."""
        connection = self.enter()
        self.hand_over()
        return connection

    def hand_over(self) -> None:
        """Let the connection keep this checkout alive: its borrower keeps nothing else."""
        connection = self.connection
        self.connection = None  # else each would keep the other alive
        self.pool.connections.lend(connection)
        connection.holder = self.itself

    def leave_by_hand(self, connection: SyncPooledConnection) -> None:
        """Roll back, and give back a connection that was handed over."""
        self.pool.connections.keep(connection)
        self.connection = connection
        self.put_back()

    def put_back(self) -> None:
        """Roll back, and give the connection back.

        Raises:
            RuntimeError: it belongs to another event loop, which runs.
        """
        pool, connection = self.pool, self.connection
        if pool.loop is None and not (connection.pgconn.transaction_status or connection.changed):
            self.leave()  # as most are: there is nothing to roll back
            return
        if not pool.inherited and is_elsewhere(pool.loop):
            raise messages.other_loop(self.handle.name)
        self.leave(BY_HAND)

    def _go_on(self, pool: SyncPool, closed: PoolClosed) -> SyncPool:
        """Queue again, in the pool that there is now."""
        drop_frames(closed)
        now: SyncPool = self.handle.pool_here()
        if now is not pool:
            pool.waiting.discard(self)
            self.pool = now
            now.waiting.add(self)
        return now

    def leave(self, kind: object = None, error: object = None, _trace: object = None) -> None:
        """Commit or roll back, and give the connection back."""
        pool: SyncPool = self.pool
        connection: SyncPooledConnection = self.connection
        out = True
        demoted = False
        try:
            if pool.inherited or (kind is not None and pool.is_over()):
                pool.leave_behind(connection)
                return
            try:
                # Anything but IDLE, which is 0, or changed: it is not to be handed out as it is.
                status = connection.pgconn.transaction_status or connection.changed
                if status or kind is not None:
                    _end(self, connection, failed=kind is not None)
                    if isinstance(error, BaseException):
                        connection.note_errors(error)
                    status = connection.pgconn.transaction_status or connection.changed
                if pool.wants_primary:
                    status = True
                    demoted = pool.is_demoted(connection, error)
                    status = connection.pgconn.transaction_status or connection.changed
            finally:
                now = connection.returned_at = clock_gettime(CLOCK)
                connection.holder = self.connection = None
                if connection.version < pool.version:
                    pool.take_back(connection)
                elif status or pool.recent or pool.waiting or not pool.keeps_recent:
                    connection.give_back(connection)
                else:
                    pool.recent.append(connection)
                    if pool.waiting:  # one came meanwhile, and may not have seen it
                        pool.pass_on_recent()
                out = False
                taken = self.taken
                pool.record((taken - self.began, now - taken))
                if len(pool.records) >= FOLD_AT:
                    pool.stats.fold()
                if self.stage != ENTERED:
                    self.report(now - taken)
                if demoted:
                    pool.leave_server(connection.link.driver)
        except BaseException as interrupt:
            if out:
                pool.interrupted(connection, interrupt)
            raise

    __exit__ = leave


def _end(checkout: SyncCheckout, connection: SyncPooledConnection, *, failed: bool) -> None:
    """Commit or roll back what a block has left open.

    Of a block that failed, its own exception is the one that the caller gets.

    Raises:
        LeftOpenError: the block was in the middle of something.
    """
    status = connection.pgconn.transaction_status
    if connection.changed or connection.lock.locked():
        what = connection.left_open()
        if what is not None:
            connection.evict()
            if not failed:
                raise messages.left_open(checkout, what)
            return
        status = connection.pgconn.transaction_status
    if not status:
        return
    try:
        if failed:
            if not connection.closed:
                connection.rollback()
        elif connection.broken or not connection.closed:
            # If the connection broke unnoticed, this raises: the block is not committed. If the
            # block itself has closed it, there is nothing to commit.
            connection.commit()
            if status == IN_ERROR:  # the server has rolled back instead
                checkout.stage |= ROLLED_BACK
    except psycopg.Error:
        if not failed:
            raise
        connection.close()  # if it cannot roll back, no one else gets it
    finally:
        if connection.closed:
            if connection.broken:
                checkout.pool.suspect_all()
            connection.close()  # a broken one still has its socket and its slot
