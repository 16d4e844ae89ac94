"""The sync handle and its checkouts: what clients of a `normal` or `pool` database call."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Iterator
from contextlib import contextmanager
from sys import _getframe
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
from psycopg.errors import ReadOnlySqlTransaction

from pgmonkey.pool.checkout import ENTERED, PAIRED, REPORTED, Checkout, EnterHalf, ExitHalf
from pgmonkey.pool.connection import FRESH, LONG_IDLE, PooledConnection, SyncPool
from pgmonkey.pool.database import Borrowed, BorrowedCursor, Database, wrong_side
from pgmonkey.pool.generation import Generation
from pgmonkey.pool.limits import Gate
from pgmonkey.pool.refusal import checkout_timeout, guard
from pgmonkey.pool.sync_side import SyncSide
from pgmonkey.pool.usage import FOLD_AT, Usage


class Nothing(Awaitable[Any]):
    """The result of `open` and `close` of a sync handle; awaiting it is an error that says why."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Database) -> None:
        self._handle = handle

    def __await__(self) -> Generator[Any, None, Any]:
        raise wrong_side(self._handle)


class SyncCheckout(Checkout):
    """Borrow one connection of a sync handle."""

    __slots__ = ()

    def enter(self) -> PooledConnection:
        """Return a connection that was alive a moment ago.

        The way of every checkout: one lap of the loop if nothing is wrong. It takes no lock
        of ours, logs nothing, and asks the server nothing.
        """
        timeout: float | None = None
        if self.stage != PAIRED:
            self.enter_alone()
            self.owner = get_ident()
            self.stage = ENTERED
            timeout = self.timeout
        handle: SyncDatabase = self.handle
        began = self.began = monotonic()
        self.connection = None
        self.taken = 0.0
        if handle.keeps_stacks:
            self.keep_stack(_getframe(1))
        asked = began
        generation = handle.generation
        if generation is None:
            generation = handle.obtain(began, timeout)
        left = timeout = generation.timeout if timeout is None else timeout
        while True:
            self.generation = generation
            if generation.guarded:
                guard(handle, self, generation)
            got = False
            try:
                generation.checkouts.add(self)
                connection: PooledConnection = generation.getconn(left)
                got = True
                # One that had come back before it was asked for was there at once; a look at the
                # clock costs as much as the rest of this. A new one counts as come back long ago.
                now = (
                    asked
                    if connection.returned_at <= asked and connection.made_at <= asked
                    else monotonic()
                )
                # Between reading the generation and getting the connection a swap may have
                # happened; a connection of the retired one must not be handed out after it.
                if handle.generation is not generation:
                    generation.putconn(connection)
                elif (
                    now < connection.expires_at
                    and not generation.examined
                    and (
                        (idle := now - connection.returned_at) < FRESH
                        or (idle < LONG_IDLE and connection.is_alive())
                    )
                ) or handle.is_fit(connection, generation, left - (now - began)):
                    self.connection = connection
                    self.taken = now
                    return connection
                handle.let_go(self, generation)
            except psycopg_pool.PoolTimeout:
                handle.let_go(self, generation)
                handle.reclaim(generation)
                if handle.is_clogged(generation):
                    handle.replace_later(generation, "queue")
                raise checkout_timeout(handle, generation, monotonic() - began) from None
            except psycopg_pool.PoolClosed:
                # The generation was retired while this client queued: it goes on with the next
                # one, with what is left of its time. Nothing was sent, so nothing is repeated.
                handle.let_go(self, generation)
            except BaseException as error:
                self.connection = None
                handle.let_go(self, generation)
                handle.usage.errors["other"] += 1
                if got or not isinstance(error, Exception):
                    # Interrupted between the pool and the block: the pool counts a connection as
                    # checked out that no block has, or that it was about to hand over.
                    handle.replace_later(generation, "interrupted")
                raise
            asked = monotonic()
            left = timeout - (asked - began)
            if left <= 0.0:
                raise checkout_timeout(handle, generation, asked - began)
            generation = handle.generation
            if generation is None:
                generation = handle.obtain(began, timeout)

    __enter__ = enter

    def leave(self, kind: object = None, error: object = None, _trace: object = None) -> None:
        """Commit or roll back, and give the connection back."""
        out = True
        try:
            connection: PooledConnection = self.connection
            handle: SyncDatabase = self.handle
            generation: Generation[SyncPool] = self.generation
            try:
                if connection.pgconn.transaction_status:  # anything but IDLE, which is 0
                    _end(connection, failed=kind is not None)
                if generation.resets:
                    _reset(connection, autocommit=generation.applied.config.autocommit)
            finally:
                self.connection = None
                now = connection.returned_at = monotonic()
                if generation.gives_up:
                    generation.gives_up = False
                    connection.close()
                generation.putconn(connection)
                generation.checkouts.discard(self)
                out = False
                taken = self.taken
                handle.record((taken - self.began, now - taken))
                if len(handle.records) >= FOLD_AT:
                    handle.usage.fold()
                if generation.retired:
                    handle.drained_if_empty(generation)
                if self.stage == REPORTED:
                    handle.returned_late(self, now)
                if (
                    error is not None
                    and generation.wants_primary
                    and isinstance(error, ReadOnlySqlTransaction)
                ):
                    # This server is no primary any more: all its connections are of no use.
                    handle.replace_later(generation, "standby")
        except BaseException:
            if out:
                self._lose()
            raise

    def reclaim(self) -> bool:
        """Close the connection, so that what the block has done is not committed."""
        connection, self.connection = self.connection, None
        if connection is None:
            return False
        connection.close()
        self.generation.putconn(connection)
        self.handle.let_go(self, self.generation)
        return True

    def _lose(self) -> None:
        """Give up a generation whose pool may count a connection as checked out that no block has.

        An interrupt came on the way from the block to the pool. The connection is not closed
        here: the pool may have given it to the next one already.
        """
        handle: SyncDatabase = self.handle
        self.connection = None
        handle.let_go(self, self.generation)
        handle.replace_later(self.generation, "interrupted")

    __exit__ = leave

    def __aenter__(self) -> Any:
        raise wrong_side(self.handle)

    def __aexit__(self, *exc_info: object) -> Any:
        raise wrong_side(self.handle)


def _end(connection: PooledConnection, *, failed: bool) -> None:
    """Commit or roll back what a block has left open.

    Of a block that failed, its own exception is the one that the caller gets.
    """
    try:
        if failed:
            if not connection.closed:
                connection.rollback()
        elif connection.broken or not connection.closed:
            # A connection that broke unnoticed must not pass for a commit; one that the block
            # itself has closed has nothing to commit.
            connection.commit()
    except psycopg.Error:
        if not failed:
            raise
        connection.close()  # what cannot roll back is not given to anybody else
    finally:
        if connection.closed:
            connection.close()  # a broken one still has its socket and its slot


def _reset(connection: PooledConnection, *, autocommit: bool) -> None:
    """Reset the session of a connection for its next borrower; close it if that fails."""
    if connection.closed:
        return
    try:
        connection.autocommit = True
        connection.execute("DISCARD ALL")
        connection.autocommit = autocommit
    except psycopg.Error:
        connection.close()


class SyncDatabase(SyncSide):
    """The handle of a `normal` or `pool` database.

    Each of its pools costs two threads; a handle that was never used costs none.
    """

    checkout_class = SyncCheckout
    if not TYPE_CHECKING:
        __enter__ = EnterHalf()
        __exit__ = ExitHalf()

        def __aenter__(self) -> Any:
            raise wrong_side(self)

        def __aexit__(self, *exc_info: object) -> Any:
            raise wrong_side(self)

    def connection(self, timeout: float | None = None) -> Borrowed:
        """Do what `Database.connection` says."""
        return self._checkout(timeout)

    def _checkout(self, timeout: float | None) -> SyncCheckout:
        return SyncCheckout.bound(self, timeout, _getframe(2))

    def transaction(
        self, timeout: float | None = None, *, force_rollback: bool = False
    ) -> Borrowed:
        """Do what `Database.transaction` says."""
        return self._transaction(self._checkout(timeout), force_rollback)  # type: ignore[return-value]  # its async half is never there: wrong side

    @contextmanager
    def _transaction(self, checkout: SyncCheckout, force_rollback: bool) -> Iterator[Any]:
        with checkout as connection, connection.transaction(force_rollback=force_rollback):
            yield connection

    def cursor(self, timeout: float | None = None, **options: Any) -> BorrowedCursor:
        """Do what `Database.cursor` says."""
        return self._cursor(self._checkout(timeout), options)  # type: ignore[return-value]  # its async half is never there: wrong side

    @contextmanager
    def _cursor(self, checkout: SyncCheckout, options: dict[str, Any]) -> Iterator[Any]:
        with checkout as connection, connection.cursor(**options) as cursor:
            yield cursor

    def open(self, timeout: float | None = None) -> Awaitable[Database]:
        """Do what `Database.open` says."""
        if self.generation is None:
            self.obtain(monotonic(), timeout)
        return Nothing(self)

    def close(self) -> Awaitable[None]:
        """Do what `Database.close` says."""
        self.shut(None)
        return Nothing(self)

    def __await__(self) -> Generator[Any, None, Database]:
        raise wrong_side(self)

    def sides(self) -> list[Any]:
        """Return the event loops that this handle lives in: none."""
        return []

    def catch_up(self, now: float) -> None:
        """Do nothing: a sync handle has no loop that could be behind."""

    def patrol(self, now: float) -> None:
        """Do what is due: see `Database.patrol`; and try again to connect, when clients could not."""
        super().patrol(now)
        self.bury_overdue(now)
        if self.wants_another_try(now):
            self.start()

    def forget(self) -> None:
        """Forget the parent's connections in a child process, without touching them."""
        super().forget()
        self._count_in(Usage())
        self.loose.clear()

    def _parts(self) -> tuple[list[Generation[Any]], list[Generation[Any]], list[Gate]]:
        generation = self.generation
        return [generation] if generation else [], list(self.retired), [self.gate]
