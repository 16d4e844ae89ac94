"""Event loops that end, or waits that are cancelled, while something is under way in them.

The garbage collector rests in most of these: what is left to it may stay for as long as a process.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgmonkey import HandleClosedError, PGConnectionManager, Registry
from pgmonkey.pool.clock import monotonic
from tests.kit import ChaosProxy, RegistryDirectory, TemporaryDatabase, aeventually, eventually
from tests.kit.manager import Write


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is collected, until the end of the test: then it must be of no consequence."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def none_is_left(database: TemporaryDatabase) -> None:
    eventually(lambda: database.backends() == [], message="no connection is left")


async def select(handle: Any) -> None:
    async with handle as connection:
        await connection.execute("SELECT 1")


async def hold(handle: Any, held: asyncio.Event) -> None:
    """Be in a block until somebody ends it."""
    async with handle as connection:
        await connection.execute("SELECT 1")
        held.set()
        await asyncio.Event().wait()


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


@pytest.mark.usefixtures("each_loop")
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
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """A pool that could not grow has an idle connection whose server is silent, and Ctrl-C ends it."""
    backends: list[int] = []
    config = write(connection={"port": proxy.port})

    async def main() -> None:
        handle = await manager.get_database_connection(config, "async_pool")
        async with handle as connection:
            backends.append(connection.info.backend_pid)
            proxy.target_port = slow.port
            growing = asyncio.create_task(select(handle))
            await aeventually(lambda: slow.accepted == 1)
        await growing
        os.kill(backends[0], signal.SIGSTOP)
        await asyncio.to_thread(slow.kill, reset=True)
        await aeventually(lambda: sum(handle.status().connect_failures.values()) == 1)

    with ChaosProxy(database.host, database.port) as slow:
        slow.set("blackhole")
        try:
            asyncio.run(main())
        finally:
            os.kill(backends[0], signal.SIGCONT)


@pytest.mark.usefixtures("uncollected", "each_loop")
@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
def test_a_loop_that_ends_with_a_block_while_it_closes_leaves_no_connection(
    config: Path, database: TemporaryDatabase, connection_type: str, turns: int
) -> None:
    """The block ends after the closing was cancelled: its connection goes to no pool any more."""
    manager = PGConnectionManager()
    blocks = []

    async def main() -> Any:
        handle = await manager.get_database_connection(config, connection_type)
        held = asyncio.Event()
        blocks.append(asyncio.create_task(hold(handle, held)))
        await held.wait()
        clearing = threading.Thread(target=manager.clear_cache)
        clearing.start()
        clearing.join()
        for _ in range(turns):
            await asyncio.sleep(0)
        return handle

    handle = asyncio.run(main())  # it is still held, and not used any more
    PGConnectionManager().clear_cache()

    none_is_left(database)
    assert handle.status().used == handle.status().idle == 0


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("turns", range(8))
async def test_a_handle_that_is_dropped_while_it_opens_leaves_nothing(
    config: Path, database: TemporaryDatabase, turns: int
) -> None:
    """Neither a connection nor a task is left in the loop, however far it had come."""
    before = asyncio.all_tasks()
    manager = PGConnectionManager()
    handle = await manager.get_database_connection(config, "async_pool")
    for _ in range(turns):
        await asyncio.sleep(0.0005)  # the server has its part in it, so turns alone come to nothing
    del handle, manager

    await aeventually(lambda: asyncio.all_tasks() == before, message="no task is left")
    await aeventually(lambda: database.backends() == [], message="no connection is left")


@pytest.mark.usefixtures("each_loop")
def test_a_handle_keeps_nothing_of_loops_that_have_ended(
    manager: PGConnectionManager, config: Path
) -> None:
    """A program that begins loop after loop does not grow."""
    kept = []

    async def main() -> None:
        handle = await manager.get_database_connection(config, "async_pool")
        async with handle as connection:
            kept.append((weakref.ref(connection), weakref.ref(asyncio.get_running_loop())))

    for _ in range(3):
        asyncio.run(main())
    gc.collect()

    assert [(connection(), loop()) for connection, loop in kept[:-1]] == [(None, None)] * 2


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("turns", range(16))
@pytest.mark.parametrize("dropped", [False, True])
def test_a_loop_that_is_closed_while_it_opens_leaves_nothing(
    config: Path,
    database: TemporaryDatabase,
    caplog: pytest.LogCaptureFixture,
    turns: int,
    dropped: bool,
) -> None:
    """It comes to nothing more, not even to cancel its tasks: the next look ends what it began."""
    manager = PGConnectionManager()
    loop = asyncio.new_event_loop()
    handle = loop.run_until_complete(manager.get_database_connection(config, "async_pool"))
    for _ in range(turns):
        # While it connects the server has its part in it; then each turn counts.
        loop.run_until_complete(asyncio.sleep(0 if handle.is_open() else 0.0005))
    loop.close()
    if dropped:
        del handle, manager
        PGConnectionManager().clear_cache()
    else:
        handle.patrol(monotonic())

    none_is_left(database)
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.usefixtures("uncollected")
def test_a_loop_that_ends_during_its_reload_leaves_nothing(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio.run waits for the thread that reloads, which has the loop begin what it never ends."""
    registry_dir.declare("orders", database, "async_pool")
    with Registry(registry_dir, metrics=None, watch=False, max_connections=2) as registry:
        reloads = []

        async def main() -> None:
            await select(registry.get("orders"))
            registry_dir.declare(
                "orders", database, "async_pool", connection={"application_name": "new"}
            )
            reloads.append(asyncio.create_task(registry.areload()))
            await asyncio.sleep(0)

        asyncio.run(main())
        assert registry.get("orders").status().opened is False

        none_is_left(database)
        with registry.get("orders", "pool") as first, registry.get("orders", "pool") as second:
            assert first is not second, "every place is free"
        gc.collect()
        assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.usefixtures("uncollected")
def test_a_loop_that_is_closed_while_a_reload_waits_for_a_place_gives_the_place_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """What a reload waited for is for the others, as soon as anybody looks."""
    registry_dir.declare("orders", database, "async_pool", async_pool_settings={"min_size": 0})
    registry_dir.declare("events", database, "pool", pool_settings={"min_size": 0, "timeout": 5})
    with Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry:
        orders: Any = registry.get("orders")
        loop = asyncio.new_event_loop()
        reports: list[Any] = []
        reloading = threading.Thread(target=lambda: reports.append(registry.reload()))

        async def main() -> list[object]:
            block = orders.connection()
            connection = await block.__aenter__()
            registry_dir.declare(
                "orders",
                database,
                "async_pool",
                description="next",
                connection={"application_name": "next"},
            )
            reloading.start()
            for _ in range(100):  # the reload asks this loop for a connection, and waits
                await asyncio.sleep(0.002)
            return [block, connection]

        left = loop.run_until_complete(main())
        loop.close()
        orders.patrol(monotonic())
        reloading.join(20)
        assert reports
        assert left

        with registry.get("events") as connection:
            connection.execute("SELECT 1")


@pytest.mark.usefixtures("uncollected", "each_loop")
@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize("state", ["open", "closed", "reloaded"])
def test_a_block_whose_loop_was_closed_under_it_ends_without_a_complaint(
    manager: PGConnectionManager,
    config: Path,
    database: TemporaryDatabase,
    state: str,
    looked_at: bool,
) -> None:
    """When its coroutine is destroyed, at last, nothing can be awaited, and nothing is left open."""

    async def main() -> Any:
        handle = await manager.get_database_connection(config, "async_pool")
        held = asyncio.Event()
        block: Any = asyncio.create_task(hold(handle, held))
        block._log_destroy_pending = False  # it is the test's own mistake
        await held.wait()
        if state == "closed":
            await handle.close()
        elif state == "reloaded":
            await manager.get_database_connection(config, "async_pool", force_reload=True)
        return handle

    loop = asyncio.new_event_loop()
    handle = loop.run_until_complete(main())
    loop.close()
    if looked_at:
        handle.patrol(monotonic())
        none_is_left(database)
    gc.collect()
    handle.patrol(monotonic())

    none_is_left(database)
    assert handle.status().used == 0


@pytest.mark.usefixtures("uncollected")
def test_a_loop_that_is_closed_before_it_came_to_a_reload_keeps_no_descriptor(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Loop after loop is used, stands still while a reload is applied, and is closed: no socket stays."""

    def declare(number: int) -> None:
        registry_dir.declare(
            "orders", database, "async_pool", connection={"application_name": f"app-{number}"}
        )

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    declare(0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        asyncio.run(select(registry.get("orders")))
        registry.reload()
        before = descriptors()
        for number in range(1, 9):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(select(registry.get("orders")))
            declare(number)
            assert registry.reload().applied == ("orders",)
            loop.close()
        asyncio.run(select(registry.get("orders")))
        registry.reload()
        eventually(lambda: descriptors() <= before, 5, f"as many descriptors as before: {before}")
    none_is_left(database)
