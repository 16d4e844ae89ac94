"""The end of a manager: cleared, left, dropped, forked."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from pathlib import Path

import pytest

from pgmonkey import HandleClosedError, PGConnectionManager
from tests.kit import ChaosProxy, TemporaryDatabase, aeventually, eventually
from tests.kit.manager import Write
from tests.kit.process import in_a_child


def no_one(database: TemporaryDatabase) -> None:
    eventually(lambda: database.backends() == [], message="no connection is left")


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_clear_cache_closes_for_good(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """Connections close, old handles raise HandleClosedError, and the next call opens a new one."""
    handle = manager.get_database_connection(config, connection_type)
    with handle:
        pass

    manager.clear_cache()

    no_one(database)
    assert manager.cache_info["size"] == 0
    with pytest.raises(HandleClosedError, match="manager"), handle:
        pass
    other = manager.get_database_connection(config, connection_type)
    assert other is not handle
    with other as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_clear_cache_before_a_pool_has_filled(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase
) -> None:
    """A pool that is still opening is closed as well."""
    for _ in range(5):
        manager.get_database_connection(config, "pool")
        manager.clear_cache()
    no_one(database)


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_clear_cache_async_closes_for_good(
    config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """The same inside an event loop; the connections are closed when the call returns."""
    manager = PGConnectionManager()
    handle = await manager.get_database_connection(config, connection_type)
    async with handle:
        pass

    await manager.clear_cache_async()

    await aeventually(lambda: database.backends() == [])
    assert manager.cache_info["size"] == 0
    with pytest.raises(HandleClosedError, match="manager"):
        async with handle:
            pass


async def test_clear_cache_async_before_a_pool_has_filled(
    config: Path, database: TemporaryDatabase
) -> None:
    """An async pool that is still opening is closed as well."""
    manager = PGConnectionManager()
    for _ in range(5):
        await manager.get_database_connection(config, "async_pool")
        await manager.clear_cache_async()
    await aeventually(lambda: database.backends() == [])


async def test_clear_cache_in_a_running_loop_refuses_and_closes_nothing(config: Path) -> None:
    """The sync call cannot close this loop's connections, and says what to call."""
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(config, "async")

        with pytest.raises(RuntimeError, match="clear_cache_async"):
            manager.clear_cache()

        assert manager.cache_info["size"] == 1
        async with handle as connection:
            assert (await (await connection.execute("SELECT 1")).fetchone()) == (1,)


async def test_others_go_on_while_a_cache_is_being_cleared(
    config: Path, database: TemporaryDatabase
) -> None:
    """A task that asks the manager while another one clears it does not block the loop."""
    async with PGConnectionManager() as manager:

        async def ask() -> None:
            for number in range(20):
                try:
                    handle = await manager.get_database_connection(
                        config, "async_pool", force_reload=number % 5 == 4
                    )
                    async with handle as connection:
                        await connection.execute("SELECT 1")
                except HandleClosedError:
                    pass  # it was cleared in between; a task is never cancelled by that

        async def clear() -> None:
            for _ in range(10):
                await manager.clear_cache_async()

        await asyncio.wait_for(asyncio.gather(ask(), clear(), ask(), clear()), 20)
    await aeventually(lambda: database.backends() == [])


def test_threads_that_ask_while_others_clear_leave_nothing_behind(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase
) -> None:
    """Whatever the order of asking, reloading and clearing, the last clear closes all of it."""
    stop = threading.Event()
    wrong: list[BaseException] = []

    def ask(force_reload: bool) -> None:
        while not stop.is_set():
            try:
                with manager.get_database_connection(config, "pool", force_reload) as connection:
                    connection.execute("SELECT 1")
            except HandleClosedError:
                pass
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(number == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        manager.clear_cache()
        with PGConnectionManager() as other, other.get_database_connection(config, "normal"):
            pass
    stop.set()
    for thread in threads:
        thread.join()
    manager.clear_cache()

    assert wrong == []
    assert manager.cache_info["size"] == 0
    no_one(database)


def test_leaving_with_closes(config: Path, database: TemporaryDatabase) -> None:
    """`with PGConnectionManager()` ends with nothing open, also when the block raises."""
    with pytest.raises(LookupError), PGConnectionManager() as manager:
        with manager.get_database_connection(config, "pool") as connection:
            connection.execute("SELECT 1")
        raise LookupError
    no_one(database)


async def test_leaving_async_with_closes(config: Path, database: TemporaryDatabase) -> None:
    """And so does `async with`, sync handles included."""
    async with PGConnectionManager() as manager:
        manager.get_database_connection(config, "pool")
        async with await manager.get_database_connection(config, "async_pool") as connection:
            await connection.execute("SELECT 1")
    await aeventually(lambda: database.backends() == [])


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_dropped_manager_is_collected_and_its_connections_close(
    config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """Twenty dropped managers leave no session behind."""
    seen = []
    for _ in range(20):
        manager = PGConnectionManager()
        with manager.get_database_connection(config, connection_type) as connection:
            connection.execute("SELECT 1")
        del connection
        seen.append(weakref.ref(manager))
        del manager
    gc.collect()

    assert [manager() for manager in seen] == [None] * 20
    no_one(database)


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_a_dropped_manager_closes_its_async_connections(
    config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """Async connections close on their loop."""

    async def use() -> None:
        manager = PGConnectionManager()
        handle = await manager.get_database_connection(config, connection_type)
        async with handle as connection:
            await connection.execute("SELECT 1")

    for _ in range(5):
        await use()
    gc.collect()
    await aeventually(lambda: database.backends() == [], message="no connection is left")


def test_a_handle_outlives_its_manager(config: Path) -> None:
    """Who keeps only the handle can go on using it."""
    pool = PGConnectionManager().get_database_connection(config, "pool")
    gc.collect()

    with pool as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    pool.close()


def test_a_child_process_may_use_a_manager_whose_lock_was_held(
    manager: PGConnectionManager, config: Path
) -> None:
    """Forks while another thread is inside the manager leave no lock behind in the children."""
    manager.get_database_connection(config, "normal")
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            manager.get_database_connection(config, "pool").status()
            assert manager.cache_info["size"] == 2

    def child() -> None:
        with manager.get_database_connection(config, "pool") as connection:
            connection.execute("SELECT 1")
        manager.clear_cache()

    thread = threading.Thread(target=use)
    thread.start()
    try:
        for _ in range(20):
            in_a_child(child)
    finally:
        stop.set()
        thread.join()


def use_pool(loop: asyncio.AbstractEventLoop, manager: PGConnectionManager, config: Path) -> None:
    """Leave an open pool behind in a loop that stands still."""

    async def use() -> None:
        async with await manager.get_database_connection(config, "async_pool") as connection:
            await connection.execute("SELECT 1")

    loop.run_until_complete(use())


def test_connections_of_a_loop_that_stands_still_close_from_outside(
    config: Path, database: TemporaryDatabase
) -> None:
    """Sync code may clear what `run_until_complete` has opened, before the loop is closed."""
    manager = PGConnectionManager()
    loop = asyncio.new_event_loop()
    use_pool(loop, manager, config)

    manager.clear_cache()

    no_one(database)
    loop.close()


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_closing_does_not_wait_for_a_server_that_has_fallen_silent(
    write: Write, proxy: ChaosProxy, connection_type: str
) -> None:
    """`clear_cache` takes no time of a network that swallows everything."""
    config = write(connection={"host": proxy.host, "port": proxy.port})
    manager = PGConnectionManager()
    with manager.get_database_connection(config, connection_type) as connection:
        connection.execute("SELECT 1")
    proxy.set("blackhole")

    began = time.monotonic()
    manager.clear_cache()

    assert time.monotonic() - began < 1.0
    proxy.kill(reset=True)


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
def test_a_loop_that_ends_while_it_closes_leaves_no_connection(
    config: Path, database: TemporaryDatabase, connection_type: str, turns: int
) -> None:
    """Another thread clears the cache, and the loop turns a few times more: too few, or enough."""
    manager = PGConnectionManager()

    async def main() -> None:
        async with await manager.get_database_connection(config, connection_type) as connection:
            await connection.execute("SELECT 1")
        clearing = threading.Thread(target=manager.clear_cache)
        clearing.start()
        clearing.join()  # it only tells the loop, which comes to it in its next turns
        for _ in range(turns):
            await asyncio.sleep(0)

    asyncio.run(main())
    no_one(database)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_loop_that_never_turns_again_leaves_no_connection_for_long(
    config: Path, database: TemporaryDatabase, dropped: bool
) -> None:
    """It was told to close its connections, and was closed: the next look at any loop does it."""
    manager = PGConnectionManager()
    loop = asyncio.new_event_loop()

    async def end() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    use_pool(loop, manager, config)
    loop.run_until_complete(end())
    if dropped:
        del manager
    else:
        clearing = threading.Thread(target=manager.clear_cache)
        clearing.start()
        clearing.join()
    loop.close()

    PGConnectionManager().clear_cache()

    no_one(database)


def test_clearing_from_one_thread_disturbs_no_loop_of_another(
    config: Path, database: TemporaryDatabase
) -> None:
    """While other threads run loop after loop, clearing turns and closes none of theirs."""
    manager = PGConnectionManager()
    wrong: list[BaseException] = []

    async def use() -> None:
        for _ in range(3):
            try:
                async with await manager.get_database_connection(config, "async") as connection:
                    await connection.execute("SELECT 1")
            except HandleClosedError:
                pass

    def loops() -> None:
        try:
            for _ in range(20):
                asyncio.run(use())
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=loops) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        manager.clear_cache()
        threads[0].join(0.01)
    manager.clear_cache()

    assert wrong == []
    no_one(database)
