"""Checkouts of async handles."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, ConnectError, NestedCheckoutError, Registry, WrongSideError
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import aeventually, eventually
from tests.kit.registry_dir import RegistryDirectory

pytestmark = pytest.mark.usefixtures("each_loop")


@pytest.fixture
def registry(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Registry]:
    """A registry with an async pool of four, a single async connection, and a table."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    sizes = {"min_size": 1, "max_size": 4}
    registry_dir.declare("events", database, "async_pool", async_pool_settings=sizes)
    registry_dir.declare("single", database, "async", timeout="2s")
    registry_dir.declare("orders", database, "pool", pool_settings=sizes)
    with Registry(registry_dir, metrics=None) as registry:
        yield registry


def rows(database: TemporaryDatabase) -> list[int]:
    return sorted(row[0] for row in database.execute("SELECT id FROM public.rows"))


def backend(connection: psycopg.AsyncConnection[Any]) -> int:
    return connection.info.backend_pid


@pytest.mark.parametrize("name", ["events", "single"])
def test_a_block_commits_or_rolls_back(
    registry: Registry, database: TemporaryDatabase, name: str
) -> None:
    """`async with` yields psycopg's AsyncConnection; success commits, an exception rolls back."""

    async def main() -> None:
        async with registry:
            handle = registry.get(name)
            async with handle as connection:
                assert isinstance(connection, psycopg.AsyncConnection)
                await connection.execute("INSERT INTO rows VALUES (1)")
            with pytest.raises(ValueError, match="mine"):
                async with handle as connection:
                    await connection.execute("INSERT INTO rows VALUES (2)")
                    raise ValueError("mine")
            async with handle as connection:
                await connection.execute("INSERT INTO rows VALUES (3)")

    asyncio.run(main())
    assert rows(database) == [1, 3]


def test_nested_blocks_and_child_tasks_have_connections_of_their_own(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """A child task never runs on its parent's connection, nor an inner block on the outer one's."""

    async def main() -> None:
        async with registry:
            handle = registry.get("events")

            async def child() -> int:
                async with handle as connection:
                    await connection.execute("INSERT INTO rows VALUES (2)")
                    return backend(connection)

            with pytest.raises(ValueError, match="outer"):
                async with handle as outer:
                    await outer.execute("INSERT INTO rows VALUES (1)")
                    async with handle as inner:
                        assert backend(inner) != backend(outer)
                        await inner.execute("INSERT INTO rows VALUES (3)")
                    assert await asyncio.create_task(child()) != backend(outer)
                    raise ValueError("outer")

    asyncio.run(main())
    assert rows(database) == [2, 3]


def test_tasks_take_turns_on_a_single_connection_and_nesting_is_refused(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """Ten tasks on an `async` handle all commit on one backend; a nested block raises at once."""

    async def main() -> None:
        async with registry:
            handle = registry.get("single")
            backends: set[int] = set()

            async def work(number: int) -> None:
                async with handle.connection(timeout=20) as connection:
                    backends.add(backend(connection))
                    await connection.execute("INSERT INTO rows VALUES (%s)", [number])

            async with handle:
                with pytest.raises(NestedCheckoutError):
                    async with handle:
                        pass
            await asyncio.gather(*(work(number) for number in range(10)))
            assert len(backends) == 1

    asyncio.run(main())
    assert rows(database) == list(range(10))


def test_an_async_exit_stack_ends_each_of_its_checkouts(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """`AsyncExitStack`, which looks the two halves up on the class, gets distinct checkouts."""

    async def main() -> None:
        async with registry:
            handle = registry.get("events")
            async with AsyncExitStack() as stack:
                first = await stack.enter_async_context(handle)
                second = await stack.enter_async_context(handle)
                assert backend(first) != backend(second)
                await first.execute("INSERT INTO rows VALUES (1)")
                await second.execute("INSERT INTO rows VALUES (2)")
            assert handle.status().used == 0

    asyncio.run(main())
    assert rows(database) == [1, 2]


def test_transaction_cursor_and_await(registry: Registry, database: TemporaryDatabase) -> None:
    """`await handle` opens and gives the handle; `transaction()` and `cursor()` are checkouts."""

    async def main() -> None:
        async with registry:
            handle = registry.get("events")
            assert await handle is handle
            async with handle.transaction() as connection:
                await connection.execute("INSERT INTO rows VALUES (1)")
            async with handle.cursor() as cursor:
                await cursor.execute("INSERT INTO rows VALUES (2) RETURNING id")
                assert await cursor.fetchone() == (2,)

    asyncio.run(main())
    assert rows(database) == [1, 2]


def test_the_wrong_side_is_refused_and_told_the_right_one(registry: Registry) -> None:
    """`async with` or `await` on a sync handle raises at once and shows the block to write."""

    async def main() -> None:
        with pytest.raises(WrongSideError, match=r"use `with registry.get\(.orders.\)"):
            async with registry.get("orders"):
                pass
        with pytest.raises(WrongSideError):
            await registry.get("orders")

    asyncio.run(main())


def test_a_cancelled_checkout_loses_no_connection(registry: Registry) -> None:
    """Tasks cancelled while they wait, work or return leave every connection usable."""

    async def main() -> None:
        async with registry:
            handle = registry.get("events")

            async def work(number: int) -> None:
                async with handle as connection:
                    await connection.execute("SELECT pg_sleep(%s)", [0.001 * (number % 5)])

            tasks = [asyncio.create_task(work(number)) for number in range(200)]
            for number, task in enumerate(tasks):
                await asyncio.sleep(0.0005)
                if number % 2:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            unexpected = [
                one
                for one in results
                if one is not None and not isinstance(one, asyncio.CancelledError)
            ]
            assert unexpected == []
            assert handle.status().used == 0
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(handle.connection(timeout=5))

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(6))
def test_a_task_that_is_cancelled_just_as_it_gets_its_connection_is_cancelled(
    registry: Registry, turns: int
) -> None:
    """However far the connection is on its way to the task, the cancellation is not dropped."""

    async def main() -> None:
        async with registry:
            handle = registry.get("single")

            async def hold() -> None:
                async with handle:
                    await asyncio.Event().wait()

            async with handle:
                waiting = asyncio.create_task(hold())
                await aeventually(lambda: handle.status().waiting == 1)
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting], timeout=5)
            assert waiting.cancelled()
            async with handle.connection(timeout=5) as connection:
                await connection.execute("SELECT 1")

    asyncio.run(main())


def test_a_busy_pool_ends_in_a_timeout_that_names_the_task(registry: Registry) -> None:
    """The error of a task that timed out has the numbers and the task that holds longest."""

    async def main() -> None:
        async with registry:
            handle = registry.get("events")
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(handle)
                with pytest.raises(CheckoutTimeout, match="by task Task-"):
                    async with handle.connection(timeout=0.2):
                        pass

    asyncio.run(main())


def test_a_wrong_password_is_the_first_error(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """What waiting does not mend is raised by the first checkout, with the server's reason."""
    registry_dir.declare(
        "events", database, "async_pool", connection={"password": "not-the-password"}
    )

    async def main() -> None:
        async with Registry(registry_dir, metrics=None) as registry:
            with pytest.raises(ConnectError, match="password authentication failed") as caught:
                async with registry.get("events"):
                    pass
            assert caught.value.reason == "auth"

    asyncio.run(main())


def test_one_loop_after_another_and_several_at_once(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """A handle serves each loop with connections of its own: `asyncio.run` twice, three threads."""
    handle = registry.get("events")

    async def use(number: int) -> int:
        async with handle as connection:
            await connection.execute("INSERT INTO rows VALUES (%s)", [number])
            return backend(connection)

    async def main(number: int) -> int:
        try:
            return await use(number)
        finally:
            await handle.close()

    assert asyncio.run(main(1)) != asyncio.run(main(2))

    def in_a_thread(number: int) -> None:
        asyncio.run(main(number))

    threads = [threading.Thread(target=in_a_thread, args=(number,)) for number in (3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert rows(database) == [1, 2, 3, 4, 5]


def test_a_loop_that_ends_without_closing_leaves_nothing_behind(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """`asyncio.run` ends though the pool was never closed, and the next one works."""
    handle = registry.get("events")

    async def main() -> None:
        async with handle as connection:
            await connection.execute("SELECT 1")

    asyncio.run(main())
    asyncio.run(main())
    registry.close()
    eventually(lambda: database.backends() == [], 5, "no connection is left")
