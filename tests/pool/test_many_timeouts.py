"""Many clients that wait or give up at the same moment: each costs the same, however many there are."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from statistics import median
from typing import Any

import pytest

from pgmonkey import CheckoutTimeout, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory

#: Seconds by which the last client may be late, on a machine that does other things too.
LATE = 1.0
#: Connections of a pool.
SIZE = 2


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    name: str = "orders",
) -> None:
    sizes = {"min_size": SIZE, "max_size": SIZE}
    registry_dir.declare(
        name, database, connection_type, pool_settings=sizes, async_pool_settings=sizes
    )


@asynccontextmanager
async def all_held(handle: Any) -> AsyncIterator[None]:
    """Hold every connection of an async handle."""
    async with AsyncExitStack() as stack:
        for _ in range(handle.status().max_size):
            await stack.enter_async_context(handle)
        yield


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timing
@pytest.mark.parametrize("connection_type", ["async_pool", "async"])
async def test_thousands_of_tasks_that_time_out_together_are_all_in_time(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """4,000 tasks time out: the last one has its whole error soon after its deadline."""
    timeout, tasks = 2.0, 4000
    late: list[float] = []
    texts: list[str] = []
    declare(registry_dir, database, connection_type)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")

        async def wait_in_vain() -> None:
            began = time.monotonic()
            try:
                async with handle.connection(timeout=timeout):
                    raise AssertionError("it got a connection")
            except CheckoutTimeout as error:
                late.append(time.monotonic() - began - timeout)
                texts.append(str(error))

        async with all_held(handle):
            await asyncio.gather(*(wait_in_vain() for _ in range(tasks)))
        assert len(late) == tasks
        assert max(late) < LATE
        assert all("held for" in text for text in texts)
        assert handle.status().errors["timeout"] == tasks
        assert handle.status().waiting == 0


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timing
def test_many_threads_that_time_out_together_are_all_in_time(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The same with 1,500 threads of a sync pool."""
    timeout, number = 2.0, 1500
    late: list[float] = []
    texts: list[str] = []
    declare(registry_dir, database, "pool")
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")

        def wait_in_vain() -> None:
            began = time.monotonic()
            try:
                with handle.connection(timeout=timeout):
                    raise AssertionError("it got a connection")
            except CheckoutTimeout as error:
                late.append(time.monotonic() - began - timeout)
                texts.append(str(error))

        threads = [threading.Thread(target=wait_in_vain) for _ in range(number)]
        with ExitStack() as stack:
            for _ in range(SIZE):
                stack.enter_context(handle)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(late) == number
        assert max(late) < LATE
        assert all("held for" in text for text in texts)


@pytest.mark.timing
@pytest.mark.parametrize("connection_type", ["async_pool", "async"])
async def test_queueing_costs_the_loop_as_much_behind_thousands_as_behind_none(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """4,000 tasks queue, a few hundred in each turn of the loop; the last turns are no longer.

    They are compared with turns of the same moment, whose tasks queue behind few. Then all are
    served one after the other.
    """
    turns, compared, tasks = 15, 5, 200
    behind_thousands: list[float] = []
    behind_few: list[float] = []
    served = 0
    declare(registry_dir, database, connection_type)
    declare(registry_dir, database, connection_type, "reports")
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        crowded: Any = registry.get("orders")
        other: Any = registry.get("reports")

        async def take_a_turn(handle: Any) -> None:
            nonlocal served
            async with handle.connection(timeout=50):
                served += 1

        async with asyncio.TaskGroup() as group:

            async def queue(handle: Any) -> float:
                """Return the seconds that the loop computes while tasks begin to wait."""
                for _ in range(tasks):
                    group.create_task(take_a_turn(handle))
                # The thread's own CPU time: what others take of the machine is not counted.
                before = time.thread_time()
                await asyncio.sleep(0)
                return time.thread_time() - before

            async with all_held(crowded), all_held(other):
                for _ in range(turns):
                    await queue(crowded)
                for _ in range(compared):
                    behind_thousands.append(await queue(crowded))
                    behind_few.append(await queue(other))
                assert served == 0
                assert crowded.status().waiting == (turns + compared) * tasks
        assert served == (turns + 2 * compared) * tasks
    assert median(behind_thousands) < 2 * median(behind_few)
