"""The connection classes of our pools: psycopg's own, counted against the limits."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import psycopg
import psycopg_pool
from psycopg.pq import ConnStatus
from psycopg.rows import TupleRow

if TYPE_CHECKING:
    from pgmonkey.pool.limits import Slot

#: Seconds after its return in which a connection is taken to be alive without a look.
FRESH: Final = 0.1
#: Seconds after which an idle connection is asked for a sign of life before it is handed out:
#: a network may have forgotten it without telling either end.
LONG_IDLE: Final = 30.0
#: The most seconds that one sign of life is waited for; never more than a third of what the
#: checkout has left, so that another connection can be tried.
LONGEST_PING: Final = 2.0
# As a plain number: to compare with a member of an enumeration costs as much as the system call.
_BAD: Final = int(ConnStatus.BAD)
# A server that closed its side is seen by this flag only; reading would see nothing.
_HANG_UP: Final = (
    getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL
)


class _Pooled:
    """Hold what our pools know of a connection, beside what psycopg knows."""

    pgconn: psycopg.pq.abc.PGconn

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # No slots, and no defaults of the class: both would keep the attributes of a connection,
        # psycopg's own too, from the interpreter's fast way.
        self.slot: Slot | None = None
        #: When it was made, and when it came back last, on the monotonic clock.
        self.made_at = monotonic()
        self.returned_at = 0.0
        #: When it must not be handed out any more, on the monotonic clock.
        self.expires_at = float("inf")
        self._socket: select.poll | None = None
        super().__init__(*arguments, **options)

    def is_alive(self) -> bool:
        """Tell whether the server's end is still open, without asking the server.

        Costs one system call. It cannot see a server that is silent; `check_on_checkout` can.
        """
        if self.pgconn.status == _BAD:
            return False
        if self._socket is None:
            self._socket = select.poll()
            self._socket.register(
                self.pgconn.socket, select.POLLIN | getattr(select, "POLLRDHUP", 0)
            )
        events = self._socket.poll(0)
        if not events:
            return True
        if events[0][1] & _HANG_UP:
            return False
        try:
            self.pgconn.consume_input()  # a NOTIFY or a notice is no reason to drop it
        except psycopg.Error:
            return False
        return self.pgconn.status == ConnStatus.OK

    def is_standby(self) -> bool:
        """Tell whether the server said, with its last answer, that it is a standby."""
        return self.pgconn.parameter_status(b"in_hot_standby") == b"on"

    def _ask(self) -> None:
        """Send the shortest question there is: one message, no transaction."""
        self.pgconn.send_query(b"")

    def _has_answered(self) -> bool:
        """Take what is there of the answer, and tell whether that is all; never waits.

        Called when the socket may have something. An answer has several parts, of which any may
        fail to come: `get_result` would wait for the next one, and keep every thread of the
        process waiting with it, for it does not let go of the interpreter.
        """
        self.pgconn.flush()
        self.pgconn.consume_input()
        while not self.pgconn.is_busy():
            if self.pgconn.get_result() is None:
                return True
        return False

    def _is_in_order(self) -> bool:
        """Tell whether the connection may be used, after its answer."""
        return not self.pgconn.transaction_status  # IDLE is 0

    def _leave_gate(self, descriptor: int | None = None) -> None:
        slot, self.slot = self.slot, None
        if slot is None:
            if descriptor is not None:
                os.close(descriptor)
        elif descriptor is None:
            slot.release()
        else:
            slot.release_when_closed(descriptor)

    def hang_up(self) -> None:
        """Close the connection and give its slot back, in one step: a loop may be ending."""
        with self._leaving():
            pass

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        """Give the slot back when the server has seen the connection go."""
        descriptor = self._duplicate_socket()
        try:
            yield
            self.pgconn.finish()  # psycopg leaves the socket of a broken connection open
        finally:
            self._leave_gate(descriptor)

    def _duplicate_socket(self) -> int | None:
        """Return a duplicate of an open connection's socket, to see the server close its end."""
        if self.slot is None or self.pgconn.status == ConnStatus.BAD:
            return None
        try:
            return os.dup(self.pgconn.socket)
        except (OSError, psycopg.Error):
            return None  # no descriptor left: then the slot is free a little early


class PooledConnection(_Pooled, psycopg.Connection[TupleRow]):
    """The `psycopg.Connection` that a `normal` or `pool` handle hands out."""

    @classmethod
    def connect(  # type: ignore[override]  # psycopg's own arguments pass through
        cls,
        conninfo: str = "",
        *,
        make: Callable[[], PooledConnection] | None = None,
        **kwargs: Any,
    ) -> PooledConnection:
        """Make a connection; for a pool of ours, with the function that it was given.

        That function is the pool's only argument, so the pool object holds no secret.
        """
        if make is None:
            return super().connect(conninfo, **kwargs)
        return make()

    def ping(self, timeout: float) -> bool:
        """Ask the server for a sign of life, and wait for it no longer than this.

        It costs one round trip and leaves the connection idle. A server that is stopped or a
        network that is silent costs the timeout; the connection is of no use afterwards.

        Args:
            timeout: Seconds.
        """
        deadline = monotonic() + timeout
        reading = select.poll()
        reading.register(self.pgconn.socket, select.POLLIN)
        try:
            self._ask()
            while not self._has_answered():
                left = deadline - monotonic()
                if left <= 0 or not reading.poll(left * 1000):
                    return False
            return self._is_in_order()
        except psycopg.Error:
            return False

    def close(self) -> None:
        """Close the connection and give its slot back."""
        with self._leaving():
            super().close()

    def __del__(self) -> None:  # type: ignore[override]  # its second argument is psycopg's own affair
        self._leave_gate()
        super().__del__()


class AsyncPooledConnection(_Pooled, psycopg.AsyncConnection[TupleRow]):
    """The `psycopg.AsyncConnection` that an `async` or `async_pool` handle hands out."""

    @classmethod
    async def connect(  # type: ignore[override]  # psycopg's own arguments pass through
        cls,
        conninfo: str = "",
        *,
        make: Callable[[], Awaitable[AsyncPooledConnection]] | None = None,
        **kwargs: Any,
    ) -> AsyncPooledConnection:
        """Make a connection; for a pool of ours, with the function that it was given.

        A program may end while its pool is filling: see `cancel_soon`.
        """
        if make is None:
            return await super().connect(conninfo, **kwargs)
        try:
            return await make()
        finally:
            # Also after a success: before Python 3.12 `asyncio.wait_for` drops cancellations.
            if (task := asyncio.current_task()) and task.cancelling():
                cancel_soon(task)

    async def ping(self, timeout: float) -> bool:
        """Ask the server for a sign of life; see `PooledConnection.ping`."""
        loop = asyncio.get_running_loop()
        descriptor = self.pgconn.socket
        try:
            async with asyncio.timeout(timeout):
                self._ask()
                while not self._has_answered():
                    readable = loop.create_future()
                    loop.add_reader(descriptor, _set, readable)
                    try:
                        await readable
                    finally:
                        loop.remove_reader(descriptor)
                return self._is_in_order()
        except (psycopg.Error, TimeoutError):
            return False

    async def close(self) -> None:
        """Close the connection and give its slot back."""
        with self._leaving():
            await super().close()

    def __del__(self) -> None:  # type: ignore[override]  # its second argument is psycopg's own affair
        self._leave_gate()
        super().__del__()


SyncPool: TypeAlias = psycopg_pool.ConnectionPool[PooledConnection]
AsyncPool: TypeAlias = psycopg_pool.AsyncConnectionPool[AsyncPooledConnection]


def cancel_soon(worker: asyncio.Task[Any]) -> None:
    """Cancel a worker once more, at the next turn of the loop.

    psycopg_pool's workers take a cancellation for a failure of their work, and go on waiting for
    more of it: a program that ends meanwhile would never end.
    """
    asyncio.get_running_loop().call_soon(worker.cancel)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def age_limit(max_lifetime: float, jitter: float) -> float:
    """Return when a connection made now is too old to be handed out.

    Args:
        max_lifetime: Seconds.
        jitter: From 0 to 1; takes up to 5 % off, so that connections do not all end at once.
    """
    return monotonic() + max_lifetime * (1.0 - 0.05 * jitter)
