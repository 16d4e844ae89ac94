# Generated from _async/rotation.py by .ci/sync_code: edit that file.
"""Replace the connections of a pool with connections of a newer version, and lose no client."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, NamedTuple

from psycopg_pool import PoolClosed, PoolTimeout

from pgmonkey.errors import ConnectError
from pgmonkey.pool import messages
from pgmonkey.pool._sync.connecting import NoRoomError
from pgmonkey.pool._sync.waiting import sleep
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.connecting import refused_logins
from pgmonkey.pool.failures import classify
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from pgmonkey.pool._sync.connection import SyncPooledConnection
    from pgmonkey.pool._sync.pool import SyncPool
    from pgmonkey.pool.version import Version

#: Seconds to wait for a connection whose place a probe takes, when there is no other.
_BORROW: Final = 5.0
#: Seconds for which a new connection tries to get the place that was made free for it: others may
#: take it. The first pause between two tries, doubled up to the longest: all processes of a fleet
#: may try now.
_STRANGERS: Final = 2.0
_TRY_AGAIN: Final = 0.01
_LONGEST_TRY_AGAIN: Final = 0.5
#: The pause between two replacements. Each costs some milliseconds of CPU, here and at the server,
#: which clients would wait for; and all processes of a fleet rotate at the same time.
_SHORTEST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.05
#: Seconds over which the replacements of a pool are spread, within these bounds.
_SPREAD: Final = 0.5
#: Seconds to wait for a client to come back. What is still out then is replaced at its return.
_LONGEST_WAIT: Final = 1.0
#: Seconds after which the remaining connections are replaced as they come back, without a spare.
_LONGEST_ROTATION: Final = 10.0


class Prepared(NamedTuple):
    """A version that a pool has connected with once, and that it does not use yet.

    Args:
        version: The version.
        connection: Made with it.
        borrowed: The older connection that was closed to make room for it, if there was none;
            psycopg_pool believes that a client has it.
    """

    version: Version
    connection: SyncPooledConnection
    borrowed: SyncPooledConnection | None = None


def prepare(pool: SyncPool, version: Version) -> Prepared | None:
    """Connect once with a version, before anything is replaced.

    If the pool, the process or the server has no room for one more, an older connection is
    borrowed, closed, and its place used: only a login tells whether the version works.

    Returns:
        What it has connected with; `None` if the server is full, and the pool has nothing to lose:
        it has no connection, and the login that is in force was refused.

    Raises:
        ConnectError: it does not work; nothing has changed.
    """
    try:
        return Prepared(version, pool.connector.make(version, beyond=1, probe=True))
    except ConnectError as error:
        if error.reason != "too_many_connections":
            raise
        refused = error
    if pool.connections:
        try:
            return _prepare_in_place(pool, version)
        except (PoolTimeout, PoolClosed):
            pass
        except ConnectError as error:
            if error.reason != "too_many_connections":
                raise
            refused = error
    if not pool.connections and refused_logins.is_refused(pool.target.config):
        return None
    raise _no_room(pool, version, refused)


def _prepare_in_place(pool: SyncPool, version: Version) -> Prepared:
    borrowed: SyncPooledConnection = pool.borrow(_BORROW)
    pool.close_for_probe(borrowed)
    try:
        return Prepared(version, _connect_in_place(pool, version, borrowed), borrowed)
    except BaseException:
        pool.put_back(borrowed)
        raise


def _connect_in_place(
    pool: SyncPool, version: Version, borrowed: SyncPooledConnection
) -> SyncPooledConnection:
    deadline = monotonic() + _STRANGERS
    pause = _TRY_AGAIN
    while True:
        try:
            return pool.connector.make(version, probe=True, instead_of=borrowed)
        except ConnectError as error:
            if error.reason != "too_many_connections" or monotonic() > deadline:
                raise
        sleep(_off_step(pause))
        pause = min(pause * 2, _LONGEST_TRY_AGAIN)


def _no_room(pool: SyncPool, version: Version, refused: ConnectError) -> ConnectError:
    if not isinstance(refused, NoRoomError):
        return refused
    full = pool.connector.explain_limit(version)
    return messages.no_room(pool.name, refused.text, full)


def discard(pool: SyncPool, prepared: Prepared) -> None:
    """Wait until the server has closed the prepared connection, which is closed here."""
    prepared.connection.let_go()
    if prepared.borrowed is not None:
        pool.put_back(prepared.borrowed)


def rotate(pool: SyncPool, version: Version, prepared: Prepared | None) -> None:
    """Replace the older connections of a pool; report an error that nothing foresees.

    After such an error no older connection is handed out, as after every rotation, and those that
    are left are closed when they come back or by `SyncPool.care`.

    Args:
        pool: The pool.
        version: What is in force.
        prepared: What the pool has connected with; `None` if its event loop did not turn then.
    """
    try:
        if prepared is None:
            _rotate_late(pool, version)
        else:
            _rotate(pool, prepared)
    except Exception as error:  # noqa: BLE001 - no descriptor, no thread, no memory: other pools go on
        events.emit(
            "database.rotation_failed",
            database=pool.name,
            connection_type=pool.connection_type,
            version=version.number,
            error=classify(error, version.config).text,
        )


def _rotate(pool: SyncPool, prepared: Prepared) -> None:
    """Replace the older connections of a pool, after it has adopted the version.

    Where both versions lead to the same place, one after the other, the new one made first, so
    that the pool never has fewer connections for its clients; a checkout may get either until
    the last idle one is replaced. Else no checkout has got an older one since `adopt`.

    Returns when no older connection is idle. Those that are out are replaced as they come back.
    """
    began = monotonic()
    older = len(pool.connector.older())
    rotating = pool.connector.rotating
    pool.offer(prepared.connection)
    try:
        if prepared.borrowed is not None:
            pool.claim()
            pool.put_back(prepared.borrowed)
        pool.resize()
        if pool.floor < pool.version:
            replace = _replace_in_place if prepared.borrowed else _replace_one_by_one
            replace(pool, prepared.version, began + _LONGEST_ROTATION)
    except ConnectError:
        pass  # the probe has worked: the others are replaced when they come back
    finally:
        pool.finish_rotation()
    pool.connector.report_drained()
    if rotating is not None:
        events.emit(
            "database.rotated",
            database=pool.name,
            connection_type=pool.connection_type,
            old=rotating[1],
            new=prepared.version.number,
            replaced=older,
            duration=round(monotonic() - began, 6),
        )


def _rotate_late(pool: SyncPool, version: Version) -> None:
    """Finish a reload in a pool whose event loop did not turn until now."""
    pool.catch_up(version)
    if pool.connector.older():
        pool.finish_rotation()


def _replace_one_by_one(pool: SyncPool, version: Version, deadline: float) -> None:
    pause = pause_between(len(pool.connector.older()))
    while _goes_on(pool, version):
        if not pool.replace_idle() and not pool.wait_claimed(_LONGEST_WAIT):
            return
        if not pool.connector.older() or monotonic() > deadline:
            return
        sleep(_off_step(pause))
        try:
            pool.offer(pool.connector.make(version, beyond=1))
        except ConnectError as error:
            if error.reason != "too_many_connections":
                raise
            pool.outage.retry()  # nothing is down
            _replace_in_place(pool, version, deadline)
            return


def _replace_in_place(pool: SyncPool, version: Version, deadline: float) -> None:
    """Close the older connections one after the other, and connect in the place of each.

    As `_replace_one_by_one`, where there is no room for one more. A pool whose place was taken by
    another process has a connection less until it grows again, and goes on.
    """
    looked_at = 0
    while _goes_on(pool, version) and monotonic() < deadline:
        sleep(_off_step(_LONGEST_PAUSE))
        try:
            borrowed = pool.borrow(_LONGEST_WAIT)
        except (PoolTimeout, PoolClosed):
            return
        if borrowed.version >= pool.version:
            pool.put(borrowed)
            looked_at += 1
            if looked_at > len(pool.connections):
                return
            continue
        looked_at = 0
        pool.stats.evicted["rotation"] += 1
        pool.close_for_probe(borrowed)
        try:
            pool.offer(_connect_in_place(pool, version, borrowed))
            pool.claim()
        except ConnectError as error:
            if error.reason != "too_many_connections":
                raise
        finally:
            pool.put_back(borrowed)


def pause_between(replacements: int) -> float:
    """Return the seconds between two of so many replacements."""
    return min(max(_SPREAD / max(1, replacements), _SHORTEST_PAUSE), _LONGEST_PAUSE)


def _goes_on(pool: SyncPool, version: Version) -> bool:
    return bool(pool.connector.older()) and not pool.ending and pool.target is version


def _off_step(pause: float) -> float:
    """Return a pause of about this length: the processes of a fleet rotate at the same time."""
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
