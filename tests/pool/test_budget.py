"""The connection budget: never more server connections than that, over all databases."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pgmonkey import Registry, RegistryConfigError
from pgmonkey.errors import CheckoutTimeout, ConnectError
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory

NAMES = ("audit", "events", "orders", "reports")
LIMIT = 6


@contextmanager
def peak(database: TemporaryDatabase) -> Iterator[list[int]]:
    """Sample, as another role, how many server connections there are; yields a list of them."""
    stop, seen = threading.Event(), [0]

    def sample() -> None:
        with database.server.connect() as connection:
            connection.autocommit = True
            while not stop.is_set():
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [database.user]
                ).fetchone()
                assert row is not None
                seen.append(row[0])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    name: str,
    connection_type: str = "pool",
    *,
    min_size: int = 0,
    max_size: int = 4,
    **more: Any,
) -> None:
    sizes = {"min_size": min_size, "max_size": max_size}
    section = "async_pool_settings" if connection_type == "async_pool" else "pool_settings"
    registry_dir.declare(name, database, connection_type, **{section: sizes}, **more)


@pytest.mark.parametrize("where", ["process", "server"])
def test_threads_over_several_databases_stay_within_the_budget(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, where: str
) -> None:
    """Four pools of four want sixteen connections; the server never sees more than the budget."""
    for name in NAMES:
        declare(registry_dir, database, name)
    if where == "server":
        registry_dir.write("_defaults", {"max_connections": LIMIT})
    errors: list[BaseException] = []
    budget = LIMIT if where == "process" else None
    with Registry(registry_dir, metrics=None, watch=False, max_connections=budget) as registry:

        def work(name: str) -> None:
            try:
                for _ in range(8):
                    with registry.get(name) as connection:
                        connection.execute("SELECT pg_sleep(0.005)")
            except BaseException as error:
                errors.append(error)

        with peak(database) as seen:
            for name in NAMES:
                registry.get(name).open()
            threads = [threading.Thread(target=work, args=(name,)) for name in NAMES * 4]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        assert errors == []
        assert max(seen) == LIMIT, "the budget was used up, and never exceeded"


async def test_tasks_over_several_databases_stay_within_the_budget(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The same with tasks, and async and sync handles side by side."""
    for name in NAMES:
        declare(registry_dir, database, name, "pool" if name == "audit" else "async_pool")
    async with Registry(registry_dir, metrics=None, watch=False, max_connections=LIMIT) as registry:

        def work_sync() -> None:
            for _ in range(8):
                with registry.get("audit") as connection:
                    connection.execute("SELECT pg_sleep(0.005)")

        async def work(name: str) -> None:
            for _ in range(8):
                async with registry.get(name) as connection:
                    await connection.execute("SELECT pg_sleep(0.005)")

        with peak(database) as seen:
            registry.get("audit").open()
            for name in NAMES[1:]:
                await registry.get(name)
            await asyncio.gather(
                *(asyncio.to_thread(work_sync) for _ in range(4)),
                *(work(name) for name in NAMES[1:] * 4),
            )
        assert max(seen) == LIMIT, "the budget was used up, and never exceeded"


def test_event_loops_share_the_budget(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Each loop has a pool of its own, and all of them together one budget."""
    declare(registry_dir, database, "orders", "async_pool", max_size=3)
    errors: list[BaseException] = []
    ready = threading.Barrier(3)
    with Registry(registry_dir, metrics=None, watch=False, max_connections=5) as registry:

        async def work() -> None:
            async with registry.get("orders") as connection:
                await connection.execute("SELECT pg_sleep(0.005)")

        async def loop() -> None:
            await registry.get("orders")
            await asyncio.to_thread(ready.wait, 20)
            for _ in range(5):
                await asyncio.gather(*(work() for _ in range(6)))
            await registry.get("orders").close()

        def run() -> None:
            try:
                asyncio.run(loop())
            except BaseException as error:
                errors.append(error)

        with peak(database) as seen:
            threads = [threading.Thread(target=run) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert errors == []
        assert 3 <= max(seen) <= 5


def test_a_checkout_without_a_place_waits_its_timeout_and_says_who_holds_them(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Opened or not: the error names the holders, and the next checkout works once one is free."""
    for name in ("audit", "orders"):
        declare(registry_dir, database, name)
    with Registry(registry_dir, metrics=None, watch=False, max_connections=2) as registry:
        held = (
            r"all 2 connections that max_connections allows to this process are held"
            r" \(audit/pool 2\)\n  hint: raise max_connections"
        )
        with registry.get("audit"):
            with (
                registry.get("audit"),
                pytest.raises(CheckoutTimeout, match=held) as caught,
                registry.get("orders").connection(timeout=0.1),
            ):
                pass
            assert str(caught.value).startswith("orders: no connection within 0.1")
            registry.get("audit").close()  # what it has idle
            with (
                registry.get("orders").connection(timeout=10),
                pytest.raises(CheckoutTimeout, match="audit/pool 1, orders/pool 1"),
                registry.get("orders").connection(timeout=0.1),
            ):
                pass


async def test_an_async_checkout_without_a_place_waits_its_timeout_too(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A first checkout and a later one; a task that still has time goes on waiting and gets it."""
    declare(registry_dir, database, "audit")
    declare(registry_dir, database, "orders", "async_pool", timeout="100ms")
    async with Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry:
        orders = registry.get("orders")

        async def patient() -> int:
            async with orders.connection(timeout=10) as connection:
                row = await (await connection.execute("SELECT 1")).fetchone()
                assert row is not None
                return int(row[0])

        with registry.get("audit"):
            waiting = asyncio.create_task(patient())
            for _ in range(2):
                with pytest.raises(CheckoutTimeout, match=r"are held \(audit/pool 1\)"):
                    async with orders:
                        pass
        registry.get("audit").close()
        assert await waiting == 1


@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
async def test_a_reload_under_a_full_budget_works(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
) -> None:
    """One old connection makes room for the probe, though others wait for a place all the time."""
    declare(registry_dir, database, "orders", connection_type, max_size=3)
    declare(registry_dir, database, "audit", min_size=0)
    async with Registry(registry_dir, metrics=None, watch=False, max_connections=3) as registry:
        orders, stop = registry.get("orders"), threading.Event()

        def take_whatever_comes() -> None:
            while not stop.is_set():
                # From the rotation until its file is read, it has the old password.
                with (
                    suppress(CheckoutTimeout, ConnectError),
                    registry.get("audit").connection(timeout=0.2),
                ):
                    pass

        async def fill() -> None:
            """Have three idle connections."""
            if connection_type == "pool":
                with ExitStack() as stack:
                    for _ in range(3):
                        stack.enter_context(orders)
                return
            connections = [orders.connection() for _ in range(3)]
            for one in connections:
                await one.__aenter__()
            for one in connections:
                await one.__aexit__(None, None, None)

        await fill()
        with peak(database) as seen:
            greedy = threading.Thread(target=take_whatever_comes)
            greedy.start()
            try:
                for number in range(3):
                    database.rotate()
                    declare(registry_dir, database, "orders", connection_type, max_size=3)
                    declare(registry_dir, database, "audit", description=str(number))
                    report = await registry.areload()
                    codes = {one.code for one in report.rejected.get("orders", ())}
                    if codes == {"probe.too_many_connections"}:
                        # The loop did not turn for a second, so its pool could not make room. The
                        # watcher tries such a reload again, and here is none.
                        report = await registry.areload()
                    assert "orders" in report.applied, report.rejected
            finally:
                stop.set()
                await asyncio.to_thread(greedy.join)
        assert max(seen) <= 3


def test_a_raised_limit_lets_those_who_wait_go_on(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A new `max_connections` takes effect without a rotation, for who waits as for who comes."""
    declare(registry_dir, database, "orders", max_connections=1)
    done = []
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        orders = registry.get("orders")

        def second() -> None:
            with orders.connection(timeout=20):
                done.append(True)

        with orders as connection:
            before = connection.execute("SELECT pg_backend_pid()").fetchone()
            thread = threading.Thread(target=second)
            thread.start()
            eventually(lambda: orders.status().waiting == 1)
            declare(registry_dir, database, "orders", max_connections=2)
            assert registry.reload().applied == ("orders",)
            thread.join()
            assert connection.execute("SELECT pg_backend_pid()").fetchone() == before
        assert done == [True]
        assert orders.status().version == 2


def test_a_child_process_has_a_budget_of_its_own(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """What the parent holds does not count in the child, which keeps to the same number."""
    declare(registry_dir, database, "orders", max_size=3)
    with Registry(registry_dir, metrics=None, watch=False, max_connections=2) as registry:
        with registry.get("orders"), registry.get("orders"):

            def child() -> str:
                try:
                    with registry.get("orders"), registry.get("orders"):
                        try:
                            with registry.get("orders").connection(timeout=0.1):
                                return "a third one"
                        except CheckoutTimeout as error:
                            return str(error)
                finally:
                    registry.close()

            assert "(orders/pool 2)" in in_a_child(child)
        with registry.get("orders"), registry.get("orders"):
            pass


def test_a_background_probe_counts(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A probe that finds no place says so, and is never one connection too many."""
    for name in ("audit", "orders"):
        declare(registry_dir, database, name)
    with Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry:
        with peak(database) as seen:
            with registry.get("audit"):
                status = registry.probe("orders")
                assert status.last_error_reason == "too_many_connections"
                assert "are held (audit/pool 1)" in (status.last_error or "")
            registry.get("audit").close()
            assert registry.probe("orders").reached
        assert max(seen) == 1


def test_a_budget_that_cannot_hold_what_is_kept_open_is_a_problem(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """At load, of the process and of a server; the hint says whose `min_size` it is."""
    for name in ("audit", "orders"):
        declare(registry_dir, database, name, min_size=2)
    with pytest.raises(RegistryConfigError) as caught:
        Registry(registry_dir, metrics=None, watch=False, max_connections=3)
    (problem,) = caught.value.problems
    assert problem.code == "registry.max_connections"
    assert "all databases keep 4 connections open (min_size)" in problem.message
    assert problem.hint == "raise max_connections, or lower min_size (audit 2, orders 2)"
    with Registry(registry_dir, metrics=None, watch=False, max_connections=4):
        pass

    registry_dir.write("_defaults", {"max_connections": 3})
    with pytest.raises(RegistryConfigError, match=f"on {database.host}:{database.port} keep 4"):
        Registry(registry_dir, metrics=None, watch=False)


def test_a_budget_that_becomes_too_small_is_reported_and_kept(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """A reload that asks for more than the budget holds says so; the cap stands."""
    declare(registry_dir, database, "orders", min_size=1)
    with Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry:
        with registry.get("orders"):
            pass
        declare(registry_dir, database, "orders", min_size=2)
        rejected = registry.reload().rejected
        assert [one.code for one in rejected[str(registry_dir)]] == ["registry.max_connections"]
        assert events.named("config.rejected")[-1]["code"] == "registry.max_connections"
        with registry.get("orders"):
            eventually(lambda: len(database.backends()) == 1)
        declare(registry_dir, database, "orders", min_size=1)
        assert dict(registry.reload().rejected) == {}


async def test_the_place_of_a_cancelled_connect_is_given_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Checkouts that are cancelled while they wait or connect leave no place taken."""
    declare(registry_dir, database, "orders", "async_pool")
    async with Registry(registry_dir, metrics=None, watch=False, max_connections=2) as registry:
        orders = registry.get("orders")

        async def hold() -> None:
            async with orders:
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(hold()) for _ in range(6)]
        await aeventually(lambda: len(database.backends()) == 2, 30)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        async with orders, orders:
            assert orders.status().used == 2
        await orders.close()
        declare(registry_dir, database, "audit", max_size=2)
        await registry.areload()
        async with (
            registry.get("audit", "async_pool") as first,
            registry.get("audit", "async_pool") as second,
        ):
            assert first is not second, "another pool gets both places"


def test_a_full_budget_does_not_keep_a_pool_from_its_other_work(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A client that gave up leaves no worker behind that waits: idle connections still shrink."""
    declare(registry_dir, database, "audit", max_size=1)
    registry_dir.declare(
        "orders",
        database,
        pool_settings={"min_size": 0, "max_size": 4, "max_idle": "200ms"},
    )
    with Registry(registry_dir, metrics=None, watch=False, max_connections=3) as registry:
        orders, audit = registry.get("orders"), registry.get("audit")
        with audit, orders, orders:
            with pytest.raises(CheckoutTimeout), orders.connection(timeout=0.05):
                pass
        eventually(lambda: orders.status().idle == 0, 20)
        assert audit.status().idle == 1
