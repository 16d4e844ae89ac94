"""Connections that are borrowed without a block: `getconn`, `putconn`, and long holders."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from typing import Any

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, NestedCheckoutError, Registry
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.process import in_a_child
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import Client, Make

ONE = {"min_size": 1, "max_size": 1}
#: The function that borrows: of the client in `side.py`.
BORROWER = " in getconn"


@pytest.fixture
def rows(database: TemporaryDatabase) -> Callable[[], list[int]]:
    """A table `rows (id int)`; call it for what a second connection sees in it."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    return lambda: [one for (one,) in database.execute("SELECT id FROM public.rows ORDER BY id")]


def insert(client: Client, connection: Any, number: int) -> None:
    client.on(lambda: connection.execute("INSERT INTO rows VALUES (%s)", [number]))


def pid(connection: Any) -> int:
    return int(connection.info.backend_pid)


# Borrowing and giving back


def test_what_is_not_committed_is_rolled_back(make: Make, rows: Callable[[], list[int]]) -> None:
    """A commit is the borrower's; the connection itself is used again."""
    client = make(pool=ONE)
    connection = client.getconn()
    insert(client, connection, 1)
    client.on(connection.commit)
    insert(client, connection, 2)
    backend = pid(connection)
    client.putconn(connection)
    assert rows() == [1]
    assert client.ask("SELECT pg_backend_pid()") == backend


def test_it_is_psycopgs_own_connection(make: Make) -> None:
    """Not a wrapper: adapters, subclasses and `isinstance` work."""
    client = make()
    connection = client.getconn()
    kind = psycopg.AsyncConnection if client.is_async else psycopg.Connection
    assert isinstance(connection, kind)
    assert not connection.closed
    client.putconn(connection)


def test_a_borrower_by_hand_shows_like_every_other(make: Make) -> None:
    """In the numbers, in the status with its place, and in the error of a client that waits."""
    client = make(pool=ONE)
    connection = client.getconn()
    status = client.handle.status()
    assert (status.idle, status.used, status.retired) == (0, 1, 0)
    (shown,) = status.checkouts
    assert shown.place.endswith(BORROWER)
    with pytest.raises(CheckoutTimeout) as caught:
        client.ask(timeout=0.1)
    assert f"by {shown.holder}, borrowed at {shown.place}" in str(caught.value)
    client.putconn(connection)
    assert client.handle.status().checkouts == ()
    assert client.handle.status().requests == 2


def test_its_timeout_is_its_own(make: Make) -> None:
    """As in `connection(timeout)`; a client by hand waits in the same queue."""
    client = make(pool=ONE)
    with client.holding(1), pytest.raises(CheckoutTimeout, match=r"within 0\.\d\d s"):
        client.getconn(timeout=0.1)
    client.putconn(client.getconn())


def test_one_that_is_held_too_long_is_a_leak(make: Make, events: CapturedEvents) -> None:
    """It is reported once with its place, and when it comes back."""
    client = make(leak_detection="50ms")
    connection = client.getconn()
    assert events.wait("checkout.leaked")["place"].endswith(BORROWER)
    client.putconn(connection)
    assert events.wait("checkout.returned_late")["place"].endswith(BORROWER)
    assert client.handle.status().leaks == 1


def test_its_stack_begins_with_its_borrower(make: Make) -> None:
    """With `leak_stack`, as that of a block."""
    client = make(leak_stack=True)
    connection = client.getconn()
    (shown,) = client.handle.status().checkouts
    assert shown.stack[0] == shown.place
    client.putconn(connection)


def test_a_change_of_its_borrower_is_taken_back(make: Make) -> None:
    """The next one gets a clean connection, as after a block."""
    client = make(pool=ONE)
    connection = client.getconn()
    client.on(lambda: connection.set_autocommit(True))
    client.putconn(connection)
    assert client.run(lambda connection: connection.autocommit) is False


def test_one_that_is_of_no_use_any_more_is_replaced(
    make: Make, database: TemporaryDatabase
) -> None:
    """Giving it back raises nothing, and the slot is free."""
    client = make(pool=ONE)
    for fault in ("the server ends it", "closed", "a pipeline is open"):
        connection = client.getconn()
        client.on(lambda connection=connection: connection.execute("SELECT 1"))
        if fault == "closed":
            client.on(connection.close)
        elif fault == "a pipeline is open":
            pipeline = connection.pipeline()
            client.on(pipeline.__aenter__ if client.is_async else pipeline.__enter__)
        else:
            database.terminate_backends()
        client.putconn(connection)
        assert connection.closed, fault
        assert client.ask() == 1, fault
        assert client.handle.status().used == 0, fault


def test_a_single_connection_that_is_out_by_hand_is_not_waited_for_by_its_holder(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A block of the same thread would wait for itself; another thread takes its turn."""
    registry_dir.declare("orders", database, "normal")
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        connection = handle.getconn()
        with pytest.raises(NestedCheckoutError, match="test_by_hand"), handle:
            pass
        waiting = threading.Thread(target=lambda: handle.putconn(handle.getconn()))
        waiting.start()
        eventually(lambda: handle.status().waiting == 1, 5, "it waits")
        handle.putconn(connection)
        waiting.join(5)
        with handle:
            pass


# Long holders


def test_a_long_holder_learns_that_its_connection_is_of_an_older_version(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """It keeps working; given back, it is replaced, and the next one is of the newest version."""
    client = make(pool=ONE)
    connection = client.getconn()
    assert client.handle.is_retired(connection) is False
    section = "async_pool_settings" if client.is_async else "pool_settings"
    kind = client.handle.connection_type
    registry_dir.declare("orders", database, kind, description="tea", **{section: ONE})
    client.registry.reload()
    assert client.handle.is_retired(connection) is False, "no connection depends on that"
    registry_dir.declare(
        "orders", database, kind, connection={"application_name": "new"}, **{section: ONE}
    )
    client.registry.reload()
    assert client.handle.is_retired(connection) is True
    assert client.handle.status().retired == 1
    client.on(lambda: connection.execute("SELECT 1"))
    client.putconn(connection)
    connection = client.getconn()
    assert connection.info.parameter_status("application_name") == "new"
    assert client.handle.is_retired(connection) is False
    client.putconn(connection)


def test_the_connection_of_a_block_can_be_asked_about_too(make: Make) -> None:
    """And one of a handle that was closed meanwhile is retired."""
    client = make()
    assert client.run(client.handle.is_retired) is False
    connection = client.getconn()
    client.shut()
    assert client.handle.is_retired(connection) is True
    client.putconn(connection)
    assert connection.closed


def test_a_registry_that_is_closed_leaves_the_connection_until_it_comes_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, rows: Callable[[], list[int]]
) -> None:
    """As the connection of a block."""
    registry_dir.declare("orders", database)
    registry = Registry(registry_dir, metrics=None, watch=False)
    handle: Any = registry.get("orders")
    connection = handle.getconn()
    registry.close()
    connection.execute("INSERT INTO rows VALUES (1)")
    connection.commit()
    handle.putconn(connection)
    assert rows() == [1]
    assert connection.closed


# What is not borrowed


def test_what_was_given_back_is_not_taken_twice(make: Make) -> None:
    """One error says so; the connection is where it belongs."""
    client = make(pool=ONE)
    connection = client.getconn()
    client.putconn(connection)
    for refused in (client.putconn, client.handle.is_retired):
        with pytest.raises(ValueError, match="orders: .* given back before"):
            refused(connection)
    assert client.handle.status().idle == 1
    assert client.ask() == 1


def test_what_comes_from_somewhere_else_is_refused(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Another handle's, a connection of psycopg, something that is none."""
    client = make(pool=ONE)
    kind = client.handle.connection_type
    registry_dir.declare("reports", database, kind)
    client.registry.reload()
    with closing(Client(client.registry, "reports")) as other:
        connection = other.getconn()
        with pytest.raises(ValueError, match=f"orders: .*it belongs to reports, type {kind}"):
            client.putconn(connection)
        other.putconn(connection)
    for foreign in (database.connect(), None):
        with pytest.raises(ValueError, match="comes from somewhere else"):
            client.putconn(foreign)


def test_the_connection_of_a_block_is_given_back_by_its_block(make: Make) -> None:
    """The error names where the block is, and the block goes on."""
    client = make(pool=ONE)

    def put(connection: Any) -> Any:
        async def put_async() -> None:
            with pytest.raises(ValueError, match="the block that borrowed it at .*gives it back"):
                await client.handle.putconn(connection)

        if client.is_async:
            return put_async()
        with pytest.raises(ValueError, match="the block that borrowed it at .*gives it back"):
            client.handle.putconn(connection)
        return None

    with suppress(ZeroDivisionError):
        client.run(put)
    assert client.ask() == 1
    assert client.handle.status().used == 0


async def test_another_event_loop_is_told_where_to_give_it_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A connection works in its own loop only."""
    registry_dir.declare("orders", database, "async_pool")
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        connection = await handle.getconn()
        with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
            await asyncio.to_thread(lambda: asyncio.run(handle.putconn(connection)))  # type: ignore[arg-type]  # a coroutine, on an async handle
        await handle.putconn(connection)
        assert handle.status().used == 0


def test_a_loop_that_ends_takes_its_connections_with_it(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Whether or not they are given back afterwards."""
    registry_dir.declare("orders", database, "async_pool")
    with Registry(registry_dir, metrics=None) as registry:
        handle = registry.get("orders")

        async def borrow() -> Any:
            return await handle.getconn()

        connection = asyncio.run(borrow())
        eventually(lambda: not database.backends(), 5, "it is closed")
        asyncio.run(handle.putconn(connection))  # type: ignore[arg-type]  # a coroutine, on an async handle
        dropped = asyncio.run(borrow())
        del dropped
        eventually(lambda: not database.backends(), 5, "it is closed, too")
        asyncio.run(_ask(handle))


async def _ask(handle: Any) -> None:
    async with handle as connection:
        await connection.execute("SELECT 1")


# Closed


def test_one_that_is_closed_is_given_back_at_once(
    make: Make, database: TemporaryDatabase, events: CapturedEvents, rows: Callable[[], list[int]]
) -> None:
    """Also if its borrower keeps it: its slot is free, nothing of it is committed, and it is no leak."""
    client = make(pool=ONE)
    connection = client.getconn()
    insert(client, connection, 1)
    client.on(connection.close)
    assert client.handle.status().used == 0
    assert client.ask() == 1
    assert rows() == []
    assert len(database.backends()) == 1
    client.on(connection.close)
    client.putconn(connection)
    assert client.handle.status().used == 0
    assert client.handle.status().leaks == 0
    assert events.named("checkout.abandoned") == []


def test_one_that_is_closed_by_two_at_once_is_given_back_once(make: Make) -> None:
    """None of them gets an error, and the next client gets the slot."""
    client = make(pool=ONE)
    for _ in range(5):
        if client.is_async:
            client.on(partial(_close_in_two_tasks, client.getconn()))
        else:
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(_close, [client.getconn()] * 2, [threading.Barrier(2)] * 2))
        assert client.handle.status().used == 0
    assert client.ask() == 1


async def _close_in_two_tasks(connection: Any) -> None:
    await asyncio.gather(connection.close(), connection.close())


def _close(connection: Any, both: threading.Barrier) -> None:
    both.wait()
    connection.close()


def test_a_pool_of_another_library_closes_what_it_borrows(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Such as one that asks for a connection each time, and closes it: no slot is lost."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 0, "max_size": 2})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        kept = []
        for _ in range(6):
            connection: Any = registry.get("orders").getconn(timeout=5)
            connection.execute("SELECT 1")
            connection.close()
            kept.append(connection)


async def test_another_event_loop_that_closes_one_leaves_the_slot_to_its_own(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """It is given back when it is dropped, or where it belongs."""
    registry_dir.declare("orders", database, "async_pool", async_pool_settings=ONE)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        connection = await handle.getconn()
        await asyncio.to_thread(lambda: asyncio.run(connection.close()))
        await handle.putconn(connection)
        assert handle.status().used == 0
        await _ask(handle)


# Dropped


def test_one_that_is_dropped_is_closed_reported_and_replaced(
    make: Make,
    database: TemporaryDatabase,
    events: CapturedEvents,
    rows: Callable[[], list[int]],
) -> None:
    """The server rolls back what it has done, and the next client gets its slot."""
    client = make(pool=ONE)
    for number, way in enumerate(("dropped", "in a cycle"), 1):
        connection = client.getconn()
        insert(client, connection, 1)
        if way == "in a cycle":
            cycle: list[Any] = [connection]
            cycle.append(cycle)
            del cycle
        del connection
        gc.collect()
        assert client.ask() == 1, way
        assert client.handle.status().leaks == number
        eventually(lambda: len(database.backends()) == 1, 5, way)
    assert rows() == []
    assert client.handle.status().used == 0
    eventually(lambda: len(events.named("checkout.abandoned")) == 2)
    assert all(one["place"].endswith(BORROWER) for one in events.named("checkout.abandoned"))


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is collected until the end of the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_a_timeout_of_the_same_function_keeps_no_dropped_one(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The frames of an error of psycopg_pool refer to each other, and to those of the borrower."""
    registry_dir.declare("orders", database, pool_settings=ONE)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")

        def borrow() -> Any:
            connection = handle.getconn()
            with suppress(CheckoutTimeout):
                handle.getconn(timeout=0.1)
            return connection

        for _ in range(2):
            borrow()
            with handle.connection(timeout=5):
                pass


@pytest.mark.usefixtures("uncollected")
async def test_a_timeout_of_the_same_coroutine_keeps_no_dropped_one(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The same on an event loop."""
    registry_dir.declare("orders", database, "async_pool", async_pool_settings=ONE)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")

        async def borrow() -> Any:
            connection = await handle.getconn()
            with suppress(CheckoutTimeout):
                await handle.getconn(timeout=0.1)
            return connection

        for _ in range(2):
            await borrow()
            async with handle.connection(timeout=5):
                pass


def test_a_dropped_one_gives_its_place_within_the_limits_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Else a program that forgets `putconn` a few times could never connect again."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 0, "max_size": 2})
    with Registry(registry_dir, metrics=None, watch=False, max_connections=2) as registry:
        handle: Any = registry.get("orders")
        for _ in range(6):
            handle.getconn(timeout=5).execute("SELECT 1")
        connections = [handle.getconn(timeout=5) for _ in range(2)]
        for connection in connections:
            handle.putconn(connection)


#: How a borrower ends, if it does not give its connection back as it is.
ENDS: dict[str, Callable[[Any, Any], object]] = {
    "given back": lambda handle, connection: handle.putconn(connection),
    "closed and given back": lambda handle, connection: (
        connection.close(),
        handle.putconn(connection),
    ),
    "dropped": lambda handle, connection: None,
    "closed and dropped": lambda handle, connection: connection.close(),
    "in a transaction, dropped": lambda handle, connection: connection.execute("SELECT 1"),
}


def test_no_slot_is_lost_over_rotations_however_borrowers_end(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Eight threads end in every way while the configuration changes; afterwards all is there."""
    size = 4

    def declare(number: int) -> None:
        registry_dir.declare(
            "orders",
            database,
            connection={"application_name": f"app-{number}"},
            pool_settings={"min_size": 1, "max_size": size},
        )

    declare(0)
    failed: list[BaseException] = []
    with Registry(registry_dir, metrics=None, watch=False, max_connections=size + 1) as registry:
        handle: Any = registry.get("orders")

        def borrow(first: int) -> None:
            ends = list(ENDS.values())
            try:
                for number in range(5):
                    connection = handle.getconn(timeout=30)
                    assert connection.execute("SELECT 1").fetchone() == (1,)
                    handle.is_retired(connection)
                    ends[(first + number) % len(ends)](handle, connection)
                    del connection
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=borrow, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for number in range(1, 6):
            declare(number)
            registry.reload()
        for thread in threads:
            thread.join()
        assert failed == []
        connections = [handle.getconn(timeout=10) for _ in range(size)]
        assert not any(map(handle.is_retired, connections))
        for connection in connections:
            handle.putconn(connection)
        eventually(lambda: len(database.backends()) <= size, 5, "no other session is left")
        assert handle.status().used == handle.status().retired == 0


async def test_no_slot_is_lost_by_tasks_however_they_end(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The same on an event loop, where some borrowers are cancelled, too."""
    size = 4

    def declare(number: int) -> None:
        registry_dir.declare(
            "orders",
            database,
            "async_pool",
            connection={"application_name": f"app-{number}"},
            async_pool_settings={"min_size": 1, "max_size": size},
        )

    declare(0)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")

        async def borrow(first: int) -> None:
            for number in range(5):
                connection = await handle.getconn(timeout=30)
                await connection.execute("SELECT 1")
                handle.is_retired(connection)
                end = (first + number) % 5
                if end in (1, 2):
                    await connection.close()
                if end in (0, 1):
                    await handle.putconn(connection)
                if end == 3:
                    statement = asyncio.create_task(connection.execute("SELECT pg_sleep(10)"))
                    await asyncio.sleep(0)
                    statement.cancel()
                    await asyncio.wait([statement])
                    del statement
                del connection

        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(borrow(number))
            for number in range(1, 6):
                declare(number)
                await registry.areload()
        connections = [await handle.getconn(timeout=10) for _ in range(size)]
        assert not any(map(handle.is_retired, connections))
        for connection in connections:
            await handle.putconn(connection)
        await aeventually(lambda: len(database.backends()) <= size, 5, "no other session is left")
        assert handle.status().used == handle.status().retired == 0


def test_a_handle_is_not_closed_while_its_connection_is_held_by_hand(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Also if the program refers to nothing else any more."""
    registry_dir.declare("orders", database)
    registry = Registry(registry_dir, metrics=None, watch=False)
    connection: Any = registry.get("orders").getconn()
    del registry
    gc.collect()
    assert connection.execute("SELECT 1").fetchone() == (1,)
    connection.close()


EXITS = """
import asyncio
from pgmonkey import Registry

registry = Registry(argv[0], metrics=None, watch=False)

async def borrow():
    connection = await registry.get("events").getconn()
    await connection.execute("SELECT 1")
    return connection

held = [registry.get("orders").getconn(), asyncio.run(borrow())]
held[0].execute("SELECT 1")
say("borrowed")
"""


def test_a_program_ends_quietly_while_it_holds_connections(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """No warning, no traceback, and no session that stays."""
    registry_dir.declare("orders", database)
    registry_dir.declare("events", database, "async_pool")
    with Program(EXITS, registry_dir, canary=canary, options=("-X", "dev")) as program:
        assert program.code() == 0, program.text
        assert program.said == ["borrowed"]
        assert not [line for line in program.text.splitlines() if "Warning" in line]
        assert "Traceback" not in program.text


# Forks


def test_a_child_process_can_neither_give_back_nor_close_what_its_parent_holds(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, rows: Callable[[], list[int]]
) -> None:
    """It does nothing there, however often; the child borrows one of its own."""
    registry_dir.declare("orders", database, pool_settings=ONE)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        held = [handle.getconn()]
        held[0].execute("INSERT INTO rows VALUES (1)")

        def child() -> list[Any]:
            retired = handle.is_retired(held[0])
            handle.putconn(held[0])
            handle.putconn(held[0])
            held.clear()
            gc.collect()
            own = handle.getconn(timeout=5)
            answer = own.execute("SELECT 2").fetchone()
            handle.putconn(own)
            registry.close()
            return [retired, answer]

        assert in_a_child(child) == [True, (2,)]
        held[0].commit()
        assert rows() == [1]
        handle.putconn(held[0])
        assert handle.status().idle == 1
