# Generated from _async/listening.py by .ci/sync_code: edit that file.
"""Listen for notifications on connections outside of the pool, over rotations and outages.

A listener has no thread of its own: the thread that reads it connects, listens, and moves to another version.
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakSet, ref

import psycopg
from psycopg import Notify, sql

from pgmonkey.errors import LASTING, ConnectError, DatabaseRemovedError, HandleClosedError
from pgmonkey.pool._sync.connecting import NoRoomError, SyncLooseConnector
from pgmonkey.pool._sync.connection import SyncPooledConnection
from pgmonkey.pool._sync.waiting import (
    Lock,
    aside,
    in_thread,
    release_in,
    sleep,
    start_in,
    wait_readable,
)
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.failures import ConnectFailure, classify
from pgmonkey.pool.listening import Gap, Listener, Note, Notes
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableSequence

    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import PgmonkeyError
    from pgmonkey.pool._sync.waiting import Loop
    from pgmonkey.pool.handle import Database, Hooks
    from pgmonkey.pool.limits import ConnectionLimits
    from pgmonkey.pool.stats import Stats
    from pgmonkey.pool.version import Version

#: Seconds after which a reader that waits looks whether it is to move, or to end.
_LOOK: Final = 0.5
#: The least seconds to wait for a socket: with none, nothing would be read.
_MOMENT: Final = 0.001
#: Seconds to wait for the answer to LISTEN.
_LONGEST_QUESTION: Final = 5.0
#: When a listener moves: seconds to wait for a word of either connection, and to read what it has.
_LONGEST_MOVE: Final = 2.0
_LONGEST_BACKLOG: Final = 10.0
#: Seconds before another try, where no failed connect says when: there is no room, or no answer.
_PAUSE: Final = 0.5
#: Seconds between two looks of a listener whether another one has connected.
_TURN: Final = 0.02
#: Seconds without a word of the server after which it is asked for a sign of life, and for which
#: the answer is waited for, if the file has no `keepalives_idle` and `keepalives_interval`.
_QUIET: Final = 30
_PATIENCE: Final = 10
_HINT: Final = "neither a standby nor a pooler can LISTEN: connect to the primary itself"
_NOT_THROUGH_A_POOLER: Final = ConnectFailure(
    "setting",
    "PgBouncer gives a session to others at each commit, so it cannot LISTEN (pooler: pgbouncer)",
    hint="declare another database that leads past PgBouncer, and listen there",
)
_OTHERS_CONNECT: Final = ConnectFailure(
    "timeout", "other listeners of this handle were connecting until the timeout"
)


class SyncListening:
    """The listeners of one handle, for all threads, and what connects for them.

    Args:
        version: What it connects with.
        connection_type: Decides which session settings count.
        stats: Where the handle counts.
        limits: How many connections there may be in this process.
        hooks: What the handle calls in its registry or manager.
        loop: None: there is one pool for all threads.
    """

    def __init__(
        self,
        version: Version,
        connection_type: ConnectionType,
        *,
        stats: Stats,
        limits: ConnectionLimits,
        hooks: Hooks,
        loop: Loop,
    ) -> None:
        self.connector = SyncLooseConnector(
            version,
            connection_type,
            stats=stats,
            limits=limits,
            functions=hooks.configure,
            label="listen",
        )
        self.connections = self.connector.connections
        self.loop = loop
        #: Whether it belongs to the parent of this process, and must not be touched.
        self.inherited = False
        # Held while one listener connects, pause included: a server that comes back is not flooded.
        self.connecting = Lock()
        # Guards which listener is being read, and the end of their connections. Reentrant, because a
        # signal handler may close the handle. Never held while waiting.
        self.lock = threading.RLock()
        self._listeners: WeakSet[SyncListener] = WeakSet()

    def add(self, listener: SyncListener) -> None:
        """Take in a listener that is entered."""
        with self.lock:
            self._listeners.add(listener)

    def listeners(self) -> list[SyncListener]:
        """Return those that are entered, and not at their end."""
        with self.lock:
            return [one for one in self._listeners if not one.ended]

    def held_by(self, listener: SyncListener | None) -> list[SyncPooledConnection]:
        """Return the connections that were made for a listener; with `None`, for one that was dropped."""
        return [
            one
            for one in self.connections.copy()
            if (holder := one.link.listener) is not None and holder() is listener
        ]

    def on_lost(self, _holder: object) -> None:
        """Close what a listener has that was dropped: called when it is freed, by any thread."""
        if not self.inherited and not sys.is_finalizing():
            release_in(self.loop, self.heal)

    def heal(self) -> None:
        """Close the connections of listeners that were dropped without being left."""
        for one in self.held_by(None):
            one.hang_up()
        self.connector.let_go()

    def end(self, why: PgmonkeyError | None) -> None:
        """End all listeners; from any thread.

        Args:
            why: What their readers get, if it is not just the end of the iteration.
        """
        for listener in self.listeners():
            listener.end(why)

    def close(self) -> None:
        """End all listeners, because their handle was dropped."""
        self.end(None)
        self.heal()
        self.connector.ended = True

    def drop(self) -> None:
        """Close the connections of a loop that has ended: no thread can use them any more."""
        self.connector.ended = True
        with self.lock:
            self._listeners.clear()
        for one in self.connections.copy():
            one.hang_up()
            one.forget()


class SyncListener(Listener):
    """Listen on a connection of its own: see `Listener`.

    Args:
        handle: What it belongs to.
        enter: Takes it in there, in the running loop.
        channels: Their names.
        timeout: Seconds for the first connection; default: the configured `timeout`.
    """

    def __init__(
        self,
        handle: Database,
        enter: Callable[[SyncListener], SyncListening],
        channels: tuple[str, ...],
        timeout: float | None,
    ) -> None:
        super().__init__(handle.name, handle.connection_type, channels)
        self._handle = handle
        self._enter = enter
        self._timeout = timeout
        #: What it is among, once it is entered.
        self._group: SyncListening | None = None
        self._connection: SyncPooledConnection | None = None
        # What was received and not read yet.
        self._ready: deque[Note] = deque()
        # A channel that only this listener uses, and what its newest connection has sent to it when
        # it began to listen: see `_move`.
        self._own = f"pgmonkey-{secrets.token_hex(8)}"
        self._mark = ""
        # When the server gave its last sign of life, and was asked for one without an answer yet.
        self._heard_at = 0.0
        self._asked_at: float | None = None
        # Why the last connection is gone.
        self._lost = ""
        # Whether notifications are taken from a connection, or were when an interrupt came.
        self._unsure = False
        # The wait that uses its connections now, if there is one.
        self._reader: object = None
        #: Whether the iteration is over.
        self.ended = False
        # Why the handle is gone, if it is.
        self._why: PgmonkeyError | None = None

    # The block

    def __enter__(self) -> Self:
        """Connect and listen: what is notified from now on will be read.

        Raises:
            ConnectError: not possible within the timeout, or the server refuses for a reason that
                waiting does not change.
            RuntimeError: it was entered before.
        """
        if self._group is not None:
            raise RuntimeError("a listener can be entered once; ask the handle for another one")
        group = self._group = self._enter(self)
        timeout = self._timeout
        if timeout is None:
            timeout = group.connector.target.config.pool(self._connection_type).timeout
        try:
            self._reader = self
            try:
                self._connect_first(group, monotonic() + timeout)
            finally:
                self._reader = None
            if self.ended:
                self._close(group)
                self._handle.raise_if_gone()
        except BaseException:
            self._leave(group)
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        """Close the connection."""
        if self._group is not None and not self._group.inherited:
            self._leave(self._group)

    def _connect_first(self, group: SyncListening, deadline: float) -> None:
        connector = group.connector
        while self._connection is None and not self.ended:
            target = connector.target
            made = self._connect(group, deadline - monotonic())
            if isinstance(made, SyncPooledConnection):
                self._use(made)
                return
            lasting = made is not None and made.reason in LASTING and connector.target is target
            if lasting or monotonic() + connector.outage.pause_left() >= deadline:
                failure = connector.outage.failure or _OTHERS_CONNECT
                error = made or failure.error(self._name)
                error.rejected = self._handle.hooks.rejected()
                raise error

    # Reading

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Note:
        """Wait for the next notification or gap."""
        if not self._wait(None):
            raise StopIteration
        return self._ready.popleft()

    def notifies(self, *, timeout: float | None = None, stop_after: int | None = None) -> Notes:
        """Iterate for a time, or up to a number: see `Listener.notifies`."""
        return self._notifies(timeout, stop_after)  # type: ignore[return-value]  # its other half is never there: wrong side

    def _notifies(self, timeout: float | None, stop_after: int | None) -> Iterator[Note]:
        deadline = None if timeout is None else monotonic() + timeout
        while stop_after is None or stop_after > 0:
            if not self._wait(deadline):
                return
            yield self._ready.popleft()
            stop_after = None if stop_after is None else stop_after - 1

    def _wait(self, deadline: float | None) -> bool:
        """Wait until something is ready, and tell whether it is; not at the deadline, or at the end.

        It stays there: an interrupt may come before this has returned.
        """
        me = object()
        group = self._group_to_read()
        try:
            self._begin_reading(group, me)
            looked = False
            while not self.ended:
                if self._unsure:
                    self._lose(group, "an interrupt came while notifications were taken from it")
                    self._unsure = False
                if self._ready:
                    return True
                left = _LOOK if deadline is None else deadline - monotonic()
                if left <= 0.0 and looked:
                    return False
                self._step(group, max(_MOMENT, min(left, _LOOK)))
                looked = True
        finally:
            if self._reader is me:
                self._reader = None
                if self.ended:
                    self._close(group)
        if isinstance(self._why, DatabaseRemovedError):
            raise type(self._why)(*self._why.args)
        return False

    def _group_to_read(self) -> SyncListening:
        group = self._group
        if group is None:
            raise RuntimeError(f"{self!r} is not entered: `with handle.listen(...) as notes`")
        if group.inherited:
            raise HandleClosedError(
                f"{self._name}: this listener belongs to the parent process;"
                " a child process makes its own with `listen`"
            )
        return group

    def _begin_reading(self, group: SyncListening, reader: object) -> None:
        with group.lock:
            if self._reader is not None:
                raise RuntimeError(
                    f"{self!r} has a reader already; make a listener for each reader"
                )
            self._reader = reader

    def _step(self, group: SyncListening, seconds: float) -> None:
        """Do what is due within some seconds: connect, move, read what comes, or ask."""
        connection, connector = self._connection, group.connector
        try:
            if connection is None:
                self._resume(group, seconds)
            elif (
                connection.version < connector.target.since
                and not connector.outage.pause_left()
                and not group.connecting.locked()  # it goes on to read until its turn comes
            ):
                self._move(group, connection, seconds)
            elif wait_readable(connection.pgconn.socket, seconds):
                self._receive(connection, self._ready)
                self._heard_at = monotonic()
            else:
                self._ask_if_quiet(connection, connector.target.config)
        except psycopg.Error as error:
            self._lose(group, classify(error, connector.target.config).text)

    def _receive(
        self, connection: SyncPooledConnection, notes: MutableSequence[Note], mark: str = ""
    ) -> None:
        """Take what has come, also when the connection breaks; never waits.

        Args:
            connection: What has it.
            notes: Where it goes, except for the marks of this listener.
            mark: The one that goes there, too.

        Raises:
            psycopg.Error: it is broken.
        """
        encoding = connection.info.encoding
        unsure, self._unsure = self._unsure, True
        try:
            if connection.has_answered([]):
                self._asked_at = None
        finally:
            while (note := connection.pgconn.notifies()) is not None:
                channel, payload = (
                    part.decode(encoding, "surrogateescape") for part in (note.relname, note.extra)
                )
                if channel != self._own or payload == mark:
                    notes.append(Notify(channel, payload, note.be_pid))
            self._unsure = unsure

    def _ask_if_quiet(self, connection: SyncPooledConnection, config: DatabaseConfig) -> None:
        """Ask for a sign of life after a long silence: a network may be dead and not say so.

        Raises:
            psycopg.Error: there was no answer.
        """
        now, settings = monotonic(), config.connection_settings
        if self._asked_at is not None:
            patience = float(settings.get("keepalives_interval") or 0) or _PATIENCE
            if now - self._asked_at > patience:
                raise psycopg.OperationalError(f"no sign of life within {patience:g} s")
        elif now - self._heard_at > (float(settings.get("keepalives_idle") or 0) or _QUIET):
            connection.pgconn.send_query(b"")
            connection.pgconn.flush()
            self._asked_at = now

    # Connecting

    def _connect(
        self, group: SyncListening, seconds: float
    ) -> SyncPooledConnection | ConnectError | None:
        """Connect and listen once, after the pause that the last failure demands.

        Returns:
            The connection, or why there is none; `None` at the end of the iteration, or if its
            turn did not come in this time.
        """
        connector, deadline = group.connector, monotonic() + seconds
        if group.connecting.locked():
            sleep(max(0.0, min(_TURN, seconds)))
            return None
        try:
            with group.connecting:
                sleep(max(0.0, min(connector.outage.pause_left(), seconds)))
                if self.ended or connector.outage.pause_left():
                    return None
                self._close(group, but=self._connection)  # of a connect that was interrupted
                return connector.make(connector.target, begin=self._begin)
        except NoRoomError as refusal:
            if self._connection is None:  # else that one makes room
                sleep(max(0.0, min(_PAUSE, deadline - monotonic())))
            why = connector.explain_limit(connector.target) or refusal.text
            return ConnectError(
                f"{why}, so none is left to listen",
                database=self._name,
                reason=refusal.reason,
                hint="raise max_connections, or lower the max_size of other pools",
            )
        except ConnectError as error:
            if error.reason == "auth":  # a file may have the right password by now
                in_thread(self._handle.hooks.on_refused)
            return error

    def _begin(
        self, connection: SyncPooledConnection, config: DatabaseConfig
    ) -> ConnectFailure | None:
        """Listen on a new connection, and send the mark of `_move`, in one transaction."""
        if config.pooler == "pgbouncer":
            return _NOT_THROUGH_A_POOLER
        group = self._group
        assert group is not None
        self._mark = secrets.token_hex(8)
        try:
            listens = sql.SQL("; ").join(
                sql.SQL("LISTEN {}").format(sql.Identifier(channel))
                for channel in (*self.channels, self._own)
            )
            marks = sql.SQL("NOTIFY {}, {}").format(sql.Identifier(self._own), self._mark)
            statement = sql.SQL("{}; {}").format(listens, marks).as_bytes(connection)
            if connection.ask(statement, _LONGEST_QUESTION) is None:
                text = connection.pgconn.get_error_message().strip()
                raise psycopg.OperationalError(f"LISTEN: {text or 'timed out'}")
        except Exception as error:  # noqa: BLE001 - any error of a connect is a reason for a person
            failure = classify(error, config)
            refused = failure.reason == "other" and isinstance(error, psycopg.Error)
            return failure._replace(hint=_HINT) if refused else failure
        connection.link.listener = ref(self, group.on_lost)
        return None

    def _use(self, connection: SyncPooledConnection) -> None:
        self._connection = connection
        self._heard_at = monotonic()
        self._asked_at = None
        # What came with the answer to LISTEN makes no socket readable any more.
        with suppress(psycopg.Error):
            self._receive(connection, self._ready)

    def _resume(self, group: SyncListening, seconds: float) -> None:
        """Connect again, and tell the reader that notifications may be missing."""
        made = self._connect(group, seconds)
        if isinstance(made, SyncPooledConnection):
            gap = self._note_gap()  # first: an interrupt may come between the two
            self._use(made)
            self._report(gap)

    def _note_gap(self) -> Gap:
        gap = Gap(round(monotonic() - self._heard_at, 3), self._lost)
        self._ready.append(gap)
        return gap

    def _report(self, gap: Gap) -> None:
        fields: dict[str, object] = {
            "connection_type": self._connection_type,
            "channels": list(self.channels),
            "seconds": gap.seconds,
            "error": gap.reason,
        }
        aside(partial(events.emit, "listen.resumed", database=self._name, **fields))

    # Moving to another version

    def _move(self, group: SyncListening, old: SyncPooledConnection, seconds: float) -> None:
        """Listen on a connection of the version in force, then close the old one.

        Both get what is notified meanwhile. The new one has sent a mark, which both get in its place
        among the notifications of the server: what the old one gets before it and the new one
        after it is all there is, each once. If the old one does not get the mark, the new one is
        at another server, or the old one is dead: then notifications may be missing, also those that
        the new one got before the mark, so that none is doubled.
        """
        new = self._connect(group, seconds)
        if not isinstance(new, SyncPooledConnection):
            if new is not None and new.reason == "too_many_connections":
                self._lose(group, "it made room for a connection of the new configuration")
            return
        self._unsure = True
        of_new: list[Note] = []
        of_old: list[Note] = []
        begin = self._read_to_mark(new, of_new, _LONGEST_MOVE)
        if begin is None:
            self._close(group, but=old)
            self._unsure = False
            sleep(_PAUSE)
            return
        same = _place(new) == _place(old)
        end = self._read_to_mark(old, of_old, _LONGEST_MOVE if same else _MOMENT)
        self._ready.extend(of_old[:end])
        gap = None
        if end is None:
            self._lost = "the new connection leads to another server, or the old one fell silent"
            gap = self._note_gap()
        self._ready.extend(of_new[begin + 1 :])
        self._use(new)
        self._close(group, but=new)
        self._unsure = False
        group.connector.let_go()
        if gap is not None:
            self._report(gap)

    def _read_to_mark(
        self, connection: SyncPooledConnection, notes: list[Note], longest: float
    ) -> int | None:
        """Read until the mark comes, and return its place among the notes, if it does.

        Args:
            connection: What has them.
            notes: Where they go.
            longest: Seconds to wait for a word of the server.
        """
        late = monotonic() + _LONGEST_BACKLOG
        with suppress(psycopg.Error):
            while True:
                known = len(notes)
                self._receive(connection, notes, self._mark)
                for place, note in enumerate(notes[known:], known):
                    if isinstance(note, Notify) and note.channel == self._own:
                        return place
                seconds = min(longest, late - monotonic())
                if not wait_readable(connection.pgconn.socket, seconds):
                    break
        return None

    # The end

    def stop(self) -> None:
        """End the iteration: see `Listener.stop`."""
        self.end(None)

    def end(self, why: PgmonkeyError | None) -> None:
        """End the iteration and the connection; from any thread.

        Args:
            why: The handle is gone for this reason.
        """
        group = self._group
        if group is None:
            self.ended = True
        elif not group.inherited:
            self._end(group, why)
            start_in(group.loop, group.connector.let_go)

    def _end(self, group: SyncListening, why: PgmonkeyError | None) -> None:
        with events.held_back(), group.lock:
            if not self.ended:
                self._why = why
            self.ended = True
            if self._reader is not None:  # it closes them itself, and may use them at this moment
                for connection in group.held_by(self):
                    connection.shut_down()
            else:
                self._close(group)

    def _leave(self, group: SyncListening) -> None:
        self._end(group, None)
        group.connector.let_go()

    def _lose(self, group: SyncListening, reason: str) -> None:
        self._lost = reason
        self._close(group)

    def _close(self, group: SyncListening, *, but: SyncPooledConnection | None = None) -> None:
        """Close its connections, except perhaps for one."""
        with events.held_back(), group.lock:
            self._connection = but
            for connection in group.held_by(self):
                if connection is not but:
                    connection.hang_up()


def _place(connection: SyncPooledConnection) -> tuple[str, int, str]:
    """Return the server and the database of a connection."""
    info = connection.info
    return info.host, info.port, info.dbname
