"""Exceptions from outside: Ctrl-C, a cancelled task, a dropped generator. No connection is lost."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.registry_dir import RegistryDirectory


class Stop(BaseException):
    """What a framework throws into a thread; no `Exception`, as Ctrl-C is none."""


@contextmanager
def interrupted_after(seconds: float, error: type[BaseException]) -> Iterator[None]:
    """Raise in the main thread, from a signal handler, as Ctrl-C does."""

    def throw(_number: int, _frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, throw)
    # pytest-timeout watches over this test with the same timer.
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Stop])
@pytest.mark.parametrize("connection_type", ["pool", "normal"])
def test_a_thread_that_is_interrupted_while_it_waits_loses_no_connection(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    error: type[BaseException],
    size: int,
) -> None:
    """The interrupt arrives; afterwards the pool still has every one of its connections to give."""
    if connection_type == "normal":
        size = 1
    registry_dir.declare(
        "orders", database, connection_type, pool_settings={"min_size": size, "max_size": size}
    )
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        release = threading.Event()
        holding = threading.Barrier(size + 1)

        def hold() -> None:
            with handle:
                holding.wait(10)
                release.wait(10)

        for _ in range(2):
            release.clear()
            holders = [threading.Thread(target=hold) for _ in range(size)]
            for thread in holders:
                thread.start()
            holding.wait(10)
            try:
                with (
                    pytest.raises(error),
                    interrupted_after(0.05, error),
                    handle.connection(timeout=10),
                ):
                    raise AssertionError("nothing is free")
            finally:
                release.set()
                for thread in holders:
                    thread.join()

            release.clear()
            holders = [threading.Thread(target=hold) for _ in range(size)]
            for thread in holders:
                thread.start()
            holding.wait(10)  # all of them are out at once: none is lost
            release.set()
            for thread in holders:
                thread.join()
        assert handle.status().used == 0
        assert registry.wait_drained(timeout=5)
        eventually(lambda: len(database.backends()) <= size, 5, "and none too many is open")


def test_clients_that_queue_behind_an_interrupted_one_are_served(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """The connection that comes back goes to the next in the queue, and not to nobody."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 1})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        served = threading.Event()
        release = threading.Event()
        out = threading.Event()

        def hold() -> None:
            with handle:
                out.set()
                release.wait(10)

        def queue() -> None:
            with handle.connection(timeout=10) as connection:
                connection.execute("SELECT 1")
                served.set()

        holder, waiter = threading.Thread(target=hold), threading.Thread(target=queue)
        holder.start()
        assert out.wait(10)
        try:
            with (
                pytest.raises(KeyboardInterrupt),
                interrupted_after(0.2, KeyboardInterrupt),
                handle.connection(timeout=10),
            ):
                raise AssertionError("nothing is free")
            waiter.start()
            eventually(
                lambda: handle.status().waiting == 1 or served.is_set(), 5, "it queues, or need not"
            )
        finally:
            release.set()
            holder.join()
        assert served.wait(5)
        waiter.join()
    assert events.wait("database.given_up")["reason"] == "interrupted", "it is said"


def test_a_generator_that_is_dropped_inside_its_block_gives_the_connection_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A dependency that nobody finishes ends with the garbage, and so does its checkout."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 1})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")

        def dependency() -> Iterator[Any]:
            with handle as connection:
                yield connection

        for _ in range(3):
            generator = dependency()
            next(generator)
            assert handle.status().used == 1
            del generator
            gc.collect()
        with handle.connection(timeout=1) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.slow
async def test_a_thousand_tasks_cancelled_at_random_during_reloads_lose_no_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Cancelled while they wait, in the block, on return, in a reload: every slot is still there."""
    size = 4
    registry_dir.declare(
        "events", database, "async_pool", async_pool_settings={"min_size": 1, "max_size": size}
    )
    choose = random.Random(20_240_101)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("events")
        cancelled = 0

        async def work(pause: float) -> None:
            async with handle.connection(timeout=10) as connection:
                await connection.execute("SELECT pg_sleep(%s)", [pause])

        for number in range(1000):
            task = asyncio.create_task(work(choose.choice([0.0, 0.001, 0.004])))
            for _ in range(choose.randrange(12)):
                await asyncio.sleep(0)
            if choose.random() < 0.5:
                asyncio.get_running_loop().call_later(choose.random() * 0.01, task.cancel)
            if number % 100 == 50:
                reload = asyncio.create_task(handle.force_reload())
                asyncio.get_running_loop().call_later(choose.random() * 0.02, reload.cancel)
                await asyncio.wait([reload])
            if number % 8 == 7:
                await asyncio.wait([task])
                cancelled += task.cancelled()
        await aeventually(lambda: handle.status().used == handle.status().waiting == 0, 20)
        assert cancelled > 10

        together = asyncio.Barrier(size)

        async def hold() -> None:
            async with handle.connection(timeout=10):
                await asyncio.wait_for(together.wait(), 10)

        await asyncio.gather(*(hold() for _ in range(size)))
        await aeventually(lambda: not handle.is_draining(), 10)
        assert len(await asyncio.to_thread(database.backends)) <= size
