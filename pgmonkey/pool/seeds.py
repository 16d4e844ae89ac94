"""Make the first connections of a new generation, before it replaces another one."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import psycopg_pool

from pgmonkey.errors import ConnectError
from pgmonkey.pool import fault_points

if TYPE_CHECKING:
    from pgmonkey.pool.connection import (
        AsyncPool,
        AsyncPooledConnection,
        PooledConnection,
        SyncPool,
    )
    from pgmonkey.pool.dialer import Dialer
    from pgmonkey.pool.generation import Generation
    from pgmonkey.pool.lifecycle import Lifecycle
    from pgmonkey.pool.target import Applied

#: Seconds for which a probe waits for connections that are being closed, before it makes one
#: of the current generation give up its place.
FAREWELL: Final = 0.05
#: Seconds for which a reload under load makes more connections than the probe before the swap.
LONGEST_WARMING: Final = 0.2


def are_too_few(
    side: Lifecycle[Any], applied: Applied, current: Generation[Any], ready: int
) -> bool:
    """Tell whether a candidate needs one more connection before the swap.

    It has as many as there are clients now, but only one may be the bigger half: the clients have
    the old ones until the swap, and only the new ones after it.

    Args:
        side: Whose candidate it is.
        applied: What it is made from. Once that is published, clients wait for it.
        current: The generation in force.
        ready: How many connections the candidate has.
    """
    if applied.since == side.target.applied.since:
        return False
    room = applied.config.pool(side.connection_type).max_size
    # By the gate, for a pool does not know of what is on its way from one client to the next.
    old = side.gate.count - ready - sum(one.size() for one in side.retired)
    return ready < min(len(current.checkouts), old, room)


def gather(
    side: Lifecycle[SyncPool], applied: Applied, dialer: Dialer, current: Generation[SyncPool]
) -> list[PooledConnection]:
    """Return the probe of a candidate and, while clients keep the current generation busy, more.

    Args:
        side: Whose candidate it is.
        applied: What it is made from.
        dialer: What makes its connections.
        current: The generation in force.

    Raises:
        ConnectError: the probe failed.
    """
    probe = _one_more(side, dialer, current, FAREWELL, current.timeout)
    if probe is None:
        side.refuse_if_gone()
        raise side.no_room(dialer.config)
    seeds = [probe]
    try:
        fault_points.reach("after_probe")
        deadline = monotonic() + LONGEST_WARMING
        while are_too_few(side, applied, current, len(seeds)) and monotonic() < deadline:
            seed = _one_more(side, dialer, current, 0.0, max(0.0, deadline - monotonic()))
            if seed is None:
                break
            seeds.append(seed)
    except ConnectError:
        pass  # the one that was verified is enough
    except BaseException:
        for seed in seeds:
            seed.close()
        raise
    return seeds


async def gather_async(
    side: Lifecycle[AsyncPool], applied: Applied, dialer: Dialer, current: Generation[AsyncPool]
) -> list[AsyncPooledConnection]:
    """Return the probe of a candidate and more; see `gather`."""
    if (failure := dialer.refusal()) is not None:
        raise failure.error(
            dialer.config.name
        )  # each loop comes here, and the server is asked once
    probe = await _one_more_async(side, dialer, current, FAREWELL, current.timeout)
    if probe is None:
        side.refuse_if_gone()
        raise side.no_room(dialer.config)
    seeds = [probe]
    try:
        await fault_points.reach_async("after_probe")
        deadline = monotonic() + LONGEST_WARMING
        while are_too_few(side, applied, current, len(seeds)) and monotonic() < deadline:
            left = max(0.0, deadline - monotonic())
            seed = await _one_more_async(side, dialer, current, 0.0, left)
            if seed is None:
                break
            seeds.append(seed)
    except ConnectError:
        pass  # the one that was verified is enough
    except BaseException:
        for seed in seeds:
            await seed.close()
        raise
    return seeds


def _one_more(
    side: Lifecycle[SyncPool],
    dialer: Dialer,
    current: Generation[SyncPool],
    patience: float,
    timeout: float,
) -> PooledConnection | None:
    """Make a connection for a candidate, in the place of a current one if need be.

    Args:
        side: Whose candidate it is.
        dialer: What makes it.
        current: The generation in force.
        patience: Seconds to wait before a current connection is given up for it.
        timeout: Seconds to wait for the place of that one.

    Returns:
        `None` if no place became free in time.
    """
    beyond = 0 if dialer.crowded else 1
    if slot := side.gate.wait(side.is_gone, server=dialer.server, beyond=beyond, timeout=patience):
        try:
            return dialer.dial(slot, probe=True)
        except ConnectError as error:
            if error.reason != "too_many_connections":
                raise
    # No place is left, on the server, in the budget, or beside what retired generations still
    # hold: one connection of the current generation makes room, and only this probe may take it.
    current.dialer.held = current.gives_up = True
    try:
        with side.share.budget.claim(dialer.server):
            _give_up_an_idle_one(current)
            slot = side.gate.wait(
                side.is_gone,
                lambda: current.gives_up or side.gate.lingers(),
                server=dialer.server,
                beyond=1,
                claimed=True,
                timeout=timeout,
            )
        return None if slot is None else dialer.dial(slot, probe=True)
    finally:
        current.dialer.held = current.gives_up = False
        side.gate.wake()


async def _one_more_async(
    side: Lifecycle[AsyncPool],
    dialer: Dialer,
    current: Generation[AsyncPool],
    patience: float,
    timeout: float,
) -> AsyncPooledConnection | None:
    """Make a connection for a candidate; see `_one_more`."""
    beyond = 0 if dialer.crowded else 1
    if slot := await side.gate.wait_async(
        side.is_gone, server=dialer.server, beyond=beyond, timeout=patience
    ):
        try:
            return await dialer.dial_async(slot, probe=True)
        except ConnectError as error:
            if error.reason != "too_many_connections":
                raise
    current.dialer.held = current.gives_up = True
    try:
        with side.share.budget.claim(dialer.server):
            await give_up_an_idle_one(current)
            slot = await side.gate.wait_async(
                side.is_gone,
                lambda: current.gives_up or side.gate.lingers(),
                server=dialer.server,
                beyond=1,
                claimed=True,
                timeout=timeout,
            )
        return None if slot is None else await dialer.dial_async(slot, probe=True)
    finally:
        current.dialer.held = current.gives_up = False
        side.gate.wake()


def _give_up_an_idle_one(current: Generation[SyncPool]) -> None:
    """Close a connection that is not in use; else the next checkout that ends gives its own up."""
    while current.gives_up and current.idle():
        with suppress(psycopg_pool.PoolTimeout):
            connection = current.pool.getconn(FAREWELL)
            current.gives_up = False
            connection.close()
            current.pool.putconn(connection)


async def give_up_an_idle_one(current: Generation[AsyncPool]) -> None:
    """Close a connection that is not in use, on its own loop; see `_give_up_an_idle_one`."""
    while current.gives_up and current.idle():
        with suppress(psycopg_pool.PoolTimeout):
            connection = await current.pool.getconn(FAREWELL)
            current.gives_up = False
            await connection.close()
            await current.pool.putconn(connection)
