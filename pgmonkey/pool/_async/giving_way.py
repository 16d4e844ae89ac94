"""Give connections up while the server is full, so that a process that has none gets one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from psycopg_pool import PoolClosed, PoolTimeout

from pgmonkey.pool._async.waiting import sleep
from pgmonkey.pool.failures import drop_frames
from pgmonkey.pool.fair_share import REST, SLOTS_LEFT

if TYPE_CHECKING:
    from pgmonkey.pool._async.connection import AsyncPooledConnection
    from pgmonkey.pool._async.pool import AsyncPool

#: Seconds to queue for the connection that asks, as a client of a busy pool does, and for each of the
#: others that are given up.
_BORROW: Final = 30.0
_BORROW_ANOTHER: Final = 2.0
#: Seconds for the answer.
_LONGEST_ANSWER: Final = 1.0


async def give_way(pool: AsyncPool) -> None:
    """Ask the server whether it is full, and if so give up a part of the connections for a second.

    Each is borrowed as a client would do it, so no block loses one.
    """
    connection = await _borrow(pool, _BORROW)
    if connection is None:
        pool.fair_share.postpone()
        return
    left = await _slots_left(connection)
    if left is None:
        await pool.put(connection)
        return
    surplus = pool.fair_share.surplus(
        left, pool.connector.held(), pool.stats.failures["too_many_connections"]
    )
    if not surplus:
        await pool.put(connection)
        return
    given: list[AsyncPooledConnection] = []
    try:
        pool.give_up(connection)
        given.append(connection)
        while (
            len(given) < surplus and (another := await _borrow(pool, _BORROW_ANOTHER)) is not None
        ):
            pool.give_up(another)
            given.append(another)
        await pool.connector.let_go()
        await sleep(REST * random.uniform(1.0, 1.2))  # noqa: S311 - processes must not return in step
    finally:
        for one in given:
            await pool.want_again(one)


async def _borrow(pool: AsyncPool, timeout: float) -> AsyncPooledConnection | None:
    try:
        return await pool.borrow(timeout)
    except (PoolTimeout, PoolClosed) as error:
        drop_frames(error)
        return None


async def _slots_left(connection: AsyncPooledConnection) -> int | None:
    """Return how many connections the server has left; `None` if it does not say."""
    in_use = connection.pgconn.transaction_status
    if in_use or not connection.is_alive():
        return None
    result = await connection.ask(SLOTS_LEFT, _LONGEST_ANSWER)
    if result is None and connection.pgconn.transaction_status:  # the answer is still to come
        connection.hang_up()
    value = None if result is None else result.get_value(0, 0)
    return None if value is None else int(value)
