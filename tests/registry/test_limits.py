"""Limits: of the role, of the drain, of what a reload may need."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import prometheus_client
import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.registry.load import STATEMENT, table_of_commits, working

SIZE = 4


@pytest.mark.parametrize("milliseconds", [2, 200])
@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_a_role_whose_limit_is_the_pools_size_is_reloaded_under_full_load(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    connection_type: str,
    milliseconds: int,
) -> None:
    """Every connection that the role may have is in a transaction, and ten reloads fail no client."""
    table_of_commits(database)
    database.connection_limit(SIZE)
    section = {"min_size": SIZE, "max_size": SIZE}

    def declare(number: int) -> None:
        registry_dir.declare(
            "orders",
            database,
            connection_type,
            connection={"application_name": f"app-{number}"},
            **{"pool_settings" if connection_type == "pool" else "async_pool_settings": section},
        )

    declare(0)
    with Registry(registry_dir, metrics=None) as registry:
        with working(registry, connection_type, milliseconds / 1000) as load:
            load.goes_on()
            for number in range(1, 11):
                declare(number)
                eventually(
                    lambda number=number: _seen(registry, f"app-{number}"), 20, f"app-{number}"
                )
                load.goes_on()
        assert registry.wait_drained(timeout=10)

    committed = sorted(row[0] for row in database.execute("SELECT id FROM public.done"))
    assert committed == sorted(load.committed)
    assert events.named("config.rejected") == []


def _seen(registry: Registry, application_name: str) -> bool:
    status = registry.status().databases[0]
    settings: Any = status.config["connection_settings"]
    return not status.stale and settings["application_name"] == application_name


def test_a_checkout_that_outlasts_drain_timeout_is_named_and_not_cut(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """The warning has thread, age and place of the holder; its transaction still commits."""
    numbers = prometheus_client.CollectorRegistry()
    labels = {"database": "orders", "type": "pool"}
    table_of_commits(database)
    registry_dir.declare("orders", database, drain_timeout="100ms")
    with Registry(registry_dir, metrics=numbers) as registry:
        with registry.get("orders") as connection:
            connection.execute(STATEMENT, [1, 0])
            registry_dir.declare(
                "orders", database, drain_timeout="100ms", connection={"application_name": "app-1"}
            )
            lingering = events.wait("database.drain_timeout", database="orders")
            assert not registry.wait_drained(timeout=0)
            assert not connection.closed
            retired = {**labels, "state": "retired"}
            assert numbers.get_sample_value("pgmonkey_pool_connections", retired) == 1
            longest = numbers.get_sample_value("pgmonkey_pool_longest_checkout_seconds", labels)
            assert longest is not None
            assert longest > 0.1
            (shown,) = registry.get("orders").status().checkouts
            assert "test_limits.py" in shown.place

        assert registry.wait_drained(timeout=5)
        assert numbers.get_sample_value("pgmonkey_pool_connections", retired) == 0
        (holder,) = lingering["holders"]
        assert holder["holder"] == f"thread {threading.current_thread().name}"
        assert "test_limits.py" in holder["place"]
        assert holder["seconds"] > 0
        assert events.wait("database.drained", version=1)
        assert len(events.named("database.drain_timeout")) == 1
    assert database.execute("SELECT id FROM public.done") == [(1,)]


async def test_a_task_that_outlasts_drain_timeout_is_named_and_not_cut(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """On an event loop the holder is a task; a removed database names its holders just the same."""
    registry_dir.declare("orders", database, "async_pool", drain_timeout="100ms")
    async with Registry(registry_dir, metrics=None) as registry:
        handle = registry.get("orders")
        holding = asyncio.Event()
        go_on = asyncio.Event()

        async def hold() -> Any:
            async with handle as connection:
                holding.set()
                await go_on.wait()
                cursor = await connection.execute("SELECT 1")
                return await cursor.fetchone()

        task = asyncio.create_task(hold(), name="the report")
        await holding.wait()
        await asyncio.to_thread(events.wait, "watch.started")
        registry_dir.remove("orders")
        assert (await registry.areload()).removed == ("orders",)
        lingering = await asyncio.to_thread(
            events.wait, "database.drain_timeout", database="orders"
        )
        (holder,) = lingering["holders"]
        assert holder["holder"] == "task the report"
        assert "test_limits.py" in holder["place"]
        assert not await asyncio.to_thread(registry.wait_drained, 0)
        go_on.set()
        assert await task == (1,)
        assert await asyncio.to_thread(registry.wait_drained, 5)


def test_a_leaked_checkout_is_reported_once_and_again_when_it_comes_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Longer than `leak_detection`: one event with the place, one more on return, and a count."""
    registry_dir.declare("orders", database, leak_detection="50ms")
    with Registry(registry_dir, metrics=None) as registry:
        with registry.get("orders").connection():
            leaked = events.wait("checkout.leaked", database="orders")
            status = registry.get("orders").status()
            assert status.leaks == 1
            assert "test_limits.py" in status.checkouts[0].place
        late = events.wait("checkout.returned_late", database="orders")

    assert "test_limits.py" in leaked["place"]
    assert leaked["holder"].startswith("thread ")
    assert late["seconds"] >= 0.05
    assert len(events.named("checkout.leaked")) == 1


def test_fifty_forced_reloads_at_once_make_one_rotation(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Callers that ask for a reload while one is under way share its result."""
    registry_dir.declare("orders", database)
    numbers = prometheus_client.CollectorRegistry()
    with Registry(registry_dir, metrics=numbers) as registry:
        with registry.get("orders"):
            pass
        barrier = threading.Barrier(50)

        def force() -> None:
            barrier.wait()
            registry.get("orders", force_reload=True)

        threads = [threading.Thread(target=force) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert 1 <= len(events.named("database.rotated")) <= 3
        version = numbers.get_sample_value("pgmonkey_config_version", {"database": "orders"})
        assert version == 1 + len(events.named("database.rotated"))
        eventually(lambda: len(database.backends()) <= 2, 5, "no connection is left over")


def test_a_forced_reload_that_cannot_connect_keeps_what_runs(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """`force_reload` with a refused login raises, and the good connections go on serving."""
    registry_dir.declare("orders", database)
    registry_dir.declare("events", database, "async_pool")
    with Registry(registry_dir, metrics=None) as registry:
        handle = registry.get("orders")
        with handle as connection:
            before = connection.info.backend_pid
        database.rotate()
        with pytest.raises(Exception, match="password authentication failed") as caught:
            registry.get("orders", force_reload=True)
        assert type(caught.value).__name__ == "ReloadRejectedError"
        with handle as connection:
            assert connection.info.backend_pid == before
        assert registry.status().databases[-1].version == 1


async def test_a_forced_reload_of_an_async_handle_happens_when_it_is_awaited(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """`await registry.get(name, force_reload=True)` rotates; a refused login keeps what runs."""
    registry_dir.declare("events", database, "async_pool")
    async with Registry(registry_dir, metrics=None) as registry:
        handle: Any = registry.get("events")

        async def backend() -> int:
            async with handle as connection:
                return int(connection.info.backend_pid)

        first = await backend()
        assert await registry.get("events", force_reload=True) is handle
        second = await backend()
        assert second != first

        await asyncio.to_thread(database.rotate)
        with pytest.raises(Exception, match="password authentication failed") as caught:
            await registry.get("events", force_reload=True)
        assert type(caught.value).__name__ == "ReloadRejectedError"
        assert await backend() == second


def test_when_older_connections_are_drained_the_server_has_none_of_them(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """After `wait_drained` an old role can be dropped, an old host shut down: no session is left."""
    sizes = {"min_size": 4, "max_size": 4}
    registry_dir.declare("orders", database, pool_settings=sizes)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        registry.get("orders").open()
        for number in range(10):
            name = f"app-{number}"
            eventually(lambda: len(database.backends()) == 4, 10, "the pool is full")
            registry_dir.declare(
                "orders", database, connection={"application_name": name}, pool_settings=sizes
            )
            assert registry.reload().applied == ("orders",)
            assert registry.wait_drained(timeout=10)
            assert {one["application_name"] for one in database.backends()} == {name}
