"""Event loops that end, or waits that are cancelled, while something is under way in them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

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
