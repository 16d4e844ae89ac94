"""How many server connections there may be: in one pool, to one server, in this process.

It only counts, and never waits. A pool that is refused a connection is called when one was closed,
and asks again.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Final, Protocol

#: How many holders an error names.
_NAMED: Final = 8


class Member(Protocol):
    """A pool, or a probe, as far as the limits know it."""

    @property
    def label(self) -> str:
        """Its database and type, for messages."""

    @property
    def max_size(self) -> int:
        """How many connections it may have."""

    @property
    def max_connections(self) -> int | None:
        """How many connections this process may have to its server; `None` is no limit."""

    def try_again_soon(self) -> None:
        """Ask for a connection again, if a client waits.

        Called from any thread, and from destructors: it takes no lock, and starts what it does
        elsewhere.
        """


class ConnectionLimits:
    """Count the server connections of all pools of a registry, in this process.

    A limit is a cap: a connection stays with its pool, used or idle, until that pool closes it.

    Args:
        max_connections: How many there may be over all servers; `None` is no limit.
    """

    __slots__ = ("_given", "_held", "_lock", "_refused", "_there", "_total", "max_connections")

    def __init__(self, max_connections: int | None = None) -> None:
        self.max_connections = max_connections
        self.reset()

    def reset(self) -> None:
        """Forget everything, in a child process: it has none of its parent's connections."""
        #: How many connections each pool has to each server, each server has, and there are.
        self._held: dict[Member, dict[str, int]] = {}
        self._there: dict[str, int] = {}
        self._total = 0
        #: The pools that were refused a connection since one was closed, in their order.
        self._refused: dict[Member, None] = {}
        #: What was given back and is not counted yet.
        self._given: deque[tuple[Member, str]] = deque()
        # Guards all of them but the last. Nothing is called while it is held.
        self._lock = threading.Lock()

    def take(
        self, member: Member, server: str, *, beyond: int = 0, instead_of: str | None = None
    ) -> str | None:
        """Count one more connection, unless a limit forbids it.

        Args:
            member: The pool that is about to connect.
            server: What it connects to.
            beyond: How many more than `max_size` are allowed: 1 while connections are replaced.
            instead_of: The server of a connection that the member has closed and not given back:
                its place goes to the new one, before anyone else can take it. If the new one is
                refused, it is still to be given back.

        Returns:
            Which limit forbids it, in words; `None` if the connection was counted.
        """
        with self._lock:
            if instead_of is not None and not self._holds(member, instead_of):
                instead_of = None
            if instead_of is not None:
                self._count(member, instead_of, -1)
            refusal = self._refusal(member, server, beyond)
            if refusal is None:
                self._count(member, server, 1)
                self._refused.pop(member, None)
            else:
                self._refused[member] = None
                if instead_of is not None:
                    self._count(member, instead_of, 1)
        self._count_given()
        return refusal

    def give(self, member: Member, server: str) -> None:
        """Count one connection less, and call the pools that were refused, in their order.

        It waits for no lock, because a destructor may call it at any moment.
        """
        self._given.append((member, server))
        self._count_given()

    def explain(self, member: Member, server: str) -> str | None:
        """Return which limit over several pools is reached and who holds its connections."""
        full = self._full(member, server)
        if full is None:
            return None
        holders = Counter[str]()
        for one, servers in self._held.copy().items():
            counts = servers.copy()
            holders[one.label] += sum(counts.values()) if full[0] is None else counts.get(server, 0)
        held = sorted((+holders).items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{label} {number}" for label, number in held[:_NAMED])
        more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
        return f"{_words(*full)} ({named}{more})"

    def _refusal(self, member: Member, server: str, beyond: int) -> str | None:
        own = sum(self._held.get(member, {}).values())
        if own >= member.max_size + beyond:
            return f"all {own} connections that max_size allows are open"
        full = self._full(member, server)
        return None if full is None else _words(*full)

    def _full(self, member: Member, server: str) -> tuple[str | None, int] | None:
        """Return the limit over several pools that is reached: of a server or of all, how high."""
        if self.max_connections is not None and self._total >= self.max_connections:
            return None, self.max_connections
        limit = member.max_connections
        if limit is not None and self._there.get(server, 0) >= limit:
            return server, limit
        return None

    def _holds(self, member: Member, server: str) -> bool:
        return server in self._held.get(member, {})

    def _count(self, member: Member, server: str, change: int) -> None:
        servers = self._held.setdefault(member, {})
        _add(servers, server, change)
        if not servers:
            del self._held[member]
        _add(self._there, server, change)
        self._total += change

    def _count_given(self) -> None:
        """Count the places that were given back, and call the pools that were refused.

        If another thread has the lock, that thread calls this afterwards.
        """
        while self._given and self._lock.acquire(blocking=False):
            try:
                while self._given:
                    member, server = self._given.popleft()
                    if self._holds(member, server):  # else it is one of the parent process
                        self._count(member, server, -1)
                refused, self._refused = self._refused, {}
            finally:
                self._lock.release()
            for one in refused:
                one.try_again_soon()


def _add(counts: dict[str, int], key: str, change: int) -> None:
    counts[key] = counts.get(key, 0) + change
    if counts[key] <= 0:
        del counts[key]


def _words(server: str | None, limit: int) -> str:
    what = "this process" if server is None else server
    return f"all {limit} connections that max_connections allows to {what} are held"
