"""How many server connections there may be: of one handle (`Gate`), and of all (`Budget`).

Each connection has a `Slot` while it exists. A handle's gate keeps old and new generations
together within `max_size`; the budget of the registry keeps all databases within `max_connections`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.pool.connect_failure import ConnectFailure
from pgmonkey.pool.usage import Usage

if TYPE_CHECKING:
    from psycopg._connection_base import BaseConnection

    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.target import Target

#: As many more slots than the limit as there may ever be.
UNLIMITED: Final = 1_000_000
#: Connects of a pool that are under way at a time: a server that comes back is not stormed by
#: the very clients that waited for it. A probe may be one more.
MOST_AT_ONCE: Final = 2
#: Seconds after which a server that does not answer a farewell is taken to have let go, and
#: the pause between two looks at it.
LONGEST_FAREWELL: Final = 1.0
FAREWELL_STEP: Final = 0.001


class Slot:
    """Stand for one server connection while it exists, at our end or at the server's."""

    __slots__ = ("_gate", "connection", "holder", "server")

    def __init__(self, gate: Gate, server: str, holder: str) -> None:
        self._gate = gate
        #: Which server it is to, and for which handle.
        self.server = server
        self.holder = holder
        #: The connection, once it is made.
        self.connection: weakref.ref[BaseConnection[Any]] | None = None

    def fill(self, connection: BaseConnection[Any]) -> None:
        """Note that the connection is made, and let the next one be begun."""
        self.connection = weakref.ref(connection)
        self._gate.made(self)

    def release(self) -> None:
        """Give the slot back. Does nothing the second time; safe in a destructor."""
        self._gate.leave(self)

    def release_when_closed(self, descriptor: int) -> None:
        """Give the slot back when the server has let go of the connection.

        A server process lives on for some milliseconds after its client has hung up, and
        counts against the limits of server and role; a connection made in that time could be
        one too many.

        Args:
            descriptor: A duplicate of the connection's socket, which is read to its end and
                closed here.
        """
        self._gate.linger(_Farewell(self, descriptor))


class _Farewell:
    """Wait for the server's end of a connection that was closed at ours."""

    __slots__ = ("_descriptor", "expires_at", "slot")

    def __init__(self, slot: Slot, descriptor: int) -> None:
        self.slot = slot
        self._descriptor = descriptor
        self.expires_at = monotonic() + LONGEST_FAREWELL

    def is_over(self) -> bool:
        """Tell whether the server has let go; it is not waited for, and not for ever."""
        try:
            while os.read(self._descriptor, 4096):
                pass  # its last words
        except BlockingIOError:
            return monotonic() > self.expires_at
        except OSError:
            return True
        return True

    def __del__(self) -> None:
        os.close(self._descriptor)


class Gate:
    """Count the server connections of all generations of one handle, and keep what they met.

    A new generation may only connect while old and new together stay within the pool's
    `max_size`: what checkouts of a retired generation still hold counts against the new one.
    `leave` runs in destructors, at any moment and in any thread, so it takes no lock: it
    only uses operations that the interpreter makes atomic.

    Args:
        limit: Server connections allowed at a time; the probe of a reload may be one over it.
        usage: Where connects are counted.
        share: The part in the budget of all databases together, or `None`.
    """

    __slots__ = (
        "_failing_since",
        "_farewells",
        "_lock",
        "_opening",
        "_slots",
        "_usage",
        "_wakers",
        "last_failure",
        "limit",
        "share",
    )

    def __init__(self, limit: int, usage: Usage, share: Share | None = None) -> None:
        self.limit = limit
        self.share = share
        self.last_failure: ConnectFailure | None = None
        self._usage = usage
        self._failing_since: float | None = None
        self._slots: set[Slot] = set()
        #: The slots whose connection is being made.
        self._opening: set[Slot] = set()
        self._wakers: list[Callable[[], object]] = []
        self._farewells: deque[_Farewell] = deque()
        # Guards the step from counting to adding in `enter`. Never held while waiting.
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Return how many server connections exist or are being made."""
        self._reap()
        return len(self._slots)

    def count_attempt(self, failure: ConnectFailure | None, seconds: float) -> None:
        """Count one connect, of the generation in force or of a candidate.

        Args:
            failure: Why it failed, or `None`.
            seconds: How long it took.
        """
        usage = self._usage
        usage.attempts += 1
        if failure is None:
            usage.record_connect(seconds)
        else:
            usage.failures[failure.reason] += 1

    def note(self, failure: ConnectFailure | None) -> float | None:
        """Record the result of a connect of the current generation.

        Args:
            failure: Why it failed, or `None`.

        Returns:
            For a success, how long connects had been failing, or `None` if they had not; for a
            failure, 0.0 if it is the first one, else how long they have been failing.
        """
        now = monotonic()
        since = self._failing_since
        self.last_failure = failure
        if failure is None:
            self._failing_since = None
            return None if since is None else now - since
        if since is None:
            self._failing_since = now
            return 0.0
        return now - since

    def outage(self) -> float:
        """Return for how many seconds connects have been failing."""
        since = self._failing_since
        return 0.0 if since is None else monotonic() - since

    def enter(self, server: str = "", *, beyond: int = 0, claimed: bool = False) -> Slot | None:
        """Take a slot; `None` if all are taken, here or in the budget, or two are being filled.

        Args:
            server: Which server the connection goes to.
            beyond: How many more than the limit are allowed: 1 for a probe.
            claimed: Whether a claim has kept a place in the budget free.
        """
        if len(self._slots) >= self.limit + beyond:
            self._reap()
        share = self.share
        with self._lock:
            if len(self._slots) >= self.limit + beyond:
                return None
            if len(self._opening) >= MOST_AT_ONCE + beyond:
                return None
            slot = Slot(self, server, share.holder if share else "")
            if share is not None and not share.enter(slot, claimed=claimed):
                return None
            self._slots.add(slot)
            self._opening.add(slot)
            return slot

    def made(self, slot: Slot) -> None:
        """Let the next connect begin: this one has its connection."""
        self._opening.discard(slot)
        self.wake()

    def leave(self, slot: Slot) -> None:
        """Give a slot back and wake those who wait for one."""
        if slot in self._slots:
            self._opening.discard(slot)
            self._slots.discard(slot)
            if self.share is not None:
                self.share.budget.leave(slot)
            self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        while self._wakers:
            with suppress(IndexError):  # another thread took the last one
                self._wakers.pop()()

    def abandon(self) -> None:
        """Close every connection at once, in any state: they cannot be used any more."""
        for slot in self._slots.copy():
            connection = slot.connection() if slot.connection is not None else None
            if connection is not None:
                connection.pgconn.finish()
            self.leave(slot)

    def lingers(self) -> bool:
        """Tell whether the server has yet to let go of a connection that was closed."""
        self._reap()
        return bool(self._farewells)

    def linger(self, farewell: _Farewell) -> None:
        """Keep a slot until the server has let go of its connection."""
        self._farewells.append(farewell)
        self.wake()  # those who wait must look at it now and then
        if self.share is not None:
            self.share.budget.linger(self)

    def _reap(self) -> None:
        """Give back the slots of connections that the server has let go."""
        farewells = self._farewells
        for _ in range(len(farewells)):
            try:
                farewell = farewells.popleft()
            except IndexError:
                return  # another thread is at it
            if farewell.is_over():
                self.leave(farewell.slot)
            else:
                farewells.append(farewell)

    def wait(
        self,
        refused: Callable[[], bool],
        held: Callable[[], bool] = lambda: False,
        *,
        server: str = "",
        beyond: int = 0,
        claimed: bool = False,
        timeout: float | None = None,
    ) -> Slot | None:
        """Wait for a slot, in the worker thread of a pool or for a probe.

        Args:
            refused: Asked at every wake-up: true when this generation may not connect any more.
            held: Asked likewise: true while it must leave a free slot to a probe.
            server: As in `enter`.
            beyond: As in `enter`.
            claimed: As in `enter`.
            timeout: Seconds; default: for ever.

        Returns:
            The slot, or `None` when refused or too late.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while not refused():
            waker = _ThreadWaker()
            self._wait_with(waker)
            slot: Slot | None = None
            try:
                # Registered before looking, so that no wake-up falls between the look and the wait.
                if (
                    not refused()
                    and not held()
                    and (slot := self.enter(server, beyond=beyond, claimed=claimed))
                ):
                    return slot
                left = self._patience(deadline)
                if not refused() and left != 0.0:
                    waker.wait(left)
            except BaseException:  # Ctrl-C: the caller does not get the slot
                if slot is not None:
                    slot.release()
                raise
            finally:
                self._forget(waker)
            if deadline is not None and monotonic() >= deadline:
                break
        return None

    async def wait_async(
        self,
        refused: Callable[[], bool],
        held: Callable[[], bool] = lambda: False,
        *,
        server: str = "",
        beyond: int = 0,
        claimed: bool = False,
        timeout: float | None = None,
    ) -> Slot | None:
        """Wait for a slot, in the worker task of a pool or for a probe; see `wait`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else monotonic() + timeout
        while not refused():
            woken = loop.create_future()
            waker = _LoopWaker(loop, woken)
            self._wait_with(waker)
            try:
                if (
                    not refused()
                    and not held()
                    and (slot := self.enter(server, beyond=beyond, claimed=claimed))
                ):
                    return slot
                left = self._patience(deadline)
                if not refused() and left != 0.0:
                    alarm = None if left is None else loop.call_later(left, waker.wake)
                    try:
                        await woken
                    finally:
                        if alarm is not None:
                            alarm.cancel()
            finally:
                self._forget(waker)
            if deadline is not None and monotonic() >= deadline:
                break
        return None

    def _patience(self, deadline: float | None) -> float | None:
        """Return for how long to wait before looking again, or `None`: until woken."""
        left = None if deadline is None else max(0.0, deadline - monotonic())
        share = self.share
        if not self._farewells and (share is None or not share.budget.lingers()):
            return left
        return FAREWELL_STEP if left is None else min(left, FAREWELL_STEP)

    def _wait_with(self, waker: Callable[[], object]) -> None:
        self._wakers.append(waker)
        if self.share is not None:
            self.share.budget.wait_with(waker)

    def _forget(self, waker: Callable[[], object]) -> None:
        with suppress(ValueError):  # it was called already
            self._wakers.remove(waker)
        if self.share is not None:
            self.share.budget.forget_waker(waker)


class _ThreadWaker:
    """Wake a thread; called by the gate, by the budget, or by both."""

    __slots__ = ("_woken",)

    def __init__(self) -> None:
        self._woken = threading.Lock()
        self._woken.acquire()

    def __call__(self) -> None:
        with suppress(RuntimeError):  # it was woken already
            self._woken.release()

    def wait(self, timeout: float | None) -> None:
        """Wait to be woken, for this many seconds or for ever."""
        self._woken.acquire(timeout=-1 if timeout is None else timeout)


class _LoopWaker:
    """Wake a task from any thread."""

    __slots__ = ("_loop", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
        self._loop = loop
        self._woken = woken

    def __call__(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Wake the task, on its own loop."""
        if not self._woken.done():
            self._woken.set_result(None)


class Budget:
    """Count the server connections of all databases of one registry, in this process.

    It is a cap: a connection that is open stays with its pool, used or not, until that pool
    closes it. Pools that wait for a place are woken whenever one is given back, and the first
    to look takes it; only the probe of a reload goes before the others.

    Args:
        limit: Server connections allowed at a time, over all servers; `None` is no limit.
    """

    __slots__ = ("_claims", "_lingering", "_lock", "_servers", "_slots", "_wakers", "limit")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._slots: set[Slot] = set()
        self._servers: dict[str, set[Slot]] = {}
        #: The servers of the probes that wait: the next free places are theirs.
        self._claims: list[str] = []
        self._wakers: list[Callable[[], object]] = []
        #: The gates with connections that the server has yet to let go.
        self._lingering: set[Gate] = set()
        # Guards the step from counting to adding in `enter`. Never held while waiting.
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Return how many server connections exist or are being made."""
        self.reap()
        return len(self._slots)

    def enter(self, slot: Slot, limit: int | None, *, claimed: bool = False) -> bool:
        """Take a place for a slot, unless all are taken.

        Args:
            slot: What stands for the connection.
            limit: Server connections allowed at a time to its server; `None` is no limit.
            claimed: Whether a claim has kept the place free.
        """
        if self.is_full(slot.server, limit, claimed=claimed):
            self.reap()
        with self._lock:
            if self.is_full(slot.server, limit, claimed=claimed):
                return False
            self._slots.add(slot)
            self._servers.setdefault(slot.server, set()).add(slot)
            return True

    def is_full(self, server: str, limit: int | None, *, claimed: bool = False) -> bool:
        """Tell whether no more connection may be made to a server."""
        kept = 0 if claimed else len(self._claims)
        if self.limit is not None and len(self._slots) + kept >= self.limit:
            return True
        if limit is None:
            return False
        kept = 0 if claimed else self._claims.count(server)
        return len(self._servers.get(server, ())) + kept >= limit

    def leave(self, slot: Slot) -> None:
        """Give a place back. Takes no lock: it may run in a destructor, at any moment."""
        self._slots.discard(slot)
        if (of_server := self._servers.get(slot.server)) is not None:
            of_server.discard(slot)
        self.wake()

    @contextmanager
    def claim(self, server: str) -> Iterator[None]:
        """Keep the next place that is given back for a probe."""
        self._claims.append(server)
        try:
            yield
        finally:
            self._claims.remove(server)
            self.wake()

    def explain(self, server: str, limit: int | None) -> str | None:
        """Return who holds the connections, in words; `None` while there is room."""
        self.reap()
        if not self.is_full(server, limit):
            return None
        if self.limit is not None and len(self._slots) + len(self._claims) >= self.limit:
            what, highest, slots = "this process", self.limit, self._slots.copy()
        else:
            assert limit is not None
            what, highest, slots = server, limit, self._servers[server].copy()
        counted = Counter(slot.holder for slot in slots)
        holders = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        held = ", ".join(f"{holder} {number}" for holder, number in holders[:8])
        more = f" and {len(holders) - 8} more" if len(holders) > 8 else ""
        return (
            f"all {highest} connections that max_connections allows to {what} are held"
            f" ({held}{more})"
        )

    # Waiting is done at the gates; here is what they need for it.

    def wait_with(self, waker: Callable[[], object]) -> None:
        """Call this once, when a place may be free."""
        self._wakers.append(waker)

    def forget_waker(self, waker: Callable[[], object]) -> None:
        """Call this no more."""
        with suppress(ValueError):  # it was called already
            self._wakers.remove(waker)

    def wake(self) -> None:
        """Let everybody who waits look again."""
        # Only those of now: one that looks in vain is back before the last one is called.
        for _ in range(len(self._wakers)):
            with suppress(IndexError):  # another thread took the last one
                self._wakers.pop(0)()

    def linger(self, gate: Gate) -> None:
        """Look after a gate whose server has yet to let go of a connection."""
        self._lingering.add(gate)
        self.wake()  # those who wait must look at it now and then

    def lingers(self) -> bool:
        """Tell whether a server has yet to let go of a connection that was closed."""
        return bool(self._lingering)

    def reap(self) -> None:
        """Give back the places of connections that their servers have let go."""
        for gate in self._lingering.copy():
            if not gate.lingers():
                self._lingering.discard(gate)

    def forget(self) -> None:
        """Forget all connections in a child process: they are the parent's."""
        Budget.__init__(self, self.limit)


class Share:
    """The part of a budget that one handle uses.

    Args:
        budget: The budget of its registry.
        target: The configuration of the handle; it has the limit of its server.
        holder: The name and the type of the handle, for those who have to wait for it.
    """

    __slots__ = ("_target", "budget", "holder")

    def __init__(self, budget: Budget, target: Target, holder: str) -> None:
        self.budget = budget
        self.holder = holder
        self._target = target

    @property
    def is_limited(self) -> bool:
        """Tell whether there is any limit."""
        return self.budget.limit is not None or self._limit is not None

    def enter(self, slot: Slot, *, claimed: bool = False) -> bool:
        """Take a place for a slot, unless all are taken; see `Budget.enter`."""
        return self.budget.enter(slot, self._limit, claimed=claimed)

    def is_full(self, server: str) -> bool:
        """Tell whether no more connection may be made to a server."""
        return self.budget.is_full(server, self._limit)

    def explain(self, config: DatabaseConfig | None = None) -> str | None:
        """Return who holds the connections of its server, in words; `None` while there is room."""
        config = config or self._target.applied.config
        return self.budget.explain(config.server, self._limit)

    @property
    def _limit(self) -> int | None:
        return self._target.applied.config.max_connections
