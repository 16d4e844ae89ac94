"""The sync handle: what clients of a `normal` or `pool` database call."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Iterator
from contextlib import contextmanager
from sys import _getframe
from time import monotonic
from typing import TYPE_CHECKING, Any

from pgmonkey.pool.checkout import EnterHalf, ExitHalf
from pgmonkey.pool.database import Borrowed, BorrowedCursor, Database, wrong_side
from pgmonkey.pool.gate import Gate
from pgmonkey.pool.generation import Generation
from pgmonkey.pool.sync_checkout import SyncCheckout
from pgmonkey.pool.sync_side import SyncSide
from pgmonkey.pool.usage import Usage


class Nothing(Awaitable[Any]):
    """Be what `open` and `close` of a sync handle return: all is done, there is nothing to await."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Database) -> None:
        self._handle = handle

    def __await__(self) -> Generator[Any, None, Any]:
        raise wrong_side(self._handle)


class SyncDatabase(SyncSide):
    """Be the handle of a `normal` or `pool` database.

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
        """Start anew in a child process: the parent's connections are not ours to touch."""
        super().forget()
        self._count_in(Usage())
        self.loose.clear()

    def _parts(self) -> tuple[list[Generation[Any]], list[Generation[Any]], list[Gate]]:
        generation = self.generation
        return [generation] if generation else [], list(self.retired), [self.gate]
