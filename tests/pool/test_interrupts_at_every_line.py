"""An exception from a signal handler, at each line of a checkout in turn: no connection is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest

from pgmonkey import PGConnectionManager, PgmonkeyError, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.interruption import Interruption, SoftTimeLimit, in_a_thread

SIZE = 2
#: Seconds in which a client must be served. In a pool that has lost a connection it waits for ever.
PATIENCE = 3.0
#: A checkout without a fault runs at least and at most that many lines.
FEWEST_LINES = 40
MOST_LINES = 1000
LISTENING = "SELECT pg_listening_channels()"

#: A block that ends well, and one that fails.
COMMITS, FAILS = "SELECT 1", "SELECT 1/0"
#: A block that changes its connection, and one that is told to LISTEN.
CHANGES, LISTENS = "VACUUM pg_catalog.pg_am", "LISTEN here"
#: No block: the connection is borrowed and given back by hand.
BY_HAND = "SELECT 2"

#: Who owns the handle, what is raised, what the block does, and pool settings.
WAYS: dict[str, tuple[str, type[BaseException], str, dict[str, Any]]] = {
    "time limit": ("unwatched registry", SoftTimeLimit, COMMITS, {}),
    "time limit after an error": ("unwatched registry", SoftTimeLimit, FAILS, {}),
    "time limit with pings": (
        "unwatched registry",
        SoftTimeLimit,
        COMMITS,
        {"check_on_checkout": True},
    ),
    "time limit, watched": ("registry", SoftTimeLimit, COMMITS, {}),
    "time limit, manager": ("manager", SoftTimeLimit, COMMITS, {}),
    "time limit after a change": ("unwatched registry", SoftTimeLimit, CHANGES, {}),
    "time limit after a LISTEN": ("unwatched registry", SoftTimeLimit, LISTENS, {}),
    "Ctrl-C after a change": ("unwatched registry", KeyboardInterrupt, CHANGES, {}),
    "Ctrl-C": ("unwatched registry", KeyboardInterrupt, COMMITS, {}),
    "Ctrl-C after an error": ("unwatched registry", KeyboardInterrupt, FAILS, {}),
    "time limit by hand": ("unwatched registry", SoftTimeLimit, BY_HAND, {}),
    "Ctrl-C, manager": ("manager", KeyboardInterrupt, COMMITS, {}),
}


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    settings: dict[str, Any],
) -> int:
    """Declare `orders`, and return how many connections it may have."""
    if not connection_type.endswith("pool"):
        registry_dir.declare("orders", database, connection_type, **settings)
        return 1
    sizes = {"min_size": 1, "max_size": SIZE, **settings}
    registry_dir.declare(
        "orders", database, connection_type, **{f"{connection_type}_settings": sizes}
    )
    return SIZE


@contextmanager
def opened(owner: str, registry_dir: RegistryDirectory) -> Iterator[Any]:
    """Give the handle of `orders`, and close its owner."""
    if owner == "manager":
        with PGConnectionManager() as manager:
            yield manager.get_database_connection(registry_dir.file("orders"))
    else:
        with Registry(registry_dir, metrics=None, watch=owner == "registry") as registry:
            yield registry.get("orders")


@asynccontextmanager
async def opened_async(owner: str, registry_dir: RegistryDirectory) -> AsyncIterator[Any]:
    """Give the async handle of `orders`, and close its owner."""
    if owner == "manager":
        async with PGConnectionManager() as manager:
            yield await manager.get_database_connection(registry_dir.file("orders"))
    else:
        async with Registry(registry_dir, metrics=None, watch=owner == "registry") as registry:
            yield registry.get("orders")


def check_out(handle: Any, statement: str) -> None:
    if statement == BY_HAND:
        connection = handle.getconn()
        connection.execute(statement)
        handle.putconn(connection)
        return
    with handle as connection:
        if statement == CHANGES:
            connection.autocommit = True
        connection.execute(statement)


async def check_out_async(handle: Any, statement: str) -> None:
    if statement == BY_HAND:
        connection = await handle.getconn()
        await connection.execute(statement)
        await handle.putconn(connection)
        return
    async with handle as connection:
        if statement == CHANGES:
            await connection.set_autocommit(True)
        await connection.execute(statement)


def fails_to_serve(handle: Any, size: int) -> str | None:
    """Hold all connections at once; return why that was not possible."""
    try:
        with ExitStack() as stack:
            for _ in range(size):
                connection = stack.enter_context(handle.connection(timeout=PATIENCE))
                if connection.autocommit or connection.execute(LISTENING).fetchone():
                    return "it is not as it was made"
    except PgmonkeyError as error:
        return f"{type(error).__name__}: {error}"
    return None


async def fails_to_serve_async(handle: Any, size: int) -> str | None:
    """Hold all connections at once; return why that was not possible."""
    try:
        async with AsyncExitStack() as stack:
            for _ in range(size):
                checkout = handle.connection(timeout=PATIENCE)
                connection = await stack.enter_async_context(checkout)
                channels = await connection.execute(LISTENING)
                if connection.autocommit or await channels.fetchone():
                    return "it is not as it was made"
    except PgmonkeyError as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("connection_type", ["pool", "normal"])
def test_an_interrupt_at_any_line_of_a_checkout_loses_no_connection(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    way: str,
) -> None:
    """Wherever it comes, the next clients get all connections at once, and close() ends all of them."""
    owner, error, body, settings = WAYS[way]
    size = declare(registry_dir, database, connection_type, settings)
    lost: list[str] = []

    def main() -> tuple[int, int, int]:
        with opened(owner, registry_dir) as handle:
            assert fails_to_serve(handle, size) is None
            for number in range(1, MOST_LINES + 1):
                interruption = Interruption(number, error, __file__)
                with suppress(error, Exception), interruption:
                    check_out(handle, body)
                if not interruption.at:
                    break  # that was the last line
                if why := fails_to_serve(handle, size):
                    lost.append(f"{interruption.at}: {why}")
                    handle.close()
            status = handle.status()
        return number, status.used, status.waiting

    number, used, waiting = in_a_thread(main)
    assert not lost, "\n".join(lost)
    assert (used, waiting) == (0, 0)
    assert FEWEST_LINES < number < MOST_LINES, "there was something to interrupt, and it was all"
    eventually(lambda: database.backends() == [], 5, "no session is left, in no transaction")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("connection_type", ["async_pool", "async"])
def test_an_interrupt_at_any_line_of_an_async_checkout_loses_no_connection(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    way: str,
) -> None:
    """The same in a task."""
    owner, error, body, settings = WAYS[way]
    size = declare(registry_dir, database, connection_type, settings)
    lost: list[str] = []

    async def interrupted(handle: Any, number: int) -> Interruption:
        interruption = Interruption(number, error, __file__)
        with suppress(error, Exception), interruption:
            await check_out_async(handle, body)
        return interruption

    async def main() -> tuple[int, int, int]:
        async with opened_async(owner, registry_dir) as handle:
            assert await fails_to_serve_async(handle, size) is None
            for number in range(1, MOST_LINES + 1):
                # In a task of its own: Python keeps an exception whose handler was interrupted as the
                # context of all later ones of this task, and checkouts look at those.
                interruption = await asyncio.create_task(interrupted(handle, number))
                if not interruption.at:
                    break  # that was the last line
                if why := await fails_to_serve_async(handle, size):
                    lost.append(f"{interruption.at}: {why}")
                    await handle.close()
            status = handle.status()
        return number, status.used, status.waiting

    number, used, waiting = in_a_thread(lambda: asyncio.run(main()))
    assert not lost, "\n".join(lost)
    assert (used, waiting) == (0, 0)
    assert FEWEST_LINES < number < MOST_LINES, "there was something to interrupt, and it was all"
    eventually(lambda: database.backends() == [], 5, "no session is left, in no transaction")
