"""Connections that died are replaced without a failed block, through the API of 4.0."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import psycopg
import pytest

from pgmonkey import PGConnectionManager
from tests.kit import TemporaryDatabase, eventually
from tests.kit.manager import Write


def settle(handle) -> None:
    """Wait until no connection counts as one that came back a moment ago."""
    came_back = time.monotonic()
    eventually(lambda: time.monotonic() - came_back > 0.15, message="a tenth of a second")


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_disconnect_is_repaired_by_the_next_block(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase, connection_type: str
) -> None:
    """The cached handle works again in the next block."""
    config = write()
    handle = manager.get_database_connection(config, connection_type)
    for _ in range(3):
        with handle as connection:
            connection.execute("SELECT 1")
        settle(handle)
        database.terminate_backends()
        with manager.get_database_connection(config, connection_type) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
def test_a_disconnect_is_repaired_by_the_next_async_block(
    write: Write, database: TemporaryDatabase, connection_type: str
) -> None:
    """The same for async types."""
    config = write()

    async def main() -> None:
        async with PGConnectionManager() as manager:
            handle = await manager.get_database_connection(config, connection_type)
            for _ in range(3):
                async with handle as connection:
                    await connection.execute("SELECT 1")
                await asyncio.sleep(0.15)
                database.terminate_backends()
                async with handle as connection:
                    cursor = await connection.execute("SELECT 1")
                    assert await cursor.fetchone() == (1,)

    asyncio.run(main())


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("idle", [1, 8])
def test_after_a_server_restart_no_request_fails_or_waits(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase, check: bool, idle: int
) -> None:
    """Dead idle connections cost no error and no backoff, with the check and without."""
    config = write(
        pool_settings={
            "min_size": idle,
            "max_size": idle,
            "check_on_checkout": check,
            "timeout": 10,
        }
    )
    pool = manager.get_database_connection(config, "pool")
    with ExitStack() as stack:
        for _ in range(idle):
            stack.enter_context(pool).execute("SELECT 1")
    settle(pool)
    database.server.restart()

    began = time.monotonic()
    with ExitStack() as stack:
        for _ in range(idle):
            assert stack.enter_context(pool).execute("SELECT 1").fetchone() == (1,)
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_the_check_leaves_no_transaction_open(
    manager: PGConnectionManager, write: Write, connection_type: str
) -> None:
    """A checked connection is idle, so its transaction's properties can be set."""
    handle = manager.get_database_connection(write(check_on_checkout=True), connection_type)
    for _ in range(2):
        with handle as connection:
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            connection.read_only = connection.isolation_level = None
        settle(handle)
