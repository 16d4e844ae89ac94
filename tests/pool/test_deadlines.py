"""Deadlines, cancellations and closing: clients that wait are let go in time, and nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from pgmonkey import (
    CheckoutTimeout,
    ConnectError,
    DatabaseRemovedError,
    HandleClosedError,
    Registry,
    TooManyWaiting,
)
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.process import interrupted_after
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import GRACE, Client, Make, takes


def test_the_error_of_a_busy_pool_says_what_there_is_and_who_holds_it(make: Make) -> None:
    """Database, seconds, the pool's numbers, the longest holders with their places, and a hint."""
    client = make(pool={"min_size": 1, "max_size": 2})
    with client.holding(2):
        waiting = client.ask_soon(timeout=20)
        eventually(lambda: client.handle.status().waiting == 1, 5, "one waits")
        with takes(0.2, 0.2), pytest.raises(CheckoutTimeout) as caught:
            client.ask(timeout=0.2)
        assert client.handle.status().waiting == 1, "a client that gave up waits no longer"
    assert waiting.result(20) == 1

    text = str(caught.value)
    assert text.startswith("orders: no connection within 0.2")
    assert "(open 2, in use 2, waiting 1, max_size 2)" in text
    assert text.count("\n  held for ") == 2
    assert text.count("side.py:") == 2
    assert "\n  hint: raise max_size" in text
    assert caught.value.database == "orders"
    assert caught.value.reason is None


def test_the_error_of_a_pool_that_cannot_grow_has_holder_and_reason(
    make: Make, proxy: ChaosProxy
) -> None:
    """One connection is held, another cannot be made: both stand in one error."""
    client = make(through=proxy)
    with client.holding(1):
        proxy.set("refuse")
        with pytest.raises(CheckoutTimeout) as caught:
            client.ask(timeout=0.3)
    assert "\n  held for " in str(caught.value)
    assert "\n  the last connect failed: " in str(caught.value)
    assert "[refused]" in str(caught.value)
    assert "whether the server is running" in str(caught.value)
    assert caught.value.reason == "refused"


def test_a_client_that_gave_up_takes_no_place_among_those_who_may_wait(make: Make) -> None:
    """`max_waiting` counts the clients that wait, and no others."""
    client = make(pool={"min_size": 1, "max_size": 1, "max_waiting": 1})
    with client.holding(1):
        for _ in range(3):
            with pytest.raises(CheckoutTimeout):
                client.ask(timeout=0.05)
        waiting = client.ask_soon(timeout=20)
        eventually(lambda: client.handle.status().waiting == 1, 5, "one waits")
        with pytest.raises(TooManyWaiting):
            client.ask(timeout=5)
    assert waiting.result(20) == 1


def test_closing_the_registry_wakes_clients_that_wait(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """Clients in the queue hear at once that it is closed, and not at the end of their time."""
    one = {"min_size": 1, "max_size": 1}
    registry_dir.declare(
        "orders", database, connection_type, pool_settings=one, async_pool_settings=one
    )
    registry = Registry(registry_dir, metrics=None)
    client = Client(registry)
    with client.holding(1):
        waiting = [client.ask_soon(timeout=50) for _ in range(3)]
        eventually(lambda: client.handle.status().waiting == 3, 5, "three wait")
        with takes(2):
            registry.close()
            for answer in waiting:
                assert isinstance(answer.exception(20), HandleClosedError)
    client.close()


def test_clients_that_wait_open_a_closed_handle_again(make: Make) -> None:
    """`close` is no end: clients in the queue go on with a new connection, within their time."""
    client = make(pool={"min_size": 1, "max_size": 1})
    with client.holding(1):
        waiting = client.ask_soon(timeout=50)
        eventually(lambda: client.handle.status().waiting == 1, 5, "one waits")
        with takes(3):
            client.shut()
            assert waiting.result(20) == 1


def test_closing_wakes_clients_that_wait_for_the_first_connection(
    make: Make, proxy: ChaosProxy
) -> None:
    """Also while a connect hangs in a silent network."""
    proxy.set("blackhole")
    client = make(through=proxy, connection={"connect_timeout": 4})
    waiting = client.ask_soon(timeout=6)
    eventually(lambda: proxy.connections == 1, 5, "it is connecting")
    client.shut()

    with takes(6):
        assert isinstance(waiting.exception(20), CheckoutTimeout | ConnectError)
    proxy.set("pass")


@pytest.mark.parametrize("end", ["closed", "removed"])
def test_clients_hear_at_once_that_there_will_be_no_first_connection(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    connection_type: str,
    end: str,
) -> None:
    """The registry is closed, or the file removed, while the connect hangs in a silent network."""
    proxy.set("blackhole")
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={"host": proxy.host, "port": proxy.port, "connect_timeout": 60},
    )
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        client = Client(registry)
        waiting = client.ask_soon(timeout=90)
        eventually(lambda: proxy.connections == 1, 5, "it is connecting")
        if end == "closed":
            registry.close()
        else:
            registry_dir.remove("orders")
            assert registry.reload().removed == ("orders",)
        error = waiting.exception(30)
        assert type(error) is (HandleClosedError if end == "closed" else DatabaseRemovedError)
        assert client.handle.status().connect_attempts == 0, "the connect hangs still"
        proxy.set("pass")
        client.shut()  # of what is gone for good: it stays so
        with pytest.raises(type(error)):
            client.ask(timeout=10)
        client.close()


Prepare = Callable[[Any, ChaosProxy], Any]


async def nothing_is_open(handle: Any, proxy: ChaosProxy) -> None:
    proxy.set("blackhole")


async def everything_is_out(handle: Any, proxy: ChaosProxy) -> Any:
    borrowed = handle.connection()
    await borrowed.__aenter__()
    return borrowed


async def the_sign_of_life_does_not_come(handle: Any, proxy: ChaosProxy) -> None:
    async with handle:
        pass
    proxy.set("blackhole")


@pytest.mark.parametrize(
    "situation", [nothing_is_open, everything_is_out, the_sign_of_life_does_not_come]
)
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_cancellation_is_honoured_at_once(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    situation: Prepare,
    how: str,
) -> None:
    """`asyncio.timeout` and `cancel` end a checkout in the moment, whatever it waits for."""
    registry_dir.declare(
        "orders",
        database,
        "async_pool",
        connection={"host": proxy.host, "port": proxy.port, "connect_timeout": 20},
        async_pool_settings={"min_size": 1, "max_size": 1},
        check_on_checkout=True,
    )
    async with Registry(registry_dir, metrics=None) as registry:
        handle: Any = registry.get("orders")
        borrowed = await situation(handle, proxy)
        began = time.monotonic()
        if how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), handle.connection(timeout=30):
                    raise AssertionError("there is none to have")
        else:
            task = asyncio.create_task(handle.connection(timeout=30).__aenter__())
            await aeventually(lambda: handle.status().waiting == 1 or proxy.connections > 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert time.monotonic() - began < 1.5
        assert handle.status().waiting == 0
        if borrowed is not None:
            await borrowed.__aexit__(None, None, None)
        proxy.set("pass")
        async with handle.connection(timeout=20) as connection:
            await connection.execute("SELECT 1")


async def test_tasks_that_are_cancelled_twice_lose_no_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The second cancellation meets the clean-up of the first: every slot is still there."""
    size = 3
    registry_dir.declare(
        "events", database, "async_pool", async_pool_settings={"min_size": 1, "max_size": size}
    )
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("events")

        async def work() -> None:
            async with handle.connection(timeout=10) as connection:
                await connection.execute("SELECT 1")

        for number in range(400):
            tasks = [asyncio.create_task(work()) for _ in range(size * 2)]
            for _ in range(number % 40):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for _ in range(number % 3):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await aeventually(lambda: handle.status().used == handle.status().waiting == 0, 20)
        together = asyncio.Barrier(size)

        async def hold() -> None:
            async with handle.connection(timeout=20):
                await asyncio.wait_for(together.wait(), 20)

        await asyncio.gather(*(hold() for _ in range(size)))


@pytest.mark.parametrize("stack", [True, False])
def test_a_leak_is_reported_with_the_stack_of_its_borrower_if_the_file_asks_for_it(
    make: Make, events: CapturedEvents, stack: bool
) -> None:
    """The calls that led to the checkout, innermost first, in the event and in the status."""
    client = make(leak_detection="50ms", leak_stack=stack)
    with client.holding(1):
        leaked = events.wait("checkout.leaked")
        status = client.handle.status()
    events.wait("checkout.returned_late")

    assert status.leaks == 1
    assert status.checkouts[0].seconds >= 0.05
    assert status.checkouts[0].holder.startswith("task " if client.is_async else "thread ")
    assert status.checkouts[0].place == leaked["place"]
    if stack:
        calls = leaked["stack"].splitlines()  # a text, which structlog's console can write
        assert tuple(calls) == status.checkouts[0].stack
        assert calls[0] == leaked["place"]
        assert len(calls) > 3
    else:
        assert "stack" not in leaked
        assert status.checkouts[0].stack == ()


def test_the_stack_can_be_asked_for_without_a_rotation(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """Turned on in the file at night, it holds for the next checkouts; no connection is replaced."""
    registry_dir.declare("orders", database, connection_type)
    with Registry(registry_dir, metrics=None) as registry:
        client = Client(registry)
        before = client.ask("SELECT pg_backend_pid()")
        registry_dir.declare("orders", database, connection_type, leak_stack=True)
        registry.reload()

        def stack() -> object:
            with client.holding(1) as backends:
                assert backends == [before]
                return client.handle.status().checkouts[0].stack

        eventually(stack, 10, "the stack is kept")
        client.close()


def test_connections_do_not_all_end_at_the_same_age(make: Make) -> None:
    """`max_lifetime` is shortened by up to a twentieth, at random."""
    client = make(pool={"min_size": 1, "max_size": 1, "max_lifetime": 1000})
    ages = []
    for _ in range(6):
        began = time.monotonic()
        ages.append(client.run(lambda connection: connection.expires_at) - began)
        client.shut()
    assert all(950 <= age <= 1000 + GRACE for age in ages)
    assert max(ages) - min(ages) > 1, "six of a hundred thousand in one fiftieth"


def test_an_interrupt_while_the_server_is_asked_leaves_nobody_waiting(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """Ctrl-C during a sign of life on a silent network: the connection goes, the slot stays."""
    registry_dir.declare(
        "orders",
        database,
        connection={"host": proxy.host, "port": proxy.port},
        pool_settings={"min_size": 1, "max_size": 1},
        check_on_checkout=True,
    )
    with Registry(registry_dir, metrics=None) as registry:
        handle: Any = registry.get("orders")
        with handle:
            pass
        proxy.set("blackhole")
        with (
            pytest.raises(KeyboardInterrupt),
            interrupted_after(0.1, KeyboardInterrupt),
            handle.connection(timeout=30),
        ):
            raise AssertionError("there is none to have")
        assert handle.status().waiting == 0
        proxy.set("pass")
        with handle.connection(timeout=20) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
