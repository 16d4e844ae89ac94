"""Rotations keep a pool warm: a new connection is made before an old one is given up, and none is left over."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest

from pgmonkey import ConnectError, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import aeventually, eventually
from tests.kit.process import interrupted_after
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client
from tests.registry.load import Peak, table_of_commits, working
from tests.registry.steps import acting

SIZE = 4


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    number: int,
    **connection: Any,
) -> None:
    sizes = {"min_size": 1, "max_size": SIZE}
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={"application_name": f"app-{number}", **connection},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )


def names(database: TemporaryDatabase) -> Counter[str]:
    return Counter(one["application_name"] for one in database.backends())


def connections(registry: Registry) -> int:
    status = registry.get("orders").status()
    return status.idle + status.used + status.retired


@pytest.mark.usefixtures("each_loop")
@pytest.mark.parametrize("connection_type", SIDES)
def test_a_rotation_under_load_never_leaves_fewer_connections(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """From the first replacement to the last, all clients have as many connections as before."""
    table_of_commits(database)
    declare(registry_dir, database, connection_type, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        working(registry, connection_type, 0.01) as load,
    ):
        eventually(lambda: len(database.backends()) == SIZE, 20, "the pool has grown")
        with Peak(database) as peak:
            declare(registry_dir, database, connection_type, 1)
            assert registry.reload().applied == ("orders",)
            # For a moment one may be neither closed nor in its place.
            eventually(lambda: connections(registry) >= SIZE, 5, "the status shows them")
            load.goes_on()
        eventually(lambda: names(database) == {"app-1": SIZE}, 20, "all are replaced")

    assert SIZE <= peak.lowest <= peak.highest <= SIZE + 1


@pytest.mark.parametrize("connection_type", SIDES)
def test_a_pool_that_had_grown_has_as_many_connections_after_a_reload(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """Nobody borrows: when `reload` returns, each of three idle connections is replaced."""
    declare(registry_dir, database, connection_type, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        client = Client(registry)
        client.fill(3)
        with Peak(database) as peak:
            declare(registry_dir, database, connection_type, 1)
            assert registry.reload().applied == ("orders",)
        assert names(database) == {"app-1": 3}
        # The worker of psycopg_pool still adds the last of them to the pool.
        eventually(lambda: client.handle.status().idle == 3, 5, "three connections are idle")
        assert 3 <= peak.lowest <= peak.highest <= SIZE + 1
        client.close()


# The steps, taken by hand.


@contextmanager
def opened(registry: Registry) -> Iterator[Client]:
    """Give a client with one connection."""
    client = Client(registry)
    try:
        assert client.ask() == 1
        yield client
    finally:
        client.close()


def one_is_left(database: TemporaryDatabase) -> None:
    eventually(lambda: len(database.backends()) == 1, 5, "the other one is closed")


@pytest.mark.parametrize("connection_type", SIDES)
def test_what_was_prepared_is_closed_when_the_reload_is_called_off(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """A version that is discarded leaves the pool with its old connection, and no other one."""
    declare(registry_dir, database, connection_type, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        opened(registry) as client,
    ):
        handle = client.handle
        before = client.ask("SELECT pg_backend_pid()")
        prepared = handle.prepare(handle.version.forced(handle.version.config))
        assert len(database.backends()) == 2
        handle.discard(prepared)
        one_is_left(database)
        assert client.ask("SELECT pg_backend_pid()") == before
        assert registry.wait_drained(5)


@pytest.mark.parametrize("connection_type", SIDES)
def test_what_is_in_force_already_is_not_connected_with_again(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """To prepare the version that runs, or one that needs no new connections, makes none."""
    declare(registry_dir, database, connection_type, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        opened(registry) as client,
    ):
        handle = client.handle
        attempts = handle.status().connect_attempts
        for version in (handle.version, handle.version.next(handle.version.config)):
            prepared = handle.prepare(version)
            handle.adopt(version, prepared)
            handle.rotate(prepared)
            assert client.ask() == 1
        assert handle.status().connect_attempts == attempts
        assert len(database.backends()) == 1


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("connection_type", SIDES)
def test_what_was_prepared_before_the_handle_was_closed_is_closed(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    goes_on: bool,
) -> None:
    """Nothing is left at the server when a handle closes between the probe and the rotation."""
    declare(registry_dir, database, connection_type, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        opened(registry) as client,
    ):
        handle = client.handle
        version = handle.version.forced(handle.version.config)
        prepared = handle.prepare(version)
        client.shut()
        if goes_on:
            handle.adopt(version, prepared)
            handle.rotate(prepared)
        else:
            handle.discard(prepared)
        eventually(lambda: database.backends() == [], 5, "no connection is left over")
        assert client.ask() == 1
        one_is_left(database)


@pytest.mark.parametrize("connection_type", SIDES)
def test_a_reload_that_is_interrupted_while_it_connects_leaves_no_connection(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    connection_type: str,
) -> None:
    """Ctrl-C while the new connection is waited for: once the network is back it is closed."""
    declare(registry_dir, database, connection_type, 1, port=proxy.port)
    with (
        Registry(registry_dir, metrics=None, watch=False, max_connections=3) as registry,
        opened(registry) as client,
    ):
        version = client.handle.version
        proxy.set("blackhole")
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt), interrupted_after(0.2, KeyboardInterrupt):
                client.handle.prepare(version.forced(version.config))
        proxy.set("pass")
        eventually(lambda: names(database) == {"app-1": 1}, 10, "what was begun is over")
        with client.holding(3) as backends:
            assert len(set(backends)) == 3, "every place is free"


@pytest.mark.parametrize("connection_type", SIDES)
def test_what_one_handle_prepared_is_closed_when_another_one_cannot(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """A reload that is refused at the second handle of a database leaves nothing of the first."""
    declare(registry_dir, database, connection_type, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        opened(registry) as client,
    ):
        other = registry.get("orders", "normal")
        other.open()

        def refuse() -> None:
            raise ConnectError("refused", database="orders", reason="refused")

        declare(registry_dir, database, connection_type, 1)
        with acting(other, "prepared", refuse):
            assert set(registry.reload().rejected) == {"orders"}
        eventually(lambda: names(database) == {"app-0": 2}, 5, "as many as before")
        assert client.ask("SELECT current_setting('application_name')") == "app-0"


async def test_a_loop_that_is_closed_between_the_steps_keeps_nothing(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The event loop of a pool ends after it has connected for a reload: no session stays."""
    declare(registry_dir, database, "async_pool", 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        used, end = threading.Event(), threading.Event()

        async def use() -> None:
            async with handle as connection:
                await connection.execute("SELECT 1")
            used.set()
            await asyncio.to_thread(end.wait)

        thread = threading.Thread(target=lambda: asyncio.run(use()))
        thread.start()
        assert used.wait(10)
        version = handle.version.forced(handle.version.config)
        prepared = handle.prepare(version)
        assert len(database.backends()) == 2
        end.set()
        thread.join()
        handle.adopt(version, prepared)
        handle.rotate(prepared)
        handle.patrol(0.0)
        eventually(lambda: database.backends() == [], 5, "no connection is left over")


# A rotation in which everything ends.


@pytest.mark.parametrize("replaced", [1, 2, 3, SIZE])
@pytest.mark.parametrize("connection_type", SIDES)
def test_a_registry_that_is_closed_in_the_middle_of_a_rotation_leaves_nothing(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    replaced: int,
) -> None:
    """However many connections are replaced by then: none is left, old or new."""
    declare(registry_dir, database, connection_type, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        client = Client(registry)
        client.fill(SIZE)
        declare(registry_dir, database, connection_type, 1)
        reloading = threading.Thread(target=registry.reload)
        reloading.start()
        eventually(lambda: names(database)["app-1"] >= replaced, 10, "it has come so far")
        registry.close()
        reloading.join()
        eventually(lambda: database.backends() == [], 5, "no connection is left over")
        client.close()


@pytest.mark.usefixtures("each_loop")
@pytest.mark.parametrize("replaced", [1, 2, 3, SIZE])
def test_a_loop_that_ends_in_the_middle_of_a_rotation_leaves_nothing(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, replaced: int
) -> None:
    """The same when the event loop ends right after the registry was closed in it."""
    declare(registry_dir, database, "async_pool", 0)

    async def main() -> None:
        async with Registry(registry_dir, metrics=None, watch=False) as registry:
            handle = registry.get("orders")
            async with AsyncExitStack() as stack:
                for _ in range(SIZE):
                    await stack.enter_async_context(handle.connection())
            declare(registry_dir, database, "async_pool", 1)
            reloading = asyncio.create_task(registry.areload())
            await aeventually(
                lambda: names(database)["app-1"] >= replaced, 10, "it has come so far"
            )
        reloading.cancel()

    asyncio.run(main())
    eventually(lambda: database.backends() == [], 5, "no connection is left over")
