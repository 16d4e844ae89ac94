"""Event loops that end, or waits that are cancelled, while something is under way in them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import AddConnection

from pgmonkey import HandleClosedError, PGConnectionManager
from tests.kit import TemporaryDatabase, aeventually


async def select(handle: Any) -> None:
    async with handle as connection:
        await connection.execute("SELECT 1")


async def cancel_in_its_first_turn(task: asyncio.Task[None]) -> None:
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_clear_cache_async_that_is_cancelled_closes_every_handle(
    config: Path, database: TemporaryDatabase
) -> None:
    """The first handle is still being closed when the wait ends: the others close as well."""
    manager = PGConnectionManager()
    pool = await manager.get_database_connection(config, "async_pool")
    single = await manager.get_database_connection(config, "async")
    await select(pool)
    await select(single)

    await cancel_in_its_first_turn(asyncio.create_task(manager.clear_cache_async()))

    await aeventually(lambda: database.backends() == [], message="no connection is left")
    for handle in (pool, single):
        with pytest.raises(HandleClosedError):
            await select(handle)


async def test_a_close_that_is_cancelled_closes_in_every_loop(
    config: Path, database: TemporaryDatabase
) -> None:
    """The part of the running loop is still being closed when the wait ends: so do the others."""
    manager = PGConnectionManager()
    used, over = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        await select(await manager.get_database_connection(config, "async_pool"))
        used.set()
        await aeventually(over.is_set, 20)

    handle = await manager.get_database_connection(config, "async_pool")
    await select(handle)
    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    await asyncio.to_thread(used.wait)
    try:
        await cancel_in_its_first_turn(asyncio.create_task(handle.close()))

        await aeventually(lambda: database.backends() == [], message="no connection is left")
    finally:
        over.set()
        await asyncio.to_thread(thread.join)
        await manager.clear_cache_async()


@pytest.mark.slow  # psycopg asks the silent server for some seconds to cancel the question
def test_a_loop_ends_while_its_pool_looks_at_what_is_idle(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase
) -> None:
    """A pool that could not grow asks its idle connections; the server is silent, and Ctrl-C ends it."""
    silent: list[int] = []

    async def main() -> None:
        handle = await manager.get_database_connection(config, "async_pool")
        async with handle as connection:
            silent.append(connection.info.backend_pid)
        pool = handle.side().generation.pool
        database.connection_limit(1)
        os.kill(silent[0], signal.SIGSTOP)
        pool.run_task(AddConnection(pool, AttemptWithBackoff(timeout=0)))
        await aeventually(lambda: pool.get_stats()["pool_available"] == 0)

    try:
        asyncio.run(main())
    finally:
        os.kill(silent[0], signal.SIGCONT)
        database.connection_limit(-1)
