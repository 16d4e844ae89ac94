"""When a pool asks whether its server is full, and how many connections it gives up then.

Processes do not know of each other, so they cannot wait in one queue for the connections of a server.
Instead each pool asks the server, and gives one connection up while the server is full. If another
process takes the place, the pool is refused a new connection: then it gives up more.
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
#: Seconds between two looks: after a refusal, usually, and while the server has room for as many
#: connections as the pool has already.
_LOOK_SOON: Final = 2.0
_LOOK: Final = 5.0
_LOOK_LATER: Final = 15.0
#: Seconds until the next look if this one gets no answer: some servers that speak PostgreSQL's protocol
#: cannot say how many are left.
_NO_ANSWER: Final = 60.0


class FairShare:
    """Decide when one pool looks at its server, and what it gives up. It never waits."""

    __slots__ = ("_due", "_refused")

    def __init__(self) -> None:
        self._refused = 0
        self._plan(_LOOK)

    def is_due(self, held: int) -> bool:
        """Tell whether it is time to look: a pool keeps its last connection.

        Args:
            held: How many connections the pool has.
        """
        return held > 1 and monotonic() >= self._due

    def begin(self) -> None:
        """Note that a look begins."""
        self._plan(_NO_ANSWER)

    def postpone(self) -> None:
        """Note that there was no connection to ask with: the pool is busy."""
        self._plan(_LOOK)

    def surplus(self, left: int, held: int, refused: int) -> int:
        """Return how many connections to give up, and plan the next look.

        Args:
            left: How many connections the server has left.
            held: How many the pool has.
            refused: How many connects the server has refused so far because it is full.
        """
        taken, room = refused > self._refused, left >= held
        self._plan(_LOOK_LATER if room else _LOOK_SOON if taken else _LOOK)
        if left <= 0 or room:  # else another pool may be the one that gives way at this moment
            self._refused = refused
        if left > 0 or held < 2:
            return 0
        return held // 2 if taken else 1

    def _plan(self, pause: float) -> None:
        self._due = monotonic() + pause * random.uniform(0.8, 1.2)  # noqa: S311 - not in step
