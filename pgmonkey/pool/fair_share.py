"""When a pool asks whether its server is full, and how many connections it gives up then.

Processes cannot queue together for the connections of a server, and the one that has none cannot
tell the others. So those that have many look by themselves, and give some up while it is full. One
that is refused meanwhile learns from that that others need them, and looks again soon.
"""

from __future__ import annotations

import random
from typing import Final

from pgmonkey.pool.clock import monotonic

#: Returns how many connections the server, the database or the role has left for this user.
SLOTS_LEFT: Final = b"""
SELECT least(
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0)
        - (SELECT sum(numbackends) FROM pg_catalog.pg_stat_database),
    (SELECT nullif(datconnlimit, -1) - pg_catalog.pg_stat_get_db_numbackends(oid)
        FROM pg_catalog.pg_database WHERE datname = current_database()),
    (SELECT nullif(rolconnlimit, -1)
            - (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usesysid = role.oid)
        FROM pg_catalog.pg_roles AS role WHERE rolname = session_user))"""
#: Seconds for which a pool does not use the place of a connection that it has given up: longer than
#: the longest pause of one that has none.
REST: Final = 1.2
#: Seconds between two looks: at first, while others need connections, and at most while the server is
#: full and no other process takes what is given up.
_LOOK: Final = 5.0
_LOOK_AGAIN: Final = 2.0
_LONGEST_LOOK: Final = 30.0
#: A pool with this many connections, and no client that waits, has little to give.
_FEW: Final = 2


class FairShare:
    """Decide when one pool looks at its server, and what it gives up. It never waits."""

    __slots__ = ("_due", "_pause", "_refused")

    def __init__(self) -> None:
        self._pause = _LOOK
        self._refused = 0
        self._plan(_LOOK)

    def is_due(self, held: int, *, waiting: bool) -> bool:
        """Tell whether it is time to look.

        Args:
            held: How many connections the pool has.
            waiting: Whether a client waits for one.
        """
        return held > (1 if waiting else _FEW) and monotonic() >= self._due

    def begin(self) -> None:
        """Note that a look begins. If it does not end, the next one comes late."""
        self._due = monotonic() + _LONGEST_LOOK

    def surplus(self, left: int, held: int, max_size: int, refused: int) -> int:
        """Return how many connections to give up, and plan the next look.

        The more of its `max_size` a pool has, the more it gives up; the last one stays.

        Args:
            left: How many connections the server has left.
            held: How many the pool has.
            max_size: How many it may have.
            refused: How many connects the server has refused so far because it is full.
        """
        others_need_them, self._refused = refused > self._refused, refused
        full = left <= 0
        if others_need_them:
            self._pause = _LOOK_AGAIN
        elif full:
            self._pause = min(self._pause * 2, _LONGEST_LOOK)
        else:
            self._pause = _LOOK
        self._plan(self._pause)
        if not full or held < 2:
            return 0
        return min(held - 1, max(1, held * held // (2 * max_size)))

    def _plan(self, pause: float) -> None:
        self._due = monotonic() + pause * random.uniform(0.8, 1.2)  # noqa: S311 - not in step
