"""Handles of a manager after forks, in several event loops, and after they were closed."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import pytest

from pgmonkey import PGConnectionManager
from tests.kit import TemporaryDatabase, aeventually, eventually
from tests.kit.manager import Write, declare
from tests.recipes.recipe import leave_traces, recipe, run, traces

PRELOADED = """
import os
import signal
import sys
import threading
import warnings

warnings.simplefilter('ignore', DeprecationWarning)  # of fork() in a process that has threads

{database}

db = Database('config.yaml')
mine = set()


def pids():
    found = set()
    with db.pool as one, db.pool as two:
        found = {{one.info.backend_pid, two.info.backend_pid}}
    return found


before = pids()


def work():
    for _ in range(25):
        db.execute('SELECT version()')
        mine.update(pids())


def worker():
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mine & before, 'a worker used a connection of its parent'
    sys.exit(0)  # runs the atexit handlers that it has inherited


children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        worker()
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert codes == [0, 0], codes
assert pids() == before, 'the parent lost its connections'
with db.pool as conn:
    print(conn.execute('SELECT version()').fetchone())
"""


def test_workers_forked_after_the_pool_was_opened(
    tmp_path: Path, database: TemporaryDatabase
) -> None:
    """Each worker makes its own connections; the master's sessions live on."""
    leave_traces(database)
    sizes = {"min_size": 2, "max_size": 8}  # four threads with two connections each
    declare(tmp_path, database, pool_settings=sizes)

    ended = run(
        PRELOADED.format(database=recipe("from-4.0/flask", "Database Class for Flask")), tmp_path
    )

    assert (ended.code, ended.errors) == (0, "")
    assert traces(database) == ["version"] * (2 * 4 * 25 + 1)


MULTIPROCESSING = """
import multiprocessing
import warnings

warnings.simplefilter('ignore', DeprecationWarning)  # of fork() in a process that has threads

from pgmonkey import PGConnectionManager

manager = PGConnectionManager()
connection = manager.get_database_connection('config.yaml', {type!r})


def work(number):
    with connection as conn:
        conn.execute('SELECT version()')
    return number


if __name__ == '__main__':
    with connection as conn:
        conn.execute('SELECT version()')
        # The parent is inside of a block: its transaction must not be touched by a child.
        with multiprocessing.get_context('fork').Pool(2) as pool:
            print(pool.map(work, range(10)))
        conn.execute('SELECT version()')
"""


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_multiprocessing_with_fork(
    tmp_path: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """Children that are forked inside a block leave the parent's transaction alone."""
    leave_traces(database)
    declare(tmp_path, database)

    ended = run(MULTIPROCESSING.format(type=connection_type), tmp_path)

    assert (ended.code, ended.errors) == (0, "")
    assert ended.output == [str(list(range(10)))]
    assert traces(database) == ["version"] * 12


FORKED_LOOP = """
import asyncio
import os
import warnings

warnings.simplefilter('ignore', DeprecationWarning)  # of fork() in a process that has threads

from pgmonkey import PGConnectionManager

manager = PGConnectionManager()


async def main(times=1):
    pool = await manager.get_database_connection('config.yaml', 'async_pool')
    for _ in range(times):
        async with pool as conn:
            await conn.execute('SELECT version()')


asyncio.run(main())
child = os.fork()
if child == 0:
    asyncio.run(main(3))
else:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asyncio.run(main(3))
print('done', flush=True)
"""


def test_an_async_pool_after_a_fork(tmp_path: Path, database: TemporaryDatabase) -> None:
    """Parent and child each go on, in loops of their own."""
    leave_traces(database)
    declare(tmp_path, database)

    ended = run(FORKED_LOOP, tmp_path)

    assert (ended.code, ended.errors) == (0, "")
    assert traces(database) == ["version"] * 7


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
def test_a_second_event_loop_grows_and_repairs_its_pool(
    write: Write, database: TemporaryDatabase, connection_type: str
) -> None:
    """Each `asyncio.run` has connections of its own, grows to max_size, survives a disconnect."""
    manager = PGConnectionManager()
    config = write(async_pool_settings={"min_size": 2, "max_size": 4})
    wanted = 4 if connection_type == "async_pool" else 1
    handles = set()

    async def main() -> None:
        handle = await manager.get_database_connection(config, connection_type)
        handles.add(handle)
        for _ in range(2):
            all_in = asyncio.Barrier(wanted)

            async def hold(all_in: asyncio.Barrier = all_in) -> int:
                async with handle as connection:
                    await all_in.wait()
                    return connection.info.backend_pid

            pids = await asyncio.wait_for(asyncio.gather(*(hold() for _ in range(wanted))), 10)
            assert len(set(pids)) == wanted
            database.terminate_backends()
            # One that came back a tenth of a second ago is taken to be alive.
            await aeventually(lambda: database.backends() == [])
            await asyncio.sleep(0.15)

    for _ in range(3):
        asyncio.run(main())

    assert len(handles) == 1, "it is the same handle in every loop"
    manager.clear_cache()
    eventually(lambda: database.backends() == [])


def test_two_loops_at_once_have_connections_of_their_own(
    write: Write, database: TemporaryDatabase
) -> None:
    """Two threads that run a loop each share the handle, but no connection."""
    from concurrent.futures import ThreadPoolExecutor

    manager = PGConnectionManager()
    config = write()

    async def main() -> set[int]:
        handle = await manager.get_database_connection(config, "async_pool")
        found = set()
        for _ in range(20):
            async with handle as connection:
                await connection.execute("SELECT 1")
                found.add(connection.info.backend_pid)
        await handle.close()
        return found

    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(lambda _number: asyncio.run(main()), range(2))
    assert not one & two
    manager.clear_cache()


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_closed_handle_opens_again(
    manager: PGConnectionManager, write: Write, connection_type: str
) -> None:
    """After `close()`, the handle and the next call for it work."""
    config = write()
    handle = manager.get_database_connection(config, connection_type)
    with handle:
        pass
    handle.close()

    assert manager.get_database_connection(config, connection_type) is handle
    with handle as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    handle.close()
    with handle as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_the_names_of_4_0_open_and_close(
    manager: PGConnectionManager,
    write: Write,
    connection_type: str,
    database: TemporaryDatabase,
) -> None:
    """`connect()` and `disconnect()` work, and warn with their new names."""
    handle = manager.get_database_connection(write(), connection_type)
    with pytest.warns(DeprecationWarning, match=r"handle\.close\(\)") as warned:
        handle.disconnect()
    assert warned[0].filename == __file__
    eventually(lambda: not database.backends())
    with pytest.warns(DeprecationWarning, match=r"handle\.open\(\)"):
        handle.connect()
    assert database.backends()


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_the_names_of_4_0_open_and_close_async_types(
    manager: PGConnectionManager,
    write: Write,
    connection_type: str,
    database: TemporaryDatabase,
) -> None:
    """So do those of async types, which are awaited."""
    handle = await manager.get_database_connection(write(), connection_type)
    with pytest.warns(DeprecationWarning, match=r"handle\.close\(\)"):
        await handle.disconnect()
    await aeventually(lambda: not database.backends())
    with pytest.warns(DeprecationWarning, match=r"handle\.open\(\)"):
        await handle.connect()
    assert database.backends()
    await manager.clear_cache_async()


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_opening_a_pool_warns_of_nothing(
    manager: PGConnectionManager, write: Write, connection_type: str
) -> None:
    """No DeprecationWarning of psycopg_pool reaches the application."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with manager.get_database_connection(write(), connection_type) as connection:
            connection.execute("SELECT 1")

    assert [str(one.message) for one in caught] == []
