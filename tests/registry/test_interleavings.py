"""Reloads that are blocked, failed, cancelled or joined at each of their moments."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from pgmonkey import Registry, ReloadRejectedError
from pgmonkey.pool.clock import monotonic
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.registry.steps import POINTS, Pause, Point, acting

#: Seconds: of a checkout.
TIMEOUT = 30


def declare(registry_dir: RegistryDirectory, database: TemporaryDatabase, number: int) -> None:
    sizes = {"min_size": 1, "max_size": 2}
    for name, connection_type in (("orders", "pool"), ("events", "async_pool")):
        registry_dir.declare(
            name,
            database,
            connection_type,
            connection={"application_name": f"app-{number}"},
            pool_settings=sizes,
            async_pool_settings=sizes,
        )


def seen(registry: Registry) -> str:
    with registry.get("orders").connection(timeout=5) as connection:
        row = connection.execute("SELECT current_setting('application_name')").fetchone()
    assert row is not None
    return str(row[0])


class Failure(Exception):
    """What a test raises in the middle of a reload."""


@pytest.mark.parametrize("point", POINTS)
def test_a_reload_that_fails_at_any_moment_leaves_the_old_or_the_new_state(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, point: Point
) -> None:
    """Whatever raises, the handle serves, no connection is lost, and the next reload works."""
    declare(registry_dir, database, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        assert seen(registry) == "app-0"

        def fail() -> None:
            raise Failure

        with pytest.raises((Failure, ReloadRejectedError)), acting(handle, point, fail):
            registry.get("orders", force_reload=True)
        assert seen(registry) == "app-0"
        declare(registry_dir, database, 1)
        assert "orders" in registry.reload().applied
        assert seen(registry) == "app-1"
        assert registry.wait_drained(timeout=5)
        handle.close()
        eventually(lambda: database.backends() == [], 5, "no connection is left over")


@pytest.mark.parametrize("point", POINTS)
def test_checkouts_go_on_while_a_reload_stands_still(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, point: Point
) -> None:
    """A reload that blocks at any moment holds up no checkout, and finishes when it is let go."""
    declare(registry_dir, database, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        assert seen(registry) == "app-0"
        declare(registry_dir, database, 1)
        reload = threading.Thread(target=registry.reload)
        with Pause(registry.get("orders"), point) as pause:
            reload.start()
            pause.wait()
            # The one connection that is open goes round until it is replaced.
            expected = "app-1" if point == "rotated" else "app-0"
            assert [seen(registry) for _ in range(3)] == [expected] * 3
        reload.join()
        assert seen(registry) == "app-1"


def test_the_newest_of_several_versions_wins_while_one_is_being_probed(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Five versions written while the first probe stands still end at the fifth, in one rotation."""

    def declare(number: int) -> None:
        registry_dir.declare("orders", database, connection={"application_name": f"app-{number}"})
        registry_dir.declare("unused", database, description=str(number))

    def read() -> str:
        (unused,) = [one for one in registry.status().databases if one.name == "unused"]
        return unused.description

    declare(0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        assert seen(registry) == "app-0"
        with Pause(registry.get("orders"), "prepared") as pause:
            declare(1)
            reloads = [threading.Thread(target=registry.reload)]
            reloads[0].start()
            pause.wait()
            for number in range(2, 6):
                declare(number)
                reloads.append(threading.Thread(target=registry.reload))
                reloads[-1].start()
            # What needs no connection is in force at once.
            eventually(lambda: read() == "5", 10, "the newest files were read")
        for reload in reloads:
            reload.join()

        assert seen(registry) == "app-5"
        assert next(one.version for one in registry.status().databases if one.name == "orders") == 2
        assert [one["version"] for one in events.named("config.applied", database="orders")] == [2]
        assert len(events.named("database.rotated", database="orders")) == 1
        assert "config.rejected" not in events.names, "what was superseded was not wrong"
        assert registry.wait_drained(timeout=5)


def test_a_forced_reload_that_waits_for_a_reload_keeps_what_that_one_has_applied(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """It replaces connections with what is in force when its turn comes, not when it was asked for."""
    declare(registry_dir, database, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        assert seen(registry) == "app-0"
        reload = threading.Thread(target=registry.reload)
        force = threading.Thread(target=lambda: registry.get("orders", force_reload=True))
        with Pause(registry.get("orders"), "prepared") as pause:
            declare(registry_dir, database, 1)
            reload.start()
            pause.wait()
            force.start()
            force.join(0.2)
            assert force.is_alive(), "it waits for its turn"
        reload.join()
        force.join()

        assert seen(registry) == "app-1"
        assert next(one.version for one in registry.status().databases if one.name == "orders") == 3
        assert registry.wait_drained(timeout=5)
        assert seen(registry) == "app-1"


def test_a_slow_database_holds_up_no_other(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """While the probe of one database stands still, another one is reloaded."""
    declare(registry_dir, database, 0)
    registry_dir.declare("reports", database, "normal")
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        assert seen(registry) == "app-0"
        with registry.get("reports"):
            pass
        declare(registry_dir, database, 1)
        registry_dir.declare(
            "reports", database, "normal", connection={"application_name": "reports-1"}
        )

        def reports() -> Any:
            with registry.get("reports") as connection:
                return connection.execute("SHOW application_name").fetchone()

        reload = threading.Thread(target=registry.reload)
        with Pause(registry.get("orders"), "prepared") as pause:
            reload.start()
            pause.wait()
            eventually(lambda: reports() == ("reports-1",), 10, "the other one is reloaded")
            assert seen(registry) == "app-0"
        reload.join()


@pytest.mark.parametrize("point", POINTS)
async def test_a_cancelled_forced_reload_leaves_the_old_or_the_new_state(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, point: Point
) -> None:
    """A task cancelled at any moment of its forced reload loses nothing and swallows nothing."""
    declare(registry_dir, database, 0)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("events")
        async with handle:
            pass

        async def reload() -> None:
            await registry.get("events", force_reload=True)

        with Pause(handle, point) as pause:
            task = asyncio.create_task(reload())
            await asyncio.to_thread(pause.wait)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        declare(registry_dir, database, 1)
        await registry.areload()
        async with handle.connection(timeout=5) as connection:
            cursor = await connection.execute("SHOW application_name")
            assert await cursor.fetchone() == ("app-1",)


async def test_areload_rotates_the_running_loop_before_it_returns(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """After `await registry.areload()` every connection of this loop is of the new version."""
    declare(registry_dir, database, 0)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("events")
        async with handle, handle:
            pass
        declare(registry_dir, database, 1)
        report = await registry.areload()

        assert report.applied == ("events", "orders")
        status = handle.status()
        assert (status.version, status.retired) == (2, 0)
        assert {one["application_name"] for one in database.backends()} == {"app-1"}
        # The worker of psycopg_pool still adds the last of them to the pool.
        await aeventually(lambda: handle.status().idle == 2, 5, "it is added")


def test_a_blocked_loop_holds_up_nobody_else(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A loop that does not turn rotates when it turns again; threads and other loops go on."""
    declare(registry_dir, database, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("events")
        assert seen(registry) == "app-0"
        blocked, go_on = threading.Event(), threading.Event()
        result: list[Any] = []

        async def show() -> Any:
            async with handle as connection:
                cursor = await connection.execute("SHOW application_name")
                return (await cursor.fetchone())[0]

        async def main() -> None:
            result.append(await show())
            blocked.set()
            go_on.wait(30)
            result.append(await show())
            await handle.close()

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        try:
            assert blocked.wait(10)
            declare(registry_dir, database, 1)
            assert registry.reload().applied == ("events", "orders")
            assert seen(registry) == "app-1"
            assert not registry.wait_drained(timeout=0.1), "the loop still has its old connection"
        finally:
            go_on.set()
            thread.join()

        assert result == ["app-0", "app-1"]
        assert registry.wait_drained(timeout=5)


def test_a_loop_that_turns_while_the_server_is_away_connects_by_itself_when_it_is_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """Nobody borrows: the old connections go when the loop turns, and the new ones come by themselves."""

    def declare(number: int) -> None:
        registry_dir.declare(
            "events",
            database,
            "async_pool",
            connection={
                "port": proxy.port,
                "application_name": f"app-{number}",
                "connect_timeout": 2,
            },
        )

    declare(0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("events")
        there, turn, stop = threading.Event(), threading.Event(), asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def main() -> None:
            loops.append(asyncio.get_running_loop())
            await handle
            there.set()
            turn.wait(30)  # the loop stands still until the network is cut
            await stop.wait()
            await handle.close()

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        try:
            assert there.wait(10)
            declare(1)
            assert registry.reload().applied == ("events",)
            assert not registry.wait_drained(timeout=0)
            proxy.set("refuse")
            turn.set()
            eventually(
                lambda: handle.status().connect_failures["refused"] > 0, 10, "it could not connect"
            )
            assert registry.wait_drained(timeout=10)
            proxy.set("pass")

            def connected() -> bool:
                handle.patrol(monotonic())  # as maintenance does, twice a second
                return {one["application_name"] for one in database.backends()} == {"app-1"}

            eventually(connected, 10, "it is connected")
        finally:
            turn.set()
            loops[0].call_soon_threadsafe(stop.set)
            thread.join()


async def test_reload_on_the_thread_of_a_loop_does_not_wait_for_that_loop(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """`reload()` inside of a coroutine returns what was applied; the next checkout is new."""
    declare(registry_dir, database, 0)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("events")
        async with handle:
            pass
        declare(registry_dir, database, 1)
        assert registry.reload().applied == ("events", "orders")
        async with handle as connection:
            cursor = await connection.execute("SHOW application_name")
            assert await cursor.fetchone() == ("app-1",)


async def test_reload_does_not_wait_for_the_place_that_its_own_loop_would_have_to_give_up(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Every connection of the budget is this loop's: the reload is rejected, and tried again."""

    def declare(number: int) -> None:
        registry_dir.declare(
            "events",
            database,
            "async_pool",
            connection={"application_name": f"app-{number}"},
            async_pool_settings={"min_size": 1, "max_size": 2, "timeout": TIMEOUT},
        )

    declare(0)
    async with Registry(registry_dir, metrics=None, max_connections=2) as registry:
        handle: Any = registry.get("events")
        async with handle, handle:
            declare(1)
            began = time.monotonic()
            (problem,) = registry.reload().rejected["events"]
            assert problem.code == "probe.too_many_connections"
            assert time.monotonic() - began < TIMEOUT / 2, "it does not wait for itself"
        await aeventually(lambda: registry.status().databases[0].last_reload == "applied", 20)
        async with handle as connection:
            cursor = await connection.execute("SHOW application_name")
            assert await cursor.fetchone() == ("app-1",)


@pytest.mark.parametrize("point", POINTS)
async def test_a_cancelled_areload_leaves_the_old_or_the_new_state(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, point: Point
) -> None:
    """Who waits is cancelled at once; the reload itself ends well, and nothing is lost."""
    declare(registry_dir, database, 0)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        orders, events = registry.get("orders"), registry.get("events")
        async with events:
            pass
        await asyncio.to_thread(orders.open)
        declare(registry_dir, database, 1)
        with Pause(orders, point) as pause:
            task = asyncio.create_task(registry.areload())
            await asyncio.to_thread(pause.wait)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert await asyncio.to_thread(seen, registry) in ("app-0", "app-1")

        await registry.areload()
        assert await asyncio.to_thread(seen, registry) == "app-1"
        async with events.connection(timeout=5) as connection:
            cursor = await connection.execute("SHOW application_name")
            assert await cursor.fetchone() == ("app-1",)
        assert await asyncio.to_thread(registry.wait_drained, 5)


def test_a_reload_waits_for_one_that_replaces_connections_by_that_version(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The version is in force already; who reloads meanwhile gets its connections afterwards."""
    declare(registry_dir, database, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        orders = registry.get("orders").open()
        declare(registry_dir, database, 1)
        first, second = (threading.Thread(target=registry.reload) for _ in range(2))
        with Pause(orders, "adopted") as pause:
            first.start()
            pause.wait()
            second.start()
            second.join(0.3)
            assert second.is_alive(), "it waits"
            pause.go_on()
            second.join()
            assert seen(registry) == "app-1"
        first.join()
