# Generated from _async/pool.py by .ci/sync_code: edit that file.
"""The pool of one handle, for all threads: one psycopg_pool, from open to close.

Every connection carries the version of the configuration it was made with. A reload never swaps
pools: it replaces connections inside the pool (see `rotation`). Two comparisons decide: a
connection older than `floor` is not handed out, and one older than `version` is replaced when it
comes back.

psycopg_pool keeps the queue, the idle connections, the growth and the shrinking. Its worker asks
`connect` for each connection that it wants. The connection that came back last is kept here, in
`recent`: the next checkout takes it in less than half of the time.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NoReturn

from psycopg.errors import ReadOnlySqlTransaction
from psycopg_pool import PoolClosed, PoolTimeout

from pgmonkey.errors import CheckoutTimeout, ConnectError, PgmonkeyError
from pgmonkey.pool import messages
from pgmonkey.pool._sync.connecting import NoRoomError, SyncConnector
from pgmonkey.pool._sync.connection import (
    LONGEST_GOODBYE,
    NO_VERSION,
    UNUSED,
    SyncPooledConnection,
)
from pgmonkey.pool._sync.waiting import (
    Cancelled,
    Lock,
    Signal,
    SyncDriverPool,
    aside,
    end_tasks,
    in_thread,
    is_closed,
    let_queue,
    open_driver,
    release_in,
    soon,
    start,
    start_in,
)
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.connecting import refused_logins
from pgmonkey.pool.credentials import obtained, outdated
from pgmonkey.pool.failures import ConnectFailure, chain, drop_frames
from pgmonkey.pool.fair_share import FairShare
from pgmonkey.pool.messages import Numbers
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType

    from psycopg.abc import AdaptContext

    from pgmonkey.config.models import ConnectionType, PoolSettings
    from pgmonkey.pool._sync.waiting import Loop
    from pgmonkey.pool.checkout import Checkout
    from pgmonkey.pool.handle import Hooks
    from pgmonkey.pool.limits import ConnectionLimits
    from pgmonkey.pool.stats import Stats
    from pgmonkey.pool.version import Version

#: Seconds after its return in which a connection is handed out without a look at its socket.
FRESH: Final = 0.1
#: Seconds unused after which a connection is asked for a sign of life before it is handed out: a
#: network may have forgotten it without telling either end.
LONG_IDLE: Final = 30.0
#: The most seconds to wait for that; never more than a third of what the checkout has left.
LONGEST_PING: Final = 2.0
#: Each connection that gives no sign of life halves that for the next one, down to this: a network
#: that forgot one has forgotten others.
_SHORTEST_PING: Final = 0.25
#: What the names of our pools, and so of their threads and log records, begin with.
NAME_PREFIX: Final = "pgmonkey/"
#: Connects of a pool that are under way at a time: a server that comes back is not stormed.
_MOST_AT_ONCE: Final = 2
#: Seconds for which a client queues that wants an idle connection, or psycopg_pool to grow.
_MOMENT: Final = 0.001
#: Seconds for which the explanation of one timeout serves for others: of thousands of clients
#: that time out together, the last one must not be late.
_SAME_MOMENT: Final = 0.1
#: Seconds after which a connection that psycopg_pool counts, and that no worker makes, is lost.
_SETTLED: Final = 0.25
#: How many clients that gave up may be in the queue of a psycopg_pool with nothing open. Each takes
#: some kilobytes, and later time.
_LONGEST_QUEUE: Final = 1000
#: Asks whether a server takes no writes, as libpq does for `read-write`. A block may have changed
#: the setting for its session.
_TAKES_NO_WRITES: Final = (
    b"RESET default_transaction_read_only;"
    b" SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"
)
#: Seconds before another user is asked for after that failed: the first pause, doubled up to the
#: longest.
_FIRST_LEASE_PAUSE: Final = 1.0
_LONGEST_LEASE_PAUSE: Final = 30.0
#: The types that hold one connection, whose blocks take turns.
_SINGLE: Final = ("normal", "async")


class SyncPool:
    """Hand out, check, replace and close the connections of one handle, for all threads.

    Args:
        version: What it connects with.
        connection_type: `normal` or `pool`.
        stats: Where the handle counts.
        limits: How many connections there may be in this process.
        hooks: What the handle calls in its registry or manager.
        loop: None: there is one pool for all threads.
        pools: The pools of the handle, this one included: what one finds out concerns all.
        context: What the adapters of its connections begin with; default: psycopg's.
    """

    # Every checkout reads many of them. An object with more than 30 attributes is slow without slots.
    __slots__ = (
        "_answered",
        "_asking",
        "_borrows",
        "_claimed",
        "_explained",
        "_healing",
        "_hooks",
        "_lease_at",
        "_lease_pause",
        "_longest_ping",
        "_lost_places",
        "_made_with",
        "_no_room",
        "_offers",
        "_pools",
        "_renewing",
        "_spares",
        "_wake",
        "connection_type",
        "connections",
        "connector",
        "driver",
        "dropped",
        "ending",
        "examined",
        "fair_share",
        "floor",
        "getconn",
        "guarded",
        "inherited",
        "keeps_recent",
        "lingers",
        "loop",
        "name",
        "on_lost",
        "outage",
        "pending",
        "recent",
        "record",
        "records",
        "settings",
        "single",
        "stats",
        "target",
        "thread",
        "timeout",
        "version",
        "waiting",
        "wants_primary",
    )

    def __init__(
        self,
        version: Version,
        connection_type: ConnectionType,
        *,
        stats: Stats,
        limits: ConnectionLimits,
        hooks: Hooks,
        loop: Loop,
        pools: Mapping[Loop, SyncPool],
        context: AdaptContext | None = None,
    ) -> None:
        self.name = version.config.name
        self.connection_type = connection_type
        self.connector = SyncConnector(
            version,
            connection_type,
            stats=stats,
            limits=limits,
            functions=hooks.configure,
            on_room=self.try_again_soon,
            context=context,
        )
        #: Every connection, idle or handed out, until the server has closed its end.
        self.connections = self.connector.connections
        self.outage = self.connector.outage
        self.fair_share = FairShare()
        self.loop = loop
        self.thread = threading.get_ident()
        self.single = connection_type in _SINGLE
        self.stats = stats
        # What every checkout calls or passes on, without the way to it.
        self.records = stats.records
        self.record = stats.records.extend
        self.on_lost = self._take_lost_back
        #: Whether it is closing for good.
        self.ending = False
        #: Whether it belongs to the parent of this process, and must not be touched.
        self.inherited = False
        #: The checkouts that wait for a connection. Adding and discarding are atomic.
        self.waiting: set[Checkout] = set()
        #: The connection that came back last, if no client waited. psycopg_pool counts it as out. A
        #: checkout counts as waiting before it looks here, and a connection is put here before the
        #: look for those who wait, so no client waits while a connection is here.
        self.recent: deque[SyncPooledConnection] = deque()
        #: Connections that a client by hand has closed and dropped; psycopg_pool counts them as out.
        self.dropped: deque[SyncPooledConnection] = deque()
        # How many waits for a connection are of the pool itself: for a probe, or to give one up.
        self._borrows = 0
        #: Connects, and other work, of which psycopg_pool counts the connection already.
        self.pending: set[object] = set()
        # What asks the server, until what follows a refusal is decided: connects, and connections
        # that were closed for a probe.
        self._asking: set[object] = set()
        # New connections that may take the place of older ones, and those that have a place.
        self._offers: deque[SyncPooledConnection] = deque()
        self._spares: deque[SyncPooledConnection] = deque()
        self._hooks = hooks
        self._pools = pools
        # Whether a limit forbade the last connect, and has not called since.
        self._no_room = False
        self._longest_ping = LONGEST_PING
        # When to ask for another user again after that failed, and how long the pause was: 0 if it
        # works.
        self._lease_at = self._lease_pause = 0.0
        # How often psycopg_pool had connected when it counted more connections than there are, and
        # when that was.
        self._lost_places: tuple[int, float] | None = None
        # What the last timeout was explained with, and when.
        self._explained: tuple[float, tuple[str, str]] | None = None
        #: Whether it was reported that older connections are out for too long.
        self.lingers = False
        self._wake = Signal()
        self._claimed = Signal()
        self._answered = Signal()
        # Held while lost connections are taken back, each once.
        self._healing = Lock()
        # Guards the step from one psycopg_pool to another. Held while the new one opens.
        self._renewing = Lock()
        self._take_settings(version)
        #: No connection of an older version is handed out.
        self.floor = self.version
        self.driver = self._new_driver()

    def _take_settings(self, version: Version) -> None:
        settings = version.config.pool(self.connection_type)
        self.target = version
        #: Connections of an older version are replaced when they come back.
        self.version = version.since
        self.settings: PoolSettings = settings
        self.timeout = settings.timeout
        self.wants_primary = version.config.wants_primary
        self._set_flags()

    def _set_flags(self) -> None:
        settings = self.settings
        #: Whether each checkout looks at its connection, however fresh it is.
        self.examined = settings.check_on_checkout or self.wants_primary
        #: Whether a checkout is looked at before it may wait.
        self.guarded = self.single or bool(settings.max_waiting) or self.outage.failure is not None
        #: Whether a connection that comes back may go into `recent`. psycopg_pool closes unused
        #: connections down to `min_size`, but not those that it counts as out.
        self.keeps_recent = settings.min_size > 0 and not self._borrows

    def adopt(self, version: Version, *, cut: bool = False) -> None:
        """Connect with this version from now on; from any thread.

        Args:
            version: What is in force.
            cut: Hand out no older connection from now on.
        """
        before = self.target
        if version is before:
            return
        reconnects = version.since > before.since
        self.connector.adopt(version)
        self._take_settings(version)
        if cut or before.leads_elsewhere(version):
            self.floor = self.version
        if reconnects:
            self.lingers = False
            soon(self.loop, self._wake.set)
        if self.waiting:  # max_connections may have been raised, too
            start_in(self.loop, self.nudge)

    def catch_up(self, version: Version) -> None:
        """Move to a version that was put in force while this pool could not be rotated."""
        self.adopt(version, cut=True)
        self.resize()

    def _new_driver(self) -> SyncDriverPool[SyncPooledConnection]:
        """Return a psycopg_pool that asks `connect` for its connections, not opened yet.

        It gives up each connect that fails: when to try again is for `gave_up` to decide.
        `max_waiting`, `check` and `reset` stay with us, too.

        The first client of a psycopg_pool makes it grow although `min_size` connections are under
        way already. So it may not be larger than that until the first one is made.
        """
        settings = self._made_with = self.settings
        largest = settings.max_size if self.opened else max(1, settings.min_size)
        driver: SyncDriverPool[SyncPooledConnection] = SyncDriverPool(
            connection_class=SyncPooledConnection,
            kwargs=lambda: {"connector": partial(self.connect, driver)},
            name=f"{NAME_PREFIX}{self.connector.label}",
            min_size=settings.min_size,
            max_size=largest,
            timeout=settings.timeout,
            max_idle=settings.max_idle,
            max_lifetime=settings.max_lifetime,
            reconnect_timeout=0,
            reconnect_failed=self.gave_up,
            num_workers=min(settings.num_workers, _MOST_AT_ONCE),
            open=False,
        )
        # What every checkout calls, without the way to it.
        self.getconn = driver.getconn
        return driver

    def open(self) -> None:
        """Start, unless that is done; `min_size` connections are made in the background."""
        if not self.driver.closed:
            return
        with self._renewing:
            driver = self.driver
            if driver.closed and not self.ending:
                try:
                    open_driver(driver)
                except BaseException:  # no thread could be started: another one is opened later
                    self.driver = self._new_driver()
                    driver.close(timeout=0)
                    raise

    @property
    def opened(self) -> bool:
        """Whether it has connected at least once, and is not closed."""
        return self.connector.opened and not self.ending

    def try_again_soon(self) -> None:
        """Connect for the clients that wait: there is room again. Called from any thread."""
        self._no_room = False
        if self.waiting and not self.inherited:
            start_in(self.loop, self.nudge)

    # Connecting

    def connect(self, driver: SyncDriverPool[SyncPooledConnection]) -> SyncPooledConnection:
        """Return a connection to psycopg_pool: a spare of the rotation, or a new one.

        Runs in its worker, which has other work: it waits for no limit, and after a failure two
        seconds at most.

        Args:
            driver: The psycopg_pool that asks.
        """
        connection = self._take_spare()
        if connection is None:
            connecting = object()
            self.pending.add(connecting)
            try:
                self._wake.wait(self.outage.pause_left())
                self._asking.add(connecting)
                if driver.closed:  # looked at after the step above: see `_finish_connects`
                    raise PoolClosed
                first = not self.opened
                # Until it is known: `try_again_soon` may come before the refusal does.
                self._no_room = True
                connection = self.connector.make(self.target)
                if first:
                    self._allow_growth(driver)
                self._set_flags()
                self._no_room = False
                if self._has_users_to_replace():
                    start(self._replace_users)
            except NoRoomError:
                raise
            except ConnectError:
                self._no_room = False
                self.guarded = True
                self._tell_waiting(driver)
                raise
            finally:
                self.pending.discard(connecting)
                self._asking.discard(connecting)
                self._answered.set()
        connection.join(driver)
        if driver.closed:
            connection.version = NO_VERSION
        return connection

    def _allow_growth(self, driver: SyncDriverPool[SyncPooledConnection]) -> None:
        """Let a psycopg_pool whose first connection was made become as large as it may be."""
        driver.resize(self._made_with.min_size, self._made_with.max_size)
        if len(self.waiting) > 1:
            start(self.nudge)

    def _has_users_to_replace(self) -> bool:
        """Tell whether connections are of other users than the one that is made on demand now."""
        on_demand = self.target.config.on_demand
        if on_demand is None or monotonic() < self._lease_at:
            return False
        users = self.connector.users()
        return len(users) > 1 or outdated(on_demand, users)

    def _replace_users(self) -> None:
        """Ask for a user whose lease has not ended, and replace the connections of the one before.

        A failure is reported once, and tried again less and less often: each try may make a user.
        """
        self._lease_at = monotonic() + _LONGEST_LEASE_PAUSE  # one at a time
        given = obtained(self.target.config)
        error = given.text if isinstance(given, ConnectFailure) else ""
        if not isinstance(given, ConnectFailure) and self.connector.users() - {given.user}:
            try:
                in_thread(self._hooks.force_reload)
            except ConnectError as failure:
                error = failure.text
        before, self._lease_pause = self._lease_pause, 0.0
        if error:
            self._lease_pause = min(max(before * 2, _FIRST_LEASE_PAUSE), _LONGEST_LEASE_PAUSE)
        self._lease_at = monotonic() + self._lease_pause
        if error and not before:
            report = partial(
                events.emit, "credentials.not_renewed", database=self.name, error=error
            )
            aside(report)

    def _take_spare(self) -> SyncPooledConnection | None:
        while (spare := _pop(self._spares)) is not None:
            if spare.version >= self.version and spare.is_alive():
                return spare
            spare.close()
        return None

    # Trying again

    def _tell_waiting(self, driver: SyncDriverPool[SyncPooledConnection]) -> None:
        """Tell the clients that queue why a connect failed, if waiting does not help."""
        target, failure = self.target, self.outage.failure
        if failure is not None and failure.reason == "auth":
            in_thread(self._hooks.on_refused)  # a file may have the right password by now
        if self.waiting and self.target is target and self.hopeless() is not None:
            # A worker cannot close its own psycopg_pool.
            start(self.renew, driver)

    def gave_up(self, driver: object) -> None:
        """Try again after a failed connect, if clients wait. Runs in the worker of psycopg_pool.

        psycopg_pool tries again by itself only when another client queues. If there is no room,
        the limits call when there is.
        """
        if self.waiting and driver is self.driver and not self._no_room:
            self.nudge()

    def hopeless(self) -> ConnectFailure | None:
        """Return why the last connect failed, if nothing is open and waiting does not help."""
        failure = self.outage.failure
        if failure is None or self.connections:
            return None
        return failure if failure.lasting or self.single else None

    def raise_if_hopeless(self) -> None:
        """Raise why the last connect failed, if waiting does not help."""
        if (failure := self.hopeless()) is not None:
            raise failure.error(self.name, self._hooks.rejected())

    def nudge(self) -> None:
        """Let psycopg_pool connect again for the clients that queue."""
        connection = self._borrow_idle()
        if connection is not None:
            connection.give_back(connection)

    def _borrow_idle(self) -> SyncPooledConnection | None:
        """Borrow an idle connection; if there is none, queue for a moment, so psycopg_pool grows.

        On a busy machine the moment may be over before psycopg_pool looks. Then the client did not
        queue, which changes nothing there, so it asks again.
        """
        driver, moment = self.driver, _MOMENT
        queued = driver.get_stats().get("requests_queued", 0)
        while True:
            try:
                return driver.getconn(moment)
            except PoolClosed:
                return None
            except PoolTimeout as timed_out:
                drop_frames(timed_out)
                if driver.get_stats().get("requests_queued", 0) > queued:
                    return None
                moment *= 2

    def resize(self) -> None:
        """Bring psycopg_pool to the sizes that are in force."""
        made_with, settings = self._made_with, self.settings
        if settings == made_with or self.ending:
            return
        others = attrgetter("max_idle", "max_lifetime", "num_workers")
        if settings.max_size >= made_with.max_size and others(settings) == others(made_with):
            self._made_with = settings
            self.driver.resize(settings.min_size, settings.max_size)
            if self.waiting:
                self.nudge()
        else:
            self.renew(self.driver)

    def renew(
        self, driver: SyncDriverPool[SyncPooledConnection], reason: str | None = None
    ) -> None:
        """Put another psycopg_pool in the place of this one.

        Only for what psycopg_pool has no call: telling the clients that queue of a lasting
        failure, a smaller `max_size`, and a connection that an interrupt made it lose. Clients
        that queue see `PoolClosed`, and ask again with the time they have left. Connections that
        are out are closed when they come back.

        Args:
            driver: What to replace; nothing happens if another one took its place.
            reason: Under which its connections count as evicted, if they do.
        """
        with self._renewing:
            if self.driver is not driver or self.ending:
                return
            self.driver = self._new_driver()
        if reason is not None:
            self.stats.evicted[reason] += sum(
                one.link.driver is driver and one.link.hung_up_at is None
                for one in self.connections.copy()
            )
        self.open()
        self._close_driver(driver)

    def end(self) -> None:
        """Close for good. Connections that are out are closed when they come back."""
        self.ending = True
        self._wake.set()
        with self._renewing:
            driver = self.driver
        self.getconn = _refuse
        self._close_driver(driver)
        if self.outage.failure is None:  # else the server may not answer at all
            self._finish_connects()
        self.connector.begin_end()
        for spares in (self._offers, self._spares):
            while (spare := _pop(spares)) is not None:
                spare.close()
        self.connector.let_go()
        self.connector.ended = True

    def _finish_connects(self) -> None:
        """Wait until no connect is under way, a second at most, and close what was made."""
        deadline = monotonic() + LONGEST_GOODBYE
        while self._asking and self._answered.wait(deadline - monotonic()):
            pass
        self.hang_up()

    def _close_driver(self, driver: SyncDriverPool[SyncPooledConnection]) -> None:
        """Close a psycopg_pool, its idle connections, and those that no checkout holds.

        A checkout sets itself as the holder before it looks at the version, so either it sees
        that the connection is too old, or it is seen here.
        """
        # Before the first wait, which the end of its loop may cut short.
        self._hang_up(driver)
        let_queue(driver, self.waiting)
        # No waiting for its worker: it may be connecting, and it may be the one that called.
        driver.close(timeout=0)
        # What a client got in the moment when it gave up: psycopg_pool drops it when it is closed.
        self._hang_up(driver)
        self.connector.let_go()

    def _hang_up(self, driver: SyncDriverPool[SyncPooledConnection]) -> None:
        connections = [one for one in self.connections.copy() if one.link.driver is driver]
        for connection in connections:
            connection.version = NO_VERSION
        for connection in connections:
            if connection.holder is None:
                connection.hang_up()

    def hang_up(self) -> None:
        """Close at this end what no checkout holds: nothing is handed out any more."""
        for connection in self.connections.copy():
            connection.version = NO_VERSION
            if connection.holder is None:
                connection.hang_up()

    def drop(self) -> None:
        """Close everything at once: its event loop is closed, and nothing can wait in it."""
        self.ending = self.connector.ended = True
        end_tasks(self.loop)
        for connection in self.connections.copy():
            connection.pgconn.finish()
            connection.forget()

    # Handing out and taking back

    def admit(self, checkout: Checkout) -> None:
        """Refuse a checkout that cannot succeed now, or that would wait for itself or too many others.

        Raises:
            ConnectError: nothing is open, and the login was refused a moment ago.
            NestedCheckoutError: its thread holds the one connection already.
            TooManyWaiting: `max_waiting` others wait.
        """
        if (
            not self._asking  # else the files may be read at this moment, for another login
            and (failure := self.hopeless())
            and refused_logins.paused(self.target.config)
        ):
            self.stats.errors["other"] += 1
            raise failure.error(self.name, self._hooks.rejected())
        if self.single:
            for connection in self.connections.copy():
                holder = connection.holder
                if holder and (outer := holder()) and outer.owner == checkout.owner:
                    raise messages.nested_checkout(self.name, self.connection_type, outer)
        limit = self.settings.max_waiting
        if limit and len(self.waiting) >= limit:
            numbers = self.numbers()
            out = len(numbers.held) + len(numbers.retired)
            if out + numbers.waiting >= self.settings.max_size + limit:
                self.stats.errors["too_many"] += 1
                raise messages.too_many_waiting(
                    self.name,
                    numbers.waiting,
                    limit,
                    self.settings.max_size,
                    self._hooks.rejected(),
                )

    def numbers(self) -> Numbers:
        """Count the connections of this moment. It waits for nothing."""
        held: list[Checkout] = []
        retired: list[Checkout] = []
        idle = closing = 0
        for connection in self.connections.copy():
            holder = connection.holder
            if connection.link.hung_up_at is not None:
                closing += 1
            elif holder is None:
                idle += connection.link.driver is not None
            elif (checkout := holder()) is not None:
                (held if connection.version >= self.version else retired).append(checkout)
        return Numbers(idle, held, retired, closing, len(self.waiting))

    def is_fit(self, connection: SyncPooledConnection, left: float) -> bool:
        """Tell whether a connection may be handed out; if not, it is closed and replaced.

        Args:
            connection: What psycopg_pool gave.
            left: Seconds that the checkout has left.
        """
        now = monotonic()
        reason = self._unfit(connection, now)
        used = reason is None and bool(connection.pgconn.transaction_status)
        if used or (
            reason is None
            and (self.settings.check_on_checkout or now - connection.returned_at >= LONG_IDLE)
        ):
            reason = "used" if used else "check"
            asks = connection.roll_back if used else connection.ping
            try:
                if asks(min(self._longest_ping, left / 3)):
                    reason = None
                    self._longest_ping = LONGEST_PING
            finally:
                if reason is not None:  # an interrupt, too: its answer is still to come
                    self._longest_ping = max(_SHORTEST_PING, self._longest_ping / 2)
                    self.retire(connection, reason)
            if used:
                self._report_use(connection.borrower)
            if reason is not None:
                return False
        if reason is None and self.wants_primary and self.is_demoted(connection):
            reason = "standby"
        if reason is None:
            return True
        self.retire(connection, reason)
        if reason == "standby":
            self.leave_server(connection.link.driver)
        return False

    def _unfit(self, connection: SyncPooledConnection, now: float) -> str | None:
        """Return why a connection must not be handed out, as far as no server is asked."""
        if connection.version < self.floor:
            return "rotation"
        unused = connection.expires_at == UNUSED
        if unused:
            connection.expires_at = connection.link.expires_at
        if now >= connection.expires_at:
            return "lifetime"
        looked_at = (
            unused
            or now - connection.returned_at >= FRESH
            or connection.pgconn.transaction_status  # its last borrower may have closed it
        )
        if looked_at and not connection.is_alive():
            self.suspect_all()
            return "dead"
        return None

    def is_demoted(self, connection: SyncPooledConnection, error: object = None) -> bool:
        """Tell whether the server of a connection is no primary any more, so that all must leave it.

        libpq knows what the server said with its last answer. Before PostgreSQL 14, and behind some
        poolers, it does not, and an error is the only sign. Both may be the doing of a block that
        wants to read only. So the server is asked, which is one round trip in these cases.

        Args:
            connection: One without a transaction.
            error: The exception of its block.
        """
        if connection.closed:
            return False
        standby = connection.reported(b"in_hot_standby")
        if standby == b"on":
            return True
        question = b"SELECT pg_is_in_recovery()"
        if self.target.config.needs_writes:
            question = _TAKES_NO_WRITES
            asks = connection.reported(b"default_transaction_read_only") == b"on"
        else:
            asks = False
        if standby is None and isinstance(error, BaseException):
            asks = asks or any(isinstance(one, ReadOnlySqlTransaction) for one in chain(error))
        if not asks:
            return False
        answer = connection.ask(question, LONGEST_PING)
        return answer is None or answer.get_value(0, 0) == b"t"

    def leave_server(self, driver: SyncDriverPool[SyncPooledConnection]) -> None:
        """Replace all connections of the handle, in every loop: their server is no primary any more.

        Args:
            driver: The psycopg_pool whose connection has shown that; nothing happens if another one
                took its place.
        """
        if self.driver is driver and not self.ending:
            for pool in list(self._pools.values()):
                if pool is not self:
                    start_in(pool.loop, partial(pool.renew, pool.driver, "standby"))
        self.renew(driver, "standby")

    def suspect_all(self) -> None:
        """Look at every connection of the handle before it is handed out: one of them was dead.

        What killed that one may have killed those that came back a moment ago, in every loop.
        """
        for pool in list(self._pools.values()):
            for connection in pool.connections.copy():
                connection.expires_at = UNUSED

    def _report_use(self, borrower: CodeType | None) -> None:
        """Report that a connection was used after its return, once for each borrower."""
        name = "checkout.used_after_return"
        place = messages.function_name(borrower)
        if events.is_first(name, place):
            report = partial(
                events.emit,
                name,
                database=self.name,
                connection_type=self.connection_type,
                place=place,
            )
            aside(report)

    def retire(self, connection: SyncPooledConnection, reason: str | None) -> None:
        """Close a connection and let psycopg_pool replace it.

        Args:
            connection: One that was borrowed from psycopg_pool.
            reason: Under which it counts as evicted, if it does.
        """
        if reason is not None and connection.version != NO_VERSION:
            self.stats.evicted[reason] += 1
        connection.holder = None
        connection.hang_up()
        connection.give_back(connection)
        if self.ending:
            self.connector.let_go()
        elif connection.link.driver is not self.driver:
            # What took the place of its psycopg_pool may have had no room.
            start(self.connector.let_go)
            self.try_again_soon()

    def put(self, connection: SyncPooledConnection) -> None:
        """Take back a connection that no block has used, so nothing shows that it is alive."""
        connection.holder = None
        connection.expires_at = UNUSED
        if connection.version < self.version:
            self.take_back(connection)
        else:
            connection.give_back(connection)

    def pass_on_recent(self) -> None:
        """Give the connection that came back last to psycopg_pool, whose clients wait for it."""
        while (connection := _pop(self.recent)) is not None:
            connection.give_back(connection)

    def borrow(self, timeout: float) -> SyncPooledConnection:
        """Borrow a connection for work of the pool: it queues as a client does.

        Raises:
            PoolTimeout: none came back in time.
            PoolClosed: the pool is closed for good.
        """
        deadline = monotonic() + timeout
        self._borrows += 1
        self._set_flags()
        try:
            while True:
                self.pass_on_recent()
                try:
                    return self.getconn(deadline - monotonic())
                except PoolClosed:  # another psycopg_pool took its place
                    if self.ending:
                        raise
                    self.open()
        finally:
            self._borrows -= 1
            self._set_flags()

    def take_back(self, connection: SyncPooledConnection) -> None:
        """Take back a connection of an older version: replace it, unless its turn comes later."""
        claimed = connection.version != NO_VERSION and self.claim()
        if claimed or connection.version < self.floor:
            self.retire(connection, "rotation")
        else:
            connection.give_back(connection)
        if claimed:
            self._claimed.set()

    def interrupted(self, connection: SyncPooledConnection | None, error: BaseException) -> None:
        """Act on an interrupt that came between psycopg_pool and the block.

        psycopg_pool may count a connection as out that no block has, so another one takes its
        place. psycopg_pool itself foresees cancellations.

        Args:
            connection: The connection, if the checkout had it.
            error: The interrupt.
        """
        if connection is not None and connection.link.hung_up_at is None:
            connection.holder = None
        elif isinstance(error, (Cancelled, GeneratorExit, PgmonkeyError)):
            return
        if not isinstance(error, GeneratorExit):
            start_in(self.loop, partial(self.renew, self.driver))

    def is_over(self) -> bool:
        """Tell whether a block of this pool can wait for nothing any more."""
        return self.inherited or is_closed(self.loop)

    def leave_behind(self, connection: SyncPooledConnection) -> None:
        """Close the connection of a block whose loop was closed; leave that of a parent alone."""
        if not self.inherited:
            connection.holder = None
            connection.pgconn.finish()
            connection.forget()

    def timed_out(self, waited: float) -> CheckoutTimeout:
        """Return the error of a checkout that got no connection in time."""
        self.heal()
        self.stats.errors["timeout"] += 1
        failure = self.outage.failure
        now = monotonic()
        if self._explained is None or now - self._explained[0] > _SAME_MOMENT:
            limit = None
            if len(self.connections) < self.settings.max_size:
                limit = self.connector.explain_limit(self.target)
            explained = messages.explain_timeout(
                self.numbers(), self.settings.max_size, limit, failure
            )
            self._explained = (now, explained)
        return messages.checkout_timeout(
            self.name, waited, self._explained[1], failure, self._hooks.rejected()
        )

    def _take_lost_back(self, _holder: object) -> None:
        """Take back what a lost checkout holds: called when a checkout is freed, by any thread.

        That thread may hold any lock at that moment, so nothing is waited for here. When the program
        ends, every checkout is freed.
        """
        if not self.inherited and not sys.is_finalizing():
            release_in(self.loop, self.heal)

    def heal(self) -> None:
        """Take back what lost checkouts hold, and replace a psycopg_pool that keeps too much.

        Lost checkouts: the borrower was interrupted before it could give the connection back.
        """
        if self.lost():
            with self._healing:
                places = [self._take_back_lost(connection) for connection in self.lost()]
            for place in places:
                events.emit(
                    "checkout.abandoned",
                    database=self.name,
                    connection_type=self.connection_type,
                    place=place,
                )
        driver = self.driver
        stats = driver.get_stats()
        # It takes clients that gave up out of its queue when a connection comes.
        clogged = stats["requests_waiting"] > len(self.waiting) + _LONGEST_QUEUE
        if self._has_lost_places(stats) or (clogged and not self.connections):
            self.renew(driver)

    def _has_lost_places(self, stats: dict[str, int]) -> bool:
        """Tell whether psycopg_pool counts connections that do not come.

        It counts one before its worker begins to connect, so it takes two looks, without a connect
        between them.
        """
        excess = stats["pool_size"] - len(self.connections)
        if self.pending or excess <= 0:
            self._lost_places = None
            return False
        attempts, now = stats.get("connections_num", 0), monotonic()
        if self._lost_places is None or self._lost_places[0] != attempts:
            self._lost_places = (attempts, now)
        return now - self._lost_places[1] >= _SETTLED

    def _take_back_lost(self, connection: SyncPooledConnection) -> str:
        """Take back the connection of a lost checkout, and return who had borrowed it."""
        with suppress(ValueError):
            self.dropped.remove(connection)
        self.stats.leaks += 1
        self.retire(connection, None)
        return messages.function_name(connection.borrower)

    def lost(self) -> list[SyncPooledConnection]:
        """Return the connections of lost checkouts."""
        return [
            one
            for one in self.connections.copy()
            if (holder := one.holder) is not None and holder() is None
        ] + list(self.dropped)

    def needs_care(self) -> bool:
        """Tell whether `care` has something to do."""
        now = monotonic()
        failure = self.outage.failure
        return (
            (failure is not None and not self.connections and not self.pending)
            or self.is_short()
            or bool(self.dropped)
            or self._lost_places is not None
            or self._has_users_to_replace()
            or any(
                (one.version < self.floor and one.holder is None)
                or (one.holder is not None and one.holder() is None)
                or now - (one.link.hung_up_at or now) > LONGEST_GOODBYE
                for one in self.connections.copy()
            )
        )

    def care(self) -> None:
        """Do what is due when no client asks: close what is old or lost, and connect again."""
        if self.ending or self.inherited:
            return
        self.heal()
        if any(one.version < self.floor and one.holder is None for one in self.connections.copy()):
            self.finish_rotation()
        self.connector.let_go()
        if (
            self.outage.failure is not None
            and not self.connections
            and not self.pending
            and not self.outage.pause_left()
            and not refused_logins.paused(self.target.config)
        ):
            self.nudge()
        if self.is_short():
            self._grow()
        if self._has_users_to_replace():
            start(self._replace_users)  # a resolver may take long

    def is_short(self) -> bool:
        """Tell whether psycopg_pool has given up connections of `min_size`, and could have them."""
        return (
            not self.pending
            and self.outage.failure is None
            and not self.driver.closed
            and self.driver.get_stats()["pool_size"] < self._made_with.min_size
        )

    def _grow(self) -> None:
        """Let psycopg_pool grow to `min_size`, which it does only when nothing is idle."""
        idle: list[SyncPooledConnection] = []
        try:
            while self.driver.get_stats()["pool_available"]:
                if (connection := self._borrow_idle()) is None:
                    return
                idle.append(connection)
            self.nudge()
        finally:
            for connection in idle:
                connection.give_back(connection)

    # What `giving_way` asks

    def may_give_way(self) -> bool:
        """Tell whether it is time to ask the server whether others need connections.

        A pooler answers for the server behind it, which is not what its clients lack.
        """
        return self.target.config.pooler == "none" and self.fair_share.is_due(len(self.connections))

    def give_up(self, connection: SyncPooledConnection) -> None:
        """Close a borrowed connection; psycopg_pool believes that a client has it."""
        self.pending.add(connection)
        self.stats.evicted["full"] += 1
        connection.hang_up()

    def want_again(self, connection: SyncPooledConnection) -> None:
        """Let psycopg_pool replace a connection that was given up."""
        connection.give_back(connection)
        self.pending.discard(connection)

    # What the rotation asks

    def offer(self, spare: SyncPooledConnection) -> None:
        """Let a new connection take the place of the next older one that comes back."""
        self._claimed.clear()
        self._offers.append(spare)

    def claim(self) -> bool:
        """Take the offer, if there is one: psycopg_pool gets it next."""
        spare = _pop(self._offers)
        if spare is None:
            return False
        self._spares.append(spare)
        return True

    def close_for_probe(self, connection: SyncPooledConnection) -> None:
        """Close a borrowed connection, and keep its place within the limits for a probe."""
        self.pending.add(connection)
        self._asking.add(connection)
        self.connector.keep_place(connection)

    def put_back(self, connection: SyncPooledConnection) -> None:
        """Let psycopg_pool replace a connection that `close_for_probe` has closed."""
        self.connector.give_place(connection)
        connection.give_back(connection)
        self.pending.discard(connection)
        self._asking.discard(connection)
        self._answered.set()

    def replace_idle(self) -> bool:
        """Give the place of an idle older connection to the offer; tell whether that was done."""
        connection = self._borrow_older()
        if connection is None:
            return False
        if not self.claim():
            connection.give_back(connection)
            return False
        self.retire(connection, "rotation")
        return True

    def wait_claimed(self, seconds: float) -> bool:
        """Wait until a client gave its place to the offer, and tell whether one did in time."""
        return self._claimed.wait(seconds)

    def finish_rotation(self) -> None:
        """Hand out no older connection any more, and close those that are idle.

        An offer that no client took goes to the clients that wait, or is closed.
        """
        self.floor = self.version
        while (connection := self._borrow_older()) is not None:
            self.take_back(connection)
        spare = _pop(self._offers)
        if spare is not None and self.waiting:
            self._spares.append(spare)
            self.nudge()
            spare = _take(self._spares, spare)
        if spare is not None:
            spare.close()
        self.connector.let_go()

    def _borrow_older(self) -> SyncPooledConnection | None:
        self.pass_on_recent()
        for _ in range(self.driver.get_stats()["pool_available"]):
            connection = self._borrow_idle()
            if connection is None or connection.version < self.version:
                return connection
            connection.give_back(connection)
        return None


def _refuse(timeout: float | None = None) -> NoReturn:  # noqa: ARG001 - as psycopg_pool's
    """Stand for the `getconn` of a psycopg_pool that is about to be closed."""
    raise PoolClosed


def _take(
    spares: deque[SyncPooledConnection], spare: SyncPooledConnection
) -> SyncPooledConnection | None:
    try:
        spares.remove(spare)
    except ValueError:
        return None
    return spare


def _pop(spares: deque[SyncPooledConnection]) -> SyncPooledConnection | None:
    try:
        return spares.popleft()
    except IndexError:
        return None
