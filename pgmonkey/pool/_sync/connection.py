# Generated from _async/connection.py by .ci/sync_code: edit that file.
"""The connection that a handle hands out: psycopg's own, with the version it was made with."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import ref

import psycopg
from psycopg import Transaction
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from pgmonkey.pool._sync.changes import SyncWatchedConnection
from pgmonkey.pool._sync.waiting import (
    Cancelled,
    cancel_again,
    is_elsewhere,
    wait_readable,
)
from pgmonkey.pool.checkout import ROLLED_BACK
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.hints import hinted_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType
    from weakref import ReferenceType

    from psycopg.pq.abc import PGresult

    from pgmonkey.pool._sync.waiting import SyncDriverPool
    from pgmonkey.pool.checkout import Checkout
    from pgmonkey.pool.connections import Connections

#: Seconds to wait until the server has closed its end of a connection that was closed here. A
#: server process counts against the limits of server and role until then; it takes milliseconds.
LONGEST_GOODBYE: Final = 0.8
#: Seconds to wait for the answer whether a session listens, or which process it is.
_LONGEST_QUESTION: Final = 2.0
#: The highest process id of Linux.
_HIGHEST_PID: Final = 2**22
#: The version of a connection that belongs to no pool any more.
NO_VERSION: Final = -1
#: Seconds to wait for a reset. It takes long if there are many temporary tables, and as long when
#: the server closes the connection instead.
_LONGEST_RESET: Final = 5.0
#: What DISCARD ALL does, except for the prepared statements: psycopg goes on to use them. In one
#: round trip and one transaction.
_RESET: Final = (
    b"CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *;"
    b" SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
#: What `expires_at` is until somebody has looked at the connection.
UNUSED: Final = 0.0
# As plain numbers: comparing with a member of an enumeration costs as much as the system call.
_BAD: Final = int(ConnStatus.BAD)
#: The status of a transaction in which a statement has failed.
IN_ERROR: Final = int(TransactionStatus.INERROR)
# A server that closed its side is seen by this flag only; reading would see nothing.
_PEER_CLOSED: Final = getattr(select, "POLLRDHUP", 0)
_HANG_UP: Final = _PEER_CLOSED | select.POLLHUP | select.POLLERR | select.POLLNVAL


class SyncCounter(Protocol):
    """What counts a connection until it is closed: see `SyncConnector`."""

    @property
    def connections(self) -> Connections[Any]:
        """What it counts."""

    def closed(self, connection: SyncPooledConnection) -> None:
        """Note that the server has closed its end of a connection."""

    def evicted(self, reason: str) -> None:
        """Count a connection that is closed because it is of no use any more."""

    def let_go(self) -> None:
        """Wait until the server has closed its end of closed connections."""


class Link:
    """The socket of one connection, and its place within the limits."""

    __slots__ = (
        "closing",
        "connector",
        "descriptor",
        "driver",
        "expires_at",
        "hung_up_at",
        "listener",
        "poll",
        "server",
        "user",
    )

    def __init__(self) -> None:
        #: What made and counts it; `None` for a connection outside any pool.
        self.connector: SyncCounter | None = None
        #: The host and port that it is counted for.
        self.server = ""
        #: The psycopg_pool that it belongs to.
        self.driver: Any = None
        #: When it is too old to be handed out, on the monotonic clock.
        self.expires_at = float("inf")
        #: Tells what happened at the socket.
        self.poll: select.poll | None = None
        #: Returns the listener that it was made for; `None` if that was dropped, or it is of a pool.
        self.listener: ReferenceType[Any] | None = None
        #: The user that was made on demand for it; `None` if the file names the user.
        self.user: str | None = None
        #: Guards the two below: the pool that ends and the worker that connected may close it at once.
        #: Reentrant, because a signal handler may close the registry. Never held while waiting.
        self.closing = threading.RLock()
        #: When it was closed at this end, on the monotonic clock.
        self.hung_up_at: float | None = None
        #: A duplicate, from the close at this end to the close at the server's.
        self.descriptor: int | None = None


@hinted_connection
class SyncPooledConnection(SyncWatchedConnection):
    """A `psycopg.Connection` that knows its version and its holder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # No slots, no defaults of the class, and few attributes: with more than 30, psycopg's own
        # included, the interpreter finds all of them more slowly.
        #: The version of the configuration it was made with.
        self.version = NO_VERSION
        #: Returns the checkout that holds it, or `None` if that was lost; `None` while it is idle. It
        #: keeps a checkout by hand alive, and no other.
        self.holder: Callable[[], Checkout | None] | None = None
        #: Gives it back to the psycopg_pool that it belongs to; takes back before what a block has
        #: changed, if it has. Looked up once: every checkout calls it.
        self.give_back: Any = None
        #: The function that borrowed it last: all that is left to name when a checkout is lost.
        self.borrower: CodeType | None = None
        #: When it was given back, or made, on the monotonic clock.
        self.returned_at = monotonic()
        #: When it is too old to be handed out, on the monotonic clock; `UNUSED` before its first
        #: use, and after another one was found dead, so that it is looked at, however fresh it is.
        self.expires_at = UNUSED
        #: Whether a block has changed something, or may have, that the next one must not get.
        self.changed = False
        self.link = Link()
        super().__init__(*args, **kwargs)

    @classmethod
    def connect(  # type: ignore[override]  # psycopg's own arguments pass through
        cls,
        conninfo: str = "",
        *,
        connector: Callable[[], SyncPooledConnection] | None = None,
        **kwargs: Any,
    ) -> SyncPooledConnection:
        """Make a connection; for psycopg_pool, the one that the connector gives.

        The connector is the only argument that psycopg_pool has, so it holds no secret.
        """
        if connector is None:
            return super().connect(conninfo, **kwargs)
        try:
            return connector()
        except Cancelled:
            cancel_again()
            raise

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[Transaction]:
        """Open a transaction or a savepoint, as psycopg does; see `Connection.transaction`."""
        failed = False
        with super().transaction(savepoint_name, force_rollback) as transaction:
            yield transaction
            failed = self.pgconn.transaction_status == IN_ERROR and not force_rollback
        # No error: it was no savepoint, and the server has rolled back instead of a commit.
        if failed and self.holder is not None and (checkout := self.holder()) is not None:
            checkout.stage |= ROLLED_BACK

    def __del__(self, *_: Any) -> None:
        """Go back to its pool, if a client has dropped it that borrowed it by hand."""
        link: Link | None = getattr(self, "link", None)  # none: an interrupt came when it was made
        connector = None if link is None else link.connector
        if connector is None or sys.is_finalizing():
            super().__del__()
            return
        kept = connector.connections.keep(self)
        checkout = None if self.holder is None else self.holder()
        if checkout is None:
            if not kept:
                super().__del__()
            return
        if not kept:  # it was closed before, and is not counted any more
            checkout.pool.dropped.append(self)
        self.holder = ref(checkout, checkout.pool.on_lost)  # lost when this method ends

    def is_alive(self) -> bool:
        """Tell whether the server's end is still open, without asking the server.

        Costs one system call. It cannot see a server that is silent: see `ping`.
        """
        if self.pgconn.status == _BAD:
            return False
        if self.link.poll is None:
            self.link.poll = select.poll()
            self.link.poll.register(self.pgconn.socket, select.POLLIN | _PEER_CLOSED)
        while events := self.link.poll.poll(0):
            if events[0][1] & _HANG_UP:
                return False
            try:
                self.pgconn.consume_input()  # a notice is no reason to drop it
                if self.pgconn.notifies() is not None:  # it listens, which was not noticed
                    self.version = NO_VERSION
                    self.evict()
            except psycopg.Error:
                return False
            if self.pgconn.status == _BAD:
                return False
        return True

    # Giving it back as it was made

    def join(self, driver: SyncDriverPool[SyncPooledConnection]) -> None:
        """Belong to a psycopg_pool."""
        self.link.driver = driver
        self.changed = self.session.resets
        self.give_back = _give_back_clean if self.changed else driver.putconn

    def note_change(self) -> None:
        """Note that something was changed that is to be taken back when it is given back.

        One that was changed while no block had it, by code that kept it, is handed out to none.
        """
        self.give_back = _give_back_clean
        self.changed = True
        if self.holder is None:
            self.version = NO_VERSION

    def clean(self) -> None:
        """Bring it to the state that it was made in; close it where that is not possible."""
        session = self.session
        try:
            if (
                session.stale
                or session.in_two_phase
                or self.pgconn.pipeline_status
                or self.lock.locked()  # by `notifies()`, dropped a moment ago
                or self.is_listening()
            ):
                self.evict()
                return
            self.restore()
            if session.resets:
                self.reset()
        except psycopg.Error:
            self.evict()

    def evict(self) -> None:
        """Close a connection that no other block may get, and count that."""
        self.hang_up()
        if self.link.connector is not None:
            self.link.connector.evicted("unclean")

    def is_listening(self) -> bool:
        """Tell whether this session listens; one that may is asked, and no answer in time is a yes."""
        if not self.session.may_listen:
            return False
        statement = b"SELECT pg_catalog.pg_listening_channels() LIMIT 1"
        answer = self.ask(statement, _LONGEST_QUESTION)
        return answer is None or bool(answer.ntuples)

    def is_of_a_pooler(self) -> bool:
        """Tell whether a pooler answers for the server.

        A pooler makes up the process id that libpq is told, because the backend may change. A
        server is asked only if it has told one that no Linux process has: one round trip. A pooler
        without a free session gives no answer in time; then the connection is closed.
        """
        told = self.pgconn.backend_pid
        if 0 < told <= _HIGHEST_PID:
            return False
        statement = b"SELECT pg_catalog.pg_backend_pid()"
        answer = self.ask(statement, _LONGEST_QUESTION)
        if answer is None and self.pgconn.transaction_status:  # the answer is still to come
            self.hang_up()
            return True
        return answer is not None and answer.get_value(0, 0) != str(told).encode()

    def reported(self, parameter: bytes) -> bytes | None:
        """Return what the server said of a parameter with its last answer; `None`: nothing, ever."""
        return self.pgconn.parameter_status(parameter)

    def ping(self, seconds: float) -> bool:
        """Ask the server for a sign of life: one round trip, no transaction.

        A stopped server or a silent network costs all the seconds; then the connection is of no
        use any more.

        Args:
            seconds: How long to wait for the answer.
        """
        return self.ask(b"", seconds) is not None and not self.pgconn.transaction_status

    def roll_back(self, seconds: float) -> bool:
        """Roll back a transaction that was left open on it; false if that failed.

        Args:
            seconds: How long to wait for the answer.
        """
        if self.ask(b"ROLLBACK", seconds) is None or self.lock.locked():
            return False
        try:
            self.commit()  # sends nothing; complains if his `transaction()` is not left yet
        except psycopg.Error:
            return False
        return not self.pgconn.transaction_status  # IDLE is 0

    def reset(self) -> None:
        """Reset the server's side of the session for the next borrower; close it if that fails."""
        if self.ask(_RESET, _LONGEST_RESET) is None:
            self.close()
            return
        while self.pgconn.notifies() is not None:
            pass  # what it has listened to concerns no other borrower

    def ask(self, statement: bytes, seconds: float) -> PGresult | None:
        """Run one or more statements in one round trip, past psycopg, which has no deadline for it.

        Args:
            statement: What to run; it must be no COPY.
            seconds: How long to wait for the answer.

        Returns:
            The last result, or `None` after an error or without an answer in time: then the
            connection is not to be used any more.
        """
        deadline = monotonic() + seconds
        results: list[PGresult] = []
        try:
            self.pgconn.send_query(statement)
            while not self.has_answered(results):
                if not wait_readable(self.pgconn.socket, deadline - monotonic()):
                    return None
        except psycopg.Error:
            return None
        return None if results[-1].status == ExecStatus.FATAL_ERROR else results[-1]

    def has_answered(self, results: list[PGresult]) -> bool:
        """Read what there is of the answer, and tell whether that is all of it; never waits.

        `get_result` alone would wait for the next part, and every thread with it, because it
        does not let go of the interpreter.
        """
        self.pgconn.flush()
        self.pgconn.consume_input()
        while not self.pgconn.is_busy():
            if (result := self.pgconn.get_result()) is None:
                return True
            results.append(result)
        return False

    def close(self) -> None:
        """Close the connection, and wait until the server has closed its end, a second at most.

        One that was borrowed by hand is given back with that: no one else could use it.
        """
        waited_for = self.link.hung_up_at is not None  # by who hung up, for all that it closes
        self._keep_descriptor()
        super().close()
        self.hang_up()
        if not waited_for:
            self.let_go()
        if (borrowed := self.borrowed_by_hand()) is not None:
            borrowed.handle.take_back(self, borrowed)

    def borrowed_by_hand(self) -> Checkout | None:
        """Return the checkout of a borrower by hand, if this code may end it."""
        holder = self.holder
        checkout = None if holder is None else holder()
        if checkout is None or holder != checkout.itself:
            return None
        pool = checkout.pool
        return None if pool.inherited or is_elsewhere(pool.loop) else checkout

    def was_given_back_closed(self) -> bool:
        """Tell whether there is nothing left to give back: its borrower, or its pool, closed it."""
        return self.holder is None and self.pgconn.status == _BAD

    def let_go(self) -> None:
        """Wait until the server has closed its end of this connection and others of its pool."""
        if self.link.connector is not None:
            self.link.connector.let_go()

    def hang_up(self) -> None:
        """Close the connection at this end; `SyncConnector.let_go` waits for the other."""
        self._keep_descriptor()
        self.pgconn.finish()  # also of a broken connection, whose socket psycopg leaves open
        if self.link.descriptor is None:
            self.forget()

    def shut_down(self) -> None:
        """End the connection so that who uses it sees that; the socket itself is left to him."""
        with (
            suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as own,
        ):
            own.shutdown(socket.SHUT_RDWR)

    def _keep_descriptor(self) -> None:
        with self.link.closing:
            if self.link.hung_up_at is not None:
                return
            self.link.hung_up_at = monotonic()
            if self.link.connector is not None and self.pgconn.status != _BAD:
                try:
                    self.link.descriptor = os.dup(self.pgconn.socket)
                except (OSError, psycopg.Error):
                    self.link.descriptor = None  # none is left: its place is free a little early

    def wait_closed(self) -> None:
        """Wait until the server has closed its end, and give its place back."""
        deadline = (self.link.hung_up_at or 0.0) + LONGEST_GOODBYE
        while (descriptor := self.link.descriptor) is not None and not _has_ended(descriptor):
            if not wait_readable(descriptor, deadline - monotonic()):
                break
        self.forget()

    def forget(self) -> None:
        """Give its place back now, without waiting for the server."""
        descriptor, self.link.descriptor = self.link.descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        connector = self.link.connector
        if connector is not None:
            connector.closed(self)

    def cut_off(self) -> None:
        """Let nothing that a child process does with its parent's connection reach the server.

        In the child alone /dev/null takes the place of the socket, so that the parent's session
        does not outlive the parent either.
        """
        with suppress(OSError, psycopg.Error):
            nowhere = os.open(os.devnull, os.O_RDWR)
            try:
                os.dup2(nowhere, self.pgconn.socket, inheritable=False)
            finally:
                os.close(nowhere)


def _give_back_clean(connection: SyncPooledConnection) -> None:
    """Give a connection back as it was made. A function: a method would refer to the connection."""
    driver = connection.link.driver
    try:
        if not connection.closed:
            connection.clean()
    except BaseException:  # an interrupt: it is half done
        connection.hang_up()
        raise
    finally:
        connection.join(driver)
        driver.putconn(connection)


def _has_ended(descriptor: int) -> bool:
    """Read what the server still sent, and tell whether its end is closed; never waits."""
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
