"""The budget: how many server connections all databases of a registry may have together."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.gate import Gate, Slot
    from pgmonkey.pool.target import Target


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
        #: The servers of the probes that wait for a place, which nobody else may take.
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
        self.wake()  # whoever waits must look at it now and then

    def lingers(self) -> bool:
        """Tell whether a server has yet to let go of a connection that was closed."""
        return bool(self._lingering)

    def reap(self) -> None:
        """Give back the places of connections that their servers have let go."""
        for gate in self._lingering.copy():
            if not gate.lingers():
                self._lingering.discard(gate)

    def forget(self) -> None:
        """Start anew in a child process, which has none of its parent's connections."""
        Budget.__init__(self, self.limit)


class Share:
    """Be what one handle sees of a budget.

    Args:
        budget: The budget of its registry.
        target: What the handle shall run; says how many its server may have.
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
