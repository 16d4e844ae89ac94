# Generated from _async/connecting.py by .ci/sync_code: edit that file.
"""Make the connections of one pool within the limits, and know each until it is closed."""

from __future__ import annotations

import random
import sys
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from pgmonkey.config.redaction import Secret
from pgmonkey.errors import ConnectError
from pgmonkey.pool._sync.changes import WATCHED_CURSORS, set_up
from pgmonkey.pool._sync.connection import LONGEST_GOODBYE, NO_VERSION, SyncPooledConnection
from pgmonkey.pool._sync.logins import logged_in
from pgmonkey.pool._sync.waiting import Lock, aside, called
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.connecting import Outage, connect_timeout, refused_logins
from pgmonkey.pool.connections import Connections
from pgmonkey.pool.failures import (
    POOLER_FOUND,
    ConnectFailure,
    classify,
    configure_late,
    configure_left,
    configure_raised,
)
from pgmonkey.pool.hosts import resolved
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg.abc import AdaptContext

    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.credentials import Given
    from pgmonkey.pool.failures import Configure
    from pgmonkey.pool.limits import ConnectionLimits
    from pgmonkey.pool.stats import Stats
    from pgmonkey.pool.version import Version

#: What is wrong with a new connection, if something is.
Wrong: TypeAlias = ConnectFailure | None
#: Does something with a new connection, the last thing before it is used.
Begin: TypeAlias = "Callable[[SyncPooledConnection, DatabaseConfig], Wrong]"


class NoRoomError(ConnectError):
    """A limit of ours forbids another connection; the server was not asked."""


def connect(
    config: DatabaseConfig,
    connection_type: ConnectionType,
    connection_class: type[SyncPooledConnection] = SyncPooledConnection,
    context: AdaptContext | None = None,
) -> SyncPooledConnection | ConnectFailure:
    """Connect once, or return why that failed.

    Args:
        config: What to connect with.
        connection_type: Decides which session settings count.
        connection_class: What to return.
        context: What the adapters of the connection begin with; default: psycopg's.
    """
    log_in = partial(_log_in, config, connection_type, connection_class, context)
    return logged_in(config, log_in)


def _log_in(
    config: DatabaseConfig,
    connection_type: ConnectionType,
    connection_class: type[SyncPooledConnection],
    context: AdaptContext | None,
    given: Given | None,
) -> SyncPooledConnection | ConnectFailure:
    # The driver's exception goes no further: its frames and attributes hold the password.
    made = given.parameters if given is not None else dict[str, str]
    try:
        connection = connection_class.connect(
            context=context,
            # Not afterwards: what instruments psycopg derives a class of its own from this one.
            cursor_factory=WATCHED_CURSORS[config.psycopg_settings.get("cursor_factory", "Cursor")],
            **resolved({**config.connect_kwargs(connection_type), **made()}),
        )
        connection.link.user = given.user if given is not None else None
        set_up(connection, config.psycopg_settings)
        return connection
    except Exception as error:  # noqa: BLE001 - any error of a connect is a reason for a person
        return classify(error, config, (given.password,) if given is not None else ())
    except BaseException as interrupt:  # noqa: BLE001 - it goes on, without the driver's frames
        interrupt.__context__ = None
        raise interrupt.with_traceback(None) from None


def configure(
    connection: SyncPooledConnection, functions: Iterable[Configure], config: DatabaseConfig
) -> ConnectFailure | None:
    """Call the application's functions with a new connection; return what is wrong with it then.

    Together they may take as long as a connect.

    Args:
        connection: One that no block has got yet.
        functions: What the application gave to `configure`.
        config: What it was made with.
    """
    limit = connect_timeout(config)
    deadline = monotonic() + limit
    for function in functions:
        password = Secret(connection.info.password)
        try:
            if not called(function, connection, deadline - monotonic()):
                return configure_late(function, limit)
            left = _left_behind(connection)
        except Exception as error:  # noqa: BLE001 - the code is the application's
            return configure_raised(function, error, config, password, broken=connection.broken)
        if left is not None:
            return configure_left(function, left)
    return None


def _left_behind(connection: SyncPooledConnection) -> str | None:
    if connection.closed:
        return "closed the connection"
    if (left := connection.left_open()) is not None:
        return f"left {left} open"
    if connection.pgconn.transaction_status:
        return "left a transaction open"
    if connection.is_listening():
        return "left the connection listening"
    return None


class SyncConnector:
    """Make and count the connections of one pool.

    Args:
        version: What it connects with.
        connection_type: Decides which session settings and which pool settings count.
        stats: Where the handle counts.
        limits: How many connections there may be in this process.
        functions: Returns what is to be called with each new connection.
        on_room: Called, from any thread, when there is room again after a limit forbade a
            connection.
        context: What the adapters of its connections begin with; default: psycopg's.
    """

    def __init__(
        self,
        version: Version,
        connection_type: ConnectionType,
        *,
        stats: Stats,
        limits: ConnectionLimits,
        functions: Callable[[], Iterable[Configure]],
        on_room: Callable[[], object],
        context: AdaptContext | None = None,
    ) -> None:
        self.name = version.config.name
        self.connection_type = connection_type
        self.connection_class = SyncPooledConnection
        self.label = f"{self.name}/{connection_type}"
        #: What it connects with.
        self.target = version
        self.outage = Outage()
        #: Whether a connection was made at least once.
        self.opened = False
        #: Whether its pool is closed for good, so that no client waits for the server any more.
        self.ended = False
        #: Every connection, idle or handed out, until the server has closed its end.
        self.connections: Connections[SyncPooledConnection] = Connections()
        #: When the older connections began to be replaced, and the version before.
        self.rotating: tuple[float, int] | None = None
        self._stats = stats
        self._limits = limits
        self._functions = functions
        self._on_room = on_room
        self._context = context
        # Closed connections whose places are kept for a probe, with their servers.
        self._kept: dict[SyncPooledConnection, str] = {}
        # Guards the descriptors of closing connections. Held while the server closes its end.
        self._goodbyes = Lock()

    def adopt(self, version: Version) -> None:
        """Connect with this version from now on; from any thread."""
        before, self.target = self.target, version
        if version.since > before.since:
            self.outage.retry()
            self.rotating = (monotonic(), before.number) if self.older() else None

    # What the limits ask

    @property
    def server(self) -> str:
        """The host and port that it connects to."""
        return self.target.config.server

    @property
    def max_size(self) -> int:
        """How many connections it may have."""
        return self.target.config.pool(self.connection_type).max_size

    @property
    def max_connections(self) -> int | None:
        """How many connections this process may have to its server."""
        return self.target.config.max_connections

    def try_again_soon(self) -> None:
        """Connect for the clients that wait: there is room again. Called from any thread."""
        self._on_room()

    # Making and closing

    def make(
        self,
        version: Version,
        *,
        beyond: int = 0,
        probe: bool = False,
        instead_of: SyncPooledConnection | None = None,
        begin: Begin | None = None,
    ) -> SyncPooledConnection:
        """Connect once, after the server has closed its end of closed connections.

        Args:
            version: What to connect with.
            beyond: How many more than `max_size` there may be: 1 while connections are replaced.
            probe: Whether the version is not in force: a failure says nothing of what runs, and
                a refused login is tried at once.
            instead_of: A connection that `keep_place` has closed.
            begin: Called with the new connection: a failure of it is one of the connect.

        Raises:
            NoRoomError: a limit of ours forbids it.
            ConnectError: with the server's reason.
        """
        self.let_go()
        server = version.config.server
        place = self._kept.get(instead_of) if instead_of else None
        refusal = self._limits.take(self, server, beyond=beyond, instead_of=place)
        if refusal is not None:
            raise NoRoomError(refusal, database=self.name, reason="too_many_connections")
        if instead_of is not None:
            self._kept.pop(instead_of, None)
        began = monotonic()
        try:
            connection = self._log_in(version, probe=probe)
        except BaseException:
            self._limits.give(self, server)
            raise
        connection.link.server = server
        connection.link.connector = self
        try:
            self._finish(connection, version, probe=probe, begin=begin)
            self._stats.record_connect(connection.returned_at - began)
            self.connections.add(connection)
        except BaseException:  # its place is free when the server has closed its end
            self.connections.add(connection)
            connection.hang_up()
            self.let_go()
            raise
        return connection

    def _log_in(self, version: Version, *, probe: bool) -> SyncPooledConnection:
        config = version.config
        if not probe and (refused := refused_logins.claim(config)) is not None:
            self._note_failure(version, refused)
            raise refused.error(self.name)
        made = connect(config, self.connection_type, self.connection_class, self._context)
        self._stats.attempts += 1
        if isinstance(made, ConnectFailure):
            if made.lasting:
                refused_logins.refused(config, made)
            raise self._failed(made, version, probe=probe)
        refused_logins.accepted(config)
        return made

    def _finish(
        self,
        connection: SyncPooledConnection,
        version: Version,
        *,
        probe: bool,
        begin: Begin | None,
    ) -> None:
        """Bring a new connection to the state that each checkout gets it in."""
        # Looked up after the version: who changes the functions asks for another version then.
        failure = configure(connection, self._functions(), version.config)
        if failure is None and begin is not None:
            failure = begin(connection, version.config)
        if failure is not None:
            raise self._failed(failure, version, probe=probe)
        connection.session.resets = version.config.reset_on_return
        connection.session.may_listen = False
        connection.keep_settings()
        if not probe:
            self._worked(connection, version)
        connection.version = version.since
        now = connection.returned_at = monotonic()
        jitter = random.uniform(0.95, 1.0)  # noqa: S311 - connections must not all end at once
        lifetime = version.config.pool(self.connection_type).max_lifetime
        connection.link.expires_at = now + lifetime * jitter

    def _failed(self, failure: ConnectFailure, version: Version, *, probe: bool) -> ConnectError:
        self._stats.failures[failure.reason] += 1
        if not probe:
            self._note_failure(version, failure)
        return failure.error(self.name)

    def _note_failure(self, version: Version, failure: ConnectFailure) -> None:
        if version is self.target and self.outage.failed(failure, self.held()):
            self._emit("connect.failed", reason=failure.reason, error=failure.text)

    def _worked(self, connection: SyncPooledConnection, version: Version) -> None:
        outage = self.outage.ended()
        if outage is not None:
            self._emit("connect.recovered", outage=round(outage, 3))
        if not self.opened:
            self.opened = True
            self._emit(
                "database.opened",
                connection_type=self.connection_type,
                version=version.number,
                config=version.config.redacted(),
            )
            if version.config.pooler == "none" and connection.is_of_a_pooler():
                self._emit("database.pooler_found", hint=POOLER_FOUND)

    def _emit(self, name: str, **fields: object) -> None:
        aside(partial(events.emit, name, database=self.name, **fields))

    def closed(self, connection: SyncPooledConnection) -> None:
        """Note that the server has closed its end of a connection."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if connection not in self._kept:
            self._limits.give(self, connection.link.server)
        if connection.version < self.target.since:
            self.report_drained()

    def evicted(self, reason: str) -> None:
        """Count a connection that is closed because it is of no use any more."""
        self._stats.evicted[reason] += 1

    def begin_end(self) -> None:
        """Note that no connection is to be made any more, and that those that are out end."""
        if self.rotating is None and any(one.holder for one in self.connections.copy()):
            self.rotating = monotonic(), self.target.number

    def is_draining(self) -> bool:
        """Tell whether a connection of an older version is left, here or at the server."""
        return any(
            one.version < self.target.since or one.link.hung_up_at is not None
            for one in self.connections.copy()
        )

    def report_drained(self) -> None:
        """Report that the last connection of the version before is closed, if it is."""
        rotating = self.rotating
        if rotating is None or self.is_draining():
            return
        self.rotating = None
        since, number = rotating
        events.emit(
            "database.drained",
            database=self.name,
            connection_type=self.connection_type,
            version=number,
            duration=round(monotonic() - since, 6),
        )

    def let_go(self) -> None:
        """Wait until the server has closed its end of closed connections, a second at most."""
        if not self.closing():
            return
        with self._goodbyes:
            for connection in self.closing():
                connection.wait_closed()

    def closing(self) -> list[SyncPooledConnection]:
        """Return the connections that were closed here, and not by the server yet."""
        late = monotonic() - LONGEST_GOODBYE  # an interrupt may have come while it was forgotten
        return [
            one
            for one in self.connections.copy()
            if one.link.descriptor is not None or (one.link.hung_up_at or late) < late
        ]

    def held(self) -> int:
        """Return how many connections are open, idle or handed out."""
        return sum(one.link.hung_up_at is None for one in self.connections.copy())

    def older(self) -> list[SyncPooledConnection]:
        """Return the connections of older versions that are open."""
        return [
            one
            for one in self.connections.copy()
            if NO_VERSION < one.version < self.target.since and one.link.hung_up_at is None
        ]

    def users(self) -> set[str]:
        """Return the users of the open connections of this version, where they are made on demand."""
        return {
            one.link.user
            for one in self.connections.copy()
            if one.link.user is not None
            and one.version >= self.target.since
            and one.link.hung_up_at is None
        }

    def keep_place(self, connection: SyncPooledConnection) -> None:
        """Close a borrowed connection, and keep its place within the limits for a probe."""
        self._kept[connection] = connection.link.server
        connection.hang_up()

    def give_place(self, connection: SyncPooledConnection) -> None:
        """Give back the place that `keep_place` has kept, unless a probe took it."""
        server = self._kept.pop(connection, None)
        if server is not None:
            self._limits.give(self, server)

    def explain_limit(self, version: Version) -> str | None:
        """Return which limit over several pools is reached, and who holds its connections."""
        return self._limits.explain(self, version.config.server)

    def reserve(self, version: Version) -> str | None:
        """Count a connection outside of the pool, or return which limit forbids it."""
        return self._limits.take(self, version.config.server, beyond=1)

    def release(self, version: Version) -> None:
        """Count the connection of `reserve` no more."""
        self._limits.give(self, version.config.server)


class SyncLooseConnector(SyncConnector):
    """Make and count connections outside of a pool, of which there may be any number.

    Args:
        version: What it connects with.
        connection_type: Decides which session settings count.
        stats: Where the handle counts.
        limits: How many connections there may be in this process.
        functions: Returns what is to be called with each new connection.
        label: What they are for.
        connection_class: What to make.
        context: What the adapters of its connections begin with; default: psycopg's.
    """

    def __init__(
        self,
        version: Version,
        connection_type: ConnectionType,
        *,
        stats: Stats,
        limits: ConnectionLimits,
        functions: Callable[[], Iterable[Configure]],
        label: str,
        connection_class: type[SyncPooledConnection] = SyncPooledConnection,
        context: AdaptContext | None = None,
    ) -> None:
        super().__init__(
            version,
            connection_type,
            stats=stats,
            limits=limits,
            functions=functions,
            on_room=_do_nothing,
            context=context,
        )
        self.connection_class = connection_class
        self.label = f"{self.name}/{label}"
        self.opened = True  # the event is for the first connection of a pool

    @property
    def max_size(self) -> int:
        """No limit of a pool."""
        return sys.maxsize


def _do_nothing() -> None:
    """Be called when there is room again: who needs such a connection looks for it."""
