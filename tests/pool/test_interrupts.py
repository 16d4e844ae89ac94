"""Exceptions from outside: Ctrl-C, a cancelled task, a dropped generator. No connection is lost."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

import pgmonkey
from pgmonkey import HandleClosedError, Registry
from pgmonkey.pool.clock import monotonic
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.process import interrupted_after
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.interruption import Interruption, in_a_thread
from tests.pool.side import SIDES, Client, refuses


class Stop(BaseException):
    """What a framework throws into a thread; no `Exception`, as Ctrl-C is none."""


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
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The connection that comes back goes to the next client in the queue."""
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


def test_a_checkout_that_nobody_can_end_is_taken_back_and_reported(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """An interrupt right before `__exit__`: nothing is committed, the slot is there, it is reported."""
    database.execute("CREATE TABLE public.tea (id int)")
    database.execute(f'GRANT ALL ON public.tea TO "{database.user}"')
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 1})
    with Registry(registry_dir, metrics=None) as registry:
        handle: Any = registry.get("orders")
        checkout = handle.connection()
        connection = checkout.__enter__()
        connection.execute("INSERT INTO public.tea VALUES (1)")
        del checkout  # only this object could have ended it
        event = events.wait("checkout.abandoned")
        assert event["place"].startswith(__file__)
        with handle.connection(timeout=10) as another:
            assert another.execute("SELECT count(*) FROM public.tea").fetchone() == (0,)
        assert handle.status().leaks == 1


def test_without_a_watcher_the_client_that_waits_in_vain_takes_it_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """One client may have its timeout; the next one is served."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 1})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        handle.connection().__enter__()
        with suppress(pgmonkey.CheckoutTimeout), handle.connection(timeout=0.1):
            pass
        with handle.connection(timeout=10):
            assert events.names.count("checkout.abandoned") == 1


@pytest.mark.parametrize("side", SIDES)
def test_a_place_that_psycopg_pool_has_lost_costs_one_client_its_timeout(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """It counts a connection that is gone; the watcher sees that it is not on its way, and mends it."""
    sizes = {"min_size": 0, "max_size": 1}
    registry_dir.declare("orders", database, side, pool_settings=sizes, async_pool_settings=sizes)
    with (
        Registry(registry_dir, metrics=None) as registry,
        closing(Client(registry)) as client,
    ):
        assert client.ask() == 1
        (pool,) = client.handle.pools.values()
        lost = client.on(pool.driver.getconn)
        client.on(lost.close)
        refuses(client, timeout=0.1)
        assert client.ask(timeout=5) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_while_the_first_connection_is_begun_is_no_end(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Ctrl-C around the start of the thread that connects: the next checkout is served."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 1})
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        monkeypatch.undo()
        if moment == "after":
            start(thread)
        raise Stop

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(Stop), handle:
            raise AssertionError("it was interrupted")
        for _ in range(3):
            with handle.connection(timeout=10) as connection:
                connection.execute("SELECT 1")
        eventually(lambda: len(database.backends()) == 1, 5, "and no other one is being made")


def test_interrupts_of_a_forced_reload_leave_its_place_free(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """Ctrl-C while its probe hangs in a silent network, three times; then it works."""
    registry_dir.declare(
        "orders",
        database,
        connection={"host": proxy.host, "port": proxy.port},
        pool_settings={"min_size": 1, "max_size": 1},
    )
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        with registry.get("orders") as connection:
            connection.execute("SELECT 1")
        proxy.set("blackhole")
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt), interrupted_after(0.2, KeyboardInterrupt):
                registry.get("orders", force_reload=True)
        proxy.set("pass")
        registry.get("orders", force_reload=True)
        with registry.get("orders").connection(timeout=10) as connection:
            connection.execute("SELECT 1")
        assert registry.wait_drained(timeout=10)


def test_what_an_interrupted_close_has_left_open_is_closed_by_the_watcher(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Ctrl-C at any line of `close`: the handle works on, and closes what it has, now or soon."""
    registry_dir.declare("orders", database)

    def main() -> int:
        with Registry(registry_dir, metrics=None, watch=False) as registry:
            handle: Any = registry.get("orders")
            for number in range(1, 1000):
                handle.open()
                # psycopg_pool itself, once interrupted while it closes, never ends its threads.
                interruption = Interruption(number, Stop, __file__, everywhere=False)
                with suppress(Stop), interruption:
                    handle.close()
                if not interruption.at:
                    break  # that was the last line
                with handle.connection(timeout=5) as connection:
                    connection.execute("SELECT 1")
                handle.close()
                now = monotonic()
                handle.patrol(now)
                handle.patrol(now + 6)
                eventually(lambda: database.backends() == [], 5, f"closed: {interruption.at}")
                assert registry.wait_drained(timeout=5), interruption.at
        return number

    assert in_a_thread(main) > 10, "there was something to interrupt"


class Closing(Interruption):
    """Close a registry at one line of a block, as a signal handler does that raises nothing."""

    def __init__(self, number: int, registry: Registry) -> None:
        # psycopg_pool holds a lock at some of its lines, and takes it again to close.
        super().__init__(number, Stop, __file__, everywhere=False)
        self._registry = registry

    def interrupt(self) -> None:
        self._registry.close()


def evict(handle: Any, connection: Any) -> None:
    """Let a checkout find a connection dead."""
    connection.pgconn.finish()
    connection.returned_at = 0.0
    with handle:
        pass


def close(handle: Any, _connection: Any) -> None:
    handle.close()


@pytest.mark.slow
@pytest.mark.parametrize("act", [evict, close])
def test_a_signal_handler_closes_the_registry_at_any_line(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, act: Callable[[Any, Any], None]
) -> None:
    """Wherever it comes, it does not wait for the code that it has interrupted, and all is closed."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 1})

    def main() -> int:
        for number in range(1, 1000):
            registry = Registry(registry_dir, metrics=None, watch=False)
            handle = registry.get("orders")
            with handle as connection:
                pass
            handler = Closing(number, registry)
            with suppress(HandleClosedError), handler:
                act(handle, connection)
            registry.close()
            assert database.backends() == [], handler.at
            if not handler.at:
                break  # that was the last line
        return number

    assert in_a_thread(main) > 10, "there was something to interrupt"


@pytest.mark.parametrize("moment", ["the watcher ends", "a database ends"])
@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_an_interrupt_of_the_registrys_end_ends_the_other_databases_all_the_same(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    monkeypatch: pytest.MonkeyPatch,
    connection_type: str,
    moment: str,
) -> None:
    """Ctrl-C before or while the first of three closes: it is raised when all have, for good."""
    for name in ("orders", "billing", "stock"):
        registry_dir.declare(name, database, connection_type)
    registry = Registry(registry_dir, metrics=None)
    handles: list[Any] = [registry.get(name) for name in registry]
    for handle in handles:
        handle.open()
    shut, join = handles[0].shut, threading.Thread.join

    def interrupted_shut(gone: Any) -> None:
        shut(gone)
        raise Stop

    def interrupted_join(thread: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.undo()
        join(thread, timeout)
        raise Stop

    if moment == "the watcher ends":
        monkeypatch.setattr(threading.Thread, "join", interrupted_join)
    else:
        handles[0].shut = interrupted_shut
    with pytest.raises(Stop):
        registry.close()

    eventually(lambda: database.backends() == [], 5, "all are closed")
    for handle in handles:
        with pytest.raises(HandleClosedError, match="registry"), handle:
            pass


async def test_an_interrupt_while_a_task_looks_at_its_connection_loses_none(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no cancellation may come between the pool and the block on an event loop too."""
    registry_dir.declare(
        "events", database, "async_pool", async_pool_settings={"min_size": 1, "max_size": 1}
    )
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("events")
        async with handle as connection:
            pass
        connection.returned_at = 0.0

        def interrupt(_connection: object) -> bool:
            monkeypatch.undo()
            raise Stop

        monkeypatch.setattr(type(connection), "is_alive", interrupt)
        with pytest.raises(Stop):
            async with handle:
                raise AssertionError("it was interrupted")
        async with handle.connection(timeout=10) as connection:
            await connection.execute("SELECT 1")


def test_a_generator_that_is_dropped_inside_its_block_gives_the_connection_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A dependency that is never finished ends with the garbage, and so does its checkout."""
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

        async def force_reload() -> None:
            await registry.get("events", force_reload=True)

        for number in range(1000):
            task = asyncio.create_task(work(choose.choice([0.0, 0.001, 0.004])))
            for _ in range(choose.randrange(12)):
                await asyncio.sleep(0)
            if choose.random() < 0.5:
                asyncio.get_running_loop().call_later(choose.random() * 0.01, task.cancel)
            if number % 100 == 50:
                reload = asyncio.create_task(force_reload())
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
