"""Transactions, and handles that threads and tasks share, through the API of 4.0."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgmonkey import NestedCheckoutError, PGConnectionManager
from tests.kit import TemporaryDatabase, aeventually, eventually
from tests.kit.manager import Write
from tests.recipes.recipe import recipe

Rows = Callable[[], list[int]]


def test_nested_with_on_a_pool_in_one_thread_loses_nothing(
    manager: PGConnectionManager, write: Write, rows: Rows
) -> None:
    """The outer block keeps its connection and its transaction; both commit."""
    pool = manager.get_database_connection(write(), "pool")
    with pool as outer:
        outer.execute("INSERT INTO rows VALUES (1)")
        with pool as inner:
            assert inner is not outer
            inner.execute("INSERT INTO rows VALUES (2)")
        assert rows() == [2]
        outer.execute("INSERT INTO rows VALUES (3)")

    assert rows() == [1, 2, 3]
    assert pool.status().used == 0


def test_a_nested_block_that_fails_takes_nothing_else_with_it(
    manager: PGConnectionManager, write: Write, rows: Rows
) -> None:
    """Each block has its own outcome."""
    pool = manager.get_database_connection(write(), "pool")
    with pool as outer:
        outer.execute("INSERT INTO rows VALUES (1)")
        with contextlib.suppress(LookupError), pool as inner:
            inner.execute("INSERT INTO rows VALUES (2)")
            raise LookupError

    assert rows() == [1]


async def test_nested_async_with_in_one_task_loses_nothing(write: Write, rows: Rows) -> None:
    """In one task, too, the outer block keeps its connection and its transaction; both commit."""
    async with PGConnectionManager() as manager:
        pool = await manager.get_database_connection(write(), "async_pool")
        async with pool as outer:
            await outer.execute("INSERT INTO rows VALUES (1)")
            async with pool as inner:
                assert inner is not outer
                await inner.execute("INSERT INTO rows VALUES (2)")
            assert rows() == [2]
            await outer.execute("INSERT INTO rows VALUES (3)")

        assert rows() == [1, 2, 3]


async def test_a_child_task_never_runs_on_its_parents_connection(write: Write, rows: Rows) -> None:
    """Each child task has its own connection; one that outlives the block cannot touch another's work."""
    async with PGConnectionManager() as manager:
        pool = await manager.get_database_connection(write(), "async_pool")
        started, go = asyncio.Event(), asyncio.Event()

        async def child() -> int:
            async with pool as connection:
                return connection.info.backend_pid

        async def late() -> None:
            started.set()
            await go.wait()
            async with pool as connection:
                await connection.execute("INSERT INTO rows VALUES (1)")

        async with pool as parent:
            await parent.execute("INSERT INTO rows VALUES (99)")
            pids = await asyncio.gather(*(child() for _ in range(3)))
            assert parent.info.backend_pid not in pids
            background = asyncio.create_task(late())
            await started.wait()
            assert rows() == []
        with contextlib.suppress(LookupError):
            async with pool as other:
                await other.execute("INSERT INTO rows VALUES (2)")
                go.set()
                await background
                raise LookupError

    assert rows() == [1, 99], "what the background task did does not go with another's rollback"


def test_two_threads_on_one_normal_handle_do_not_disturb_each_other(
    manager: PGConnectionManager, write: Write, rows: Rows
) -> None:
    """The threads take turns; the failure of one undoes nothing of the other."""
    handle = manager.get_database_connection(write(), "normal")
    inside, release = threading.Event(), threading.Event()

    def good() -> None:
        with handle as connection:
            connection.execute("INSERT INTO rows VALUES (1)")
            inside.set()
            release.wait()
            connection.execute("INSERT INTO rows VALUES (2)")

    def bad() -> None:
        inside.wait()
        with handle as connection:
            connection.execute("INSERT INTO rows VALUES (3)")
            raise LookupError

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(good), threads.submit(bad)
        eventually(lambda: handle.status().waiting == 1, message="the other one waits")
        release.set()
        first.result()
        with pytest.raises(LookupError):
            second.result()

    assert rows() == [1, 2]


async def test_ten_tasks_on_one_async_handle_do_not_disturb_each_other(
    write: Write, rows: Rows
) -> None:
    """Those that fail leave nothing behind, and the others lose nothing."""
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(write(), "async")

        async def work(number: int) -> None:
            async with handle as connection:
                await connection.execute("INSERT INTO rows VALUES (%s)", [number])
                await asyncio.sleep(0)
                await connection.execute("INSERT INTO rows VALUES (%s)", [number + 100])
                if number % 2:
                    raise LookupError

        results = await asyncio.gather(*(work(n) for n in range(10)), return_exceptions=True)

    assert [type(one) for one in results] == [type(None), LookupError] * 5
    assert rows() == [0, 2, 4, 6, 8, 100, 102, 104, 106, 108]


@pytest.mark.parametrize("connection_type", ["normal", "async"])
def test_a_single_connection_stays_open_between_blocks(
    manager: PGConnectionManager, write: Write, connection_type: str
) -> None:
    """Three blocks use one backend; the cached handle is connected when it is given."""
    config = write()

    async def pids() -> set[int]:
        async with PGConnectionManager() as own:
            handle = await own.get_database_connection(config, "async")
            assert handle.is_open()
            found = set()
            for _ in range(3):
                async with handle as connection:
                    found.add(connection.info.backend_pid)
            return found

    if connection_type == "async":
        assert len(asyncio.run(pids())) == 1
        return
    handle = manager.get_database_connection(config, "normal")
    assert handle.is_open()
    found = set()
    for _ in range(3):
        with handle as connection:
            found.add(connection.info.backend_pid)
    assert len(found) == 1


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
def test_an_interruption_rolls_back_and_the_next_transaction_commits_nothing_of_it(
    manager: PGConnectionManager,
    write: Write,
    rows: Rows,
    connection_type: str,
    interruption: type[BaseException],
) -> None:
    """Whatever ends a transaction except success rolls it back, in a block and in `transaction()`."""
    handle = manager.get_database_connection(write(), connection_type)
    for borrowed in (handle, handle.transaction()):
        with pytest.raises(interruption), borrowed as connection:
            connection.execute("INSERT INTO rows VALUES (1)")
            raise interruption
    with handle.transaction() as connection:
        connection.execute("INSERT INTO rows VALUES (2)")

    assert rows() == [2]


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_ctrl_c_during_a_query_rolls_back(
    manager: PGConnectionManager,
    write: Write,
    rows: Rows,
    database: TemporaryDatabase,
    connection_type: str,
) -> None:
    """A real SIGINT in the middle of a query ends it, undoes the block, and loses no connection."""
    handle = manager.get_database_connection(write(), connection_type)

    def interrupt() -> None:
        eventually(lambda: any("pg_sleep" in one["query"] for one in database.backends()))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), handle as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        connection.execute("SELECT pg_sleep(30)")
    thread.join()

    with handle as connection:
        connection.execute("INSERT INTO rows VALUES (2)")
    assert rows() == [2]
    assert handle.status().used == 0


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_a_cancelled_task_rolls_back(
    write: Write, rows: Rows, database: TemporaryDatabase, connection_type: str
) -> None:
    """Cancelling a task in the middle of a query undoes its block."""
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(write(), connection_type)

        async def work() -> None:
            async with handle as connection:
                await connection.execute("INSERT INTO rows VALUES (1)")
                await connection.execute("SELECT pg_sleep(30)")

        task = asyncio.create_task(work())
        await aeventually(lambda: any("pg_sleep" in one["query"] for one in database.backends()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with handle as connection:
            await connection.execute("INSERT INTO rows VALUES (2)")

    assert rows() == [2]


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_an_inner_transaction_is_a_savepoint_on_every_type(
    manager: PGConnectionManager, write: Write, rows: Rows, connection_type: str
) -> None:
    """A failing outer transaction undoes the inner one; a failing inner one undoes only itself."""
    handle = manager.get_database_connection(write(), connection_type)
    with contextlib.suppress(LookupError), handle.transaction() as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        with connection.transaction():
            connection.execute("INSERT INTO rows VALUES (2)")
        raise LookupError
    assert rows() == []
    with handle.transaction() as connection:
        connection.execute("INSERT INTO rows VALUES (3)")
        with contextlib.suppress(LookupError), connection.transaction():
            connection.execute("INSERT INTO rows VALUES (4)")
            raise LookupError
    assert rows() == [3]


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_cursor_outside_of_a_block_commits_on_every_type(
    manager: PGConnectionManager, write: Write, rows: Rows, connection_type: str
) -> None:
    """`handle.cursor()` is a checkout of its own, with one rule: success commits."""
    handle = manager.get_database_connection(write(), connection_type)
    with handle.cursor() as cursor:
        cursor.execute("INSERT INTO rows VALUES (1)")
    with contextlib.suppress(LookupError), handle.cursor() as cursor:
        cursor.execute("INSERT INTO rows VALUES (2)")
        raise LookupError

    assert rows() == [1]


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_an_async_cursor_outside_of_a_block_commits(
    write: Write, rows: Rows, connection_type: str
) -> None:
    """The same for async types."""
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(write(), connection_type)
        async with handle.cursor() as cursor:
            await cursor.execute("INSERT INTO rows VALUES (1)")
        with contextlib.suppress(LookupError):
            async with handle.cursor() as cursor:
                await cursor.execute("INSERT INTO rows VALUES (2)")
                raise LookupError

    assert rows() == [1]


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_generator_may_be_entered_used_and_left_in_three_threads(
    manager: PGConnectionManager, write: Write, rows: Rows, connection_type: str
) -> None:
    """Frameworks run a `yield` dependency like that; it commits if its block succeeds."""
    handle = manager.get_database_connection(write(), connection_type)

    def dependency() -> Iterator[Any]:
        with handle as connection:
            yield connection

    def in_a_thread(work: Callable[..., Any], *args: Any) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(work, *args).result()

    for number, outcome in ((1, None), (2, LookupError("mine"))):
        generator = dependency()
        connection = in_a_thread(next, generator)
        in_a_thread(connection.execute, "INSERT INTO rows VALUES (%s)", [number])
        if outcome is None:
            in_a_thread(next, generator, "end")
        else:
            with pytest.raises(LookupError, match="mine"):
                in_a_thread(generator.throw, outcome)

    assert rows() == [1]
    assert handle.status().used == 0


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_the_callers_own_exception_arrives_when_the_connection_is_dead(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase, connection_type: str
) -> None:
    """The caller gets it, not the failed rollback nor the lost connection."""
    handle = manager.get_database_connection(write(), connection_type)
    with pytest.raises(LookupError, match="mine"), handle as connection:
        connection.execute("SELECT 1")
        database.terminate_backends()
        raise LookupError("mine")
    with pytest.raises(psycopg.errors.AdminShutdown), handle as connection:
        connection.execute("SELECT 1")
        database.terminate_backends()
        connection.execute("SELECT 2")

    with handle as connection:
        assert connection.execute("SELECT 3").fetchone() == (3,)


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_the_block_has_all_of_psycopg(
    manager: PGConnectionManager, write: Write, connection_type: str
) -> None:
    """Row factories, server-side cursors, pipelines, isolation levels, COPY: all work."""
    from psycopg.rows import dict_row

    handle = manager.get_database_connection(write(), connection_type)
    with handle as connection:
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        with connection.cursor(row_factory=dict_row) as cursor:
            assert cursor.execute("SELECT 1 AS one").fetchone() == {"one": 1}
        with connection.cursor(name="server_side") as cursor:
            assert cursor.execute("SELECT generate_series(1, 3)").fetchmany(2) == [(1,), (2,)]
        with connection.pipeline():
            assert connection.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
        with connection.cursor().copy("COPY (SELECT 7) TO STDOUT") as copy:
            assert b"".join(map(bytes, copy)) == b"7\n"
        connection.rollback()
        connection.isolation_level = None
    with handle.cursor(row_factory=dict_row) as cursor:
        assert cursor.execute("SELECT 1 AS one").fetchone() == {"one": 1}


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_helper_that_borrows_for_itself_inside_a_block(
    manager: PGConnectionManager, write: Write, rows: Rows, connection_type: str
) -> None:
    """On a pool the documented class works inside its own block; one connection says why not."""
    namespace: dict[str, Any] = {}
    exec(recipe("from-4.0/flask", "Database Class for Flask"), namespace)
    db = namespace["Database"](write())
    db.pool = manager.get_database_connection(db.config_path, connection_type)
    if connection_type == "normal":
        with pytest.raises(NestedCheckoutError, match="pool"), db.pool:
            db.fetch_one("SELECT 1")
    else:
        with db.pool as connection:
            connection.execute("INSERT INTO rows VALUES (1)")
            assert db.fetch_one("SELECT 1") == (1,)
            connection.execute("INSERT INTO rows VALUES (2)")
        assert rows() == [1, 2]
    db.manager.clear_cache()
