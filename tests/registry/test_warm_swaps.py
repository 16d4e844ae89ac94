"""Swaps under load: the new generation has taken over connections before clients depend on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from pgmonkey import Registry
from pgmonkey.pool import async_handle, fault_points, seeds
from pgmonkey.pool.async_handle import AsyncDatabase
from pgmonkey.pool.target import Applied
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.registry.load import Load, Peak, async_workers, sync_workers

SIZE = 4


@pytest.fixture(autouse=True)
def all_the_time_it_needs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no load of the machine end a warming early, and leave no action behind."""
    for module in (seeds, async_handle):
        monkeypatch.setattr(module, "LONGEST_WARMING", 30.0)
    yield
    fault_points.actions.clear()


def declare(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str, number: int
) -> None:
    sizes = {"min_size": 1, "max_size": SIZE}
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={"application_name": f"app-{number}"},
        **{"pool_settings" if connection_type == "pool" else "async_pool_settings": sizes},
    )


def count_before_swap(database: TemporaryDatabase) -> list[int]:
    """Return a list that gets the number of new connections at the moment of the swap."""
    counted: list[int] = []

    def count() -> None:
        names = [backend["application_name"] for backend in database.backends()]
        counted.append(names.count("app-1"))

    fault_points.actions["before_swap"] = count
    return counted


@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_a_swap_under_load_starts_from_most_of_the_connections(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """Old connections are given up one by one for new ones until those are more, then comes the swap."""
    database.execute("CREATE TABLE public.done (id int)")
    database.execute(f'GRANT ALL ON public.done TO "{database.user}"')
    declare(registry_dir, database, connection_type, 0)
    load = Load()
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        workers = sync_workers if connection_type == "pool" else async_workers
        start, finish = workers(registry, load, 0.01)
        start()
        try:
            eventually(lambda: len(database.backends()) == SIZE, 20, "the pool has grown")
            with Peak(database) as peak:
                counted = count_before_swap(database)
                declare(registry_dir, database, connection_type, 1)
                assert registry.reload().applied == ("orders",)
                eventually(lambda: counted, 20, "the swap")
                done = len(load.committed)
                eventually(lambda: len(load.committed) > done + 4 * SIZE, 20, "it goes on")
        finally:
            finish()

    assert counted == [SIZE - 1]
    assert peak.highest <= SIZE + 1
    assert load.errors == []


@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_a_swap_without_load_makes_one_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """A pool that had grown and is not used now is replaced by the one that was verified."""
    declare(registry_dir, database, connection_type, 0)
    ready, stop = threading.Event(), threading.Event()

    def hold_all_in_turn(registry: Registry) -> None:
        database_handle = registry.get("orders")
        if connection_type == "pool":
            with database_handle, database_handle, database_handle:
                assert len(database.backends()) == 3
            ready.set()
            assert stop.wait(30)
            return

        async def main() -> None:
            async with database_handle, database_handle, database_handle:
                assert len(database.backends()) == 3
            ready.set()
            assert await asyncio.to_thread(stop.wait, 30)
            await database_handle.close()

        asyncio.run(main())

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        thread = threading.Thread(target=hold_all_in_turn, args=(registry,))
        thread.start()
        try:
            assert ready.wait(20)
            counted = count_before_swap(database)
            declare(registry_dir, database, connection_type, 1)
            assert registry.reload().applied == ("orders",)
            eventually(lambda: counted, 20, "the swap")
        finally:
            stop.set()
            thread.join()

    assert counted == [1]


@asynccontextmanager
async def opened(registry: Registry) -> AsyncIterator[AsyncDatabase]:
    """Give a handle that has one connection in this loop."""
    orders = registry.get("orders")
    assert isinstance(orders, AsyncDatabase)
    async with orders as connection:
        await connection.execute("SELECT 1")
    yield orders
    await orders.close()


def forced(orders: AsyncDatabase) -> Applied:
    applied = orders.target.applied
    return applied.forced(applied.config)


async def one_is_left(database: TemporaryDatabase) -> None:
    await asyncio.to_thread(eventually, lambda: len(database.backends()) == 1, 5, "it is closed")


async def test_what_a_loop_made_ready_is_closed_when_the_reload_is_called_off(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A candidate that is dropped leaves the loop with its old connection, and no other one."""
    declare(registry_dir, database, "async_pool", 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        async with opened(registry) as orders:
            candidate = await asyncio.to_thread(orders.prepare, forced(orders))
            assert len(database.backends()) == 2
            orders.drop(candidate)
            await one_is_left(database)
            async with orders as connection:
                await connection.execute("SELECT 1")


async def test_what_a_loop_made_ready_is_closed_when_the_reload_is_interrupted(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the loop is waited for leaves no connection that nobody would ever close."""
    declare(registry_dir, database, "async_pool", 0)

    class Interrupted(BaseException):
        pass

    def wait(_event: threading.Event, _timeout: float | None = None) -> bool:
        raise Interrupted

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        async with opened(registry) as orders:
            (side,) = orders.sides()
            make, made = side.make_ready_soon, []

            def make_and_interrupt(applied: Applied) -> threading.Event:
                done = make(applied)
                assert threading.Event.wait(done, 20)
                made.append(len(database.backends()))
                monkeypatch.setattr(done, "wait", partial(wait, done))
                return done  # type: ignore[no-any-return]  # a method of a side, of which sides() says no type

            monkeypatch.setattr(side, "make_ready_soon", make_and_interrupt)
            with pytest.raises(Interrupted):
                await asyncio.to_thread(orders.prepare, forced(orders))
            assert made == [2]
            await one_is_left(database)


async def test_a_loop_that_has_moved_already_makes_nothing_ready(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """One that stood still hears late of what it moved to meanwhile, and connects no second time."""
    declare(registry_dir, database, "async_pool", 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        async with opened(registry) as orders:
            await orders.force_reload()
            (side,) = orders.sides()
            done = side.make_ready_soon(orders.target.applied)
            assert await asyncio.to_thread(done.wait, 20)
            await one_is_left(database)


async def test_a_handle_that_closes_takes_along_what_a_reload_made_ready(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Nothing is left on the server when a loop ends between the probe and the swap."""
    declare(registry_dir, database, "async_pool", 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        async with opened(registry) as orders:
            await asyncio.to_thread(orders.prepare, forced(orders))
        await asyncio.to_thread(
            eventually, lambda: database.backends() == [], 5, "no connection is left over"
        )
