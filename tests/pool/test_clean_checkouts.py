"""What one block changes of its connection, the next one does not get."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.numeric import IntDumper
from psycopg.types.string import StrDumper, TextLoader

from pgmonkey import PGConnectionManager
from tests.kit.database import TemporaryDatabase
from tests.pool.side import Make, do, wait

TYPES = ("pool", "async_pool", "normal", "async")
INT4 = psycopg.adapters.types["int4"].oid
TIMES = 100

Body = Callable[[Any], Coroutine[Any, Any, Any]]
#: The two sides of one class of psycopg.
CLIENT_CURSORS = (psycopg.ClientCursor, psycopg.AsyncClientCursor)


class _Named(psycopg.ServerCursor[Any]):
    """A server-side cursor of the application's own."""


class _AsyncNamed(psycopg.AsyncServerCursor[Any]):
    """The same for the other side."""


def _side(connection: Any, classes: tuple[type, type]) -> type:
    return classes[isinstance(connection, psycopg.AsyncConnection)]


async def _factories(connection: Any) -> None:
    connection.row_factory = dict_row
    connection.cursor_factory = _side(connection, CLIENT_CURSORS)
    connection.server_cursor_factory = _side(connection, (_Named, _AsyncNamed))


async def _preparing(connection: Any) -> None:
    connection.prepare_threshold = 0
    connection.prepared_max = 3


async def _adapters(connection: Any) -> None:
    connection.adapters.register_loader("int4", TextLoader)
    connection.adapters.register_dumper(int, StrDumper)


async def _types(connection: Any) -> None:
    connection.adapters.types.add(TypeInfo("of_one_block", 987654, 0))


async def _type_and_its_array(connection: Any) -> None:
    TypeInfo("of_one_block", 987654, 987655).register(connection)


#: What a block may change, each in a block of its own.
CHANGES: dict[str, Body] = {
    "autocommit": lambda connection: wait(connection.set_autocommit(True)),
    "isolation_level": lambda connection: wait(
        connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
    ),
    "read_only": lambda connection: wait(connection.set_read_only(True)),
    "deferrable": lambda connection: wait(connection.set_deferrable(True)),
    "factories": _factories,
    "preparing": _preparing,
    "adapters": _adapters,
    "types": _types,
    "a type and its array": _type_and_its_array,
}


async def settings(connection: Any) -> tuple[Any, ...]:
    """Return what the next block can see of the connection; the backend shows that it is the same."""
    adapters = connection.adapters
    return (
        connection.info.backend_pid,
        connection.autocommit,
        connection.isolation_level,
        connection.read_only,
        connection.deferrable,
        connection.prepare_threshold,
        connection.prepared_max,
        connection.row_factory,
        connection.cursor_factory,
        connection.server_cursor_factory,
        adapters.get_loader(INT4, psycopg.pq.Format.TEXT),
        adapters.get_dumper(int, psycopg.adapt.PyFormat.TEXT),
        adapters.types.get("of_one_block"),
        adapters.get_loader(987655, psycopg.pq.Format.TEXT),
    )


@pytest.fixture(params=TYPES)
def connection_type(request: pytest.FixtureRequest) -> str:
    """Each of the four types."""
    return str(request.param)


@pytest.mark.parametrize("change", CHANGES)
def test_a_setting_comes_back_after_each_block(make: Make, change: str) -> None:
    """Whatever a block sets on its connection, the next one gets it as it was made; the connection stays."""
    client = make(pool={"max_size": 1})
    made = do(client, settings)

    async def block(connection: Any) -> bool:
        await CHANGES[change](connection)
        return (await settings(connection)) != made

    for _ in range(TIMES):
        assert do(client, block), "the block itself has what it has set"
        assert do(client, settings) == made


@pytest.mark.parametrize("change", CHANGES)
def test_a_setting_comes_back_after_a_block_that_fails(make: Make, change: str) -> None:
    """The same for a block that raises, and for one whose commit fails."""
    client = make(pool={"max_size": 1})
    client.run(
        lambda connection: connection.execute(
            "CREATE TABLE one (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)"
        )
    )
    made = do(client, settings)

    async def fails(connection: Any) -> None:
        await CHANGES[change](connection)
        await wait(connection.execute("SELECT 1"))
        raise ZeroDivisionError

    async def fails_to_commit(connection: Any) -> None:
        await CHANGES[change](connection)
        await wait(connection.execute("INSERT INTO one VALUES ('1'), ('1')"))

    for body, errors in ((fails, ZeroDivisionError), (fails_to_commit, psycopg.Error)):
        with suppress(errors):
            do(client, body)
        assert do(client, settings) == made


def test_work_after_a_block_with_autocommit_is_rolled_back(
    make: Make, database: TemporaryDatabase
) -> None:
    """A VACUUM needs autocommit; the INSERT of the next block, which raises, leaves nothing."""
    client = make(pool={"max_size": 1})
    client.run(lambda connection: connection.execute("CREATE TABLE one (id int)"))

    async def vacuums(connection: Any) -> None:
        await wait(connection.set_autocommit(True))
        await wait(connection.execute("VACUUM one"))

    async def fails(connection: Any) -> None:
        await wait(connection.execute("INSERT INTO one VALUES (1)"))
        raise ZeroDivisionError

    for _ in range(TIMES):
        do(client, vacuums)
        with pytest.raises(ZeroDivisionError):
            do(client, fails)
    assert database.execute("SELECT count(*) FROM one") == [(0,)]


def test_configured_settings_come_back_not_the_defaults_of_psycopg(make: Make) -> None:
    """With autocommit and a prepare_threshold in the file, these are what each block gets."""
    client = make(pool={"max_size": 1}, connection={"autocommit": "true", "prepare_threshold": "2"})
    made = do(client, settings)
    assert (made[1], made[5]) == (True, 2)

    async def block(connection: Any) -> None:
        await wait(connection.set_autocommit(False))
        connection.prepare_threshold = None

    do(client, block)
    assert do(client, settings) == made


def test_handlers_of_a_block_are_not_called_for_the_next_one(make: Make) -> None:
    """Notices and notifications of another block reach no handler that a block has added."""
    client = make(pool={"max_size": 1})
    seen: list[Any] = []

    async def adds(connection: Any) -> int:
        connection.add_notice_handler(seen.append)
        connection.add_notify_handler(seen.append)
        return int(connection.info.backend_pid)

    async def hears(connection: Any) -> int:
        await wait(connection.execute("DO $$ BEGIN RAISE WARNING 'beware'; END $$"))
        await wait(connection.execute("LISTEN here"))
        await wait(connection.execute("NOTIFY here"))
        await wait(connection.commit())
        await wait(connection.execute("SELECT 1"))
        return int(connection.info.backend_pid)

    for _ in range(10):
        backend = do(client, adds)
        assert do(client, hears) == backend
        assert seen == []


def test_a_handler_may_be_removed_by_its_own_block(make: Make) -> None:
    """A block that cleans up after itself works as it did."""
    client = make(pool={"max_size": 1})
    made = do(client, settings)

    async def block(connection: Any) -> None:
        connection.add_notice_handler(print)
        connection.remove_notice_handler(print)
        connection.add_notify_handler(print)
        connection.remove_notify_handler(print)
        with pytest.raises(ValueError):
            connection.remove_notice_handler(print)

    do(client, block)
    assert do(client, settings) == made


def test_a_setting_of_a_connection_that_is_kept_after_its_block_is_not_handed_out(
    make: Make,
) -> None:
    """Code that changes a connection after its block takes that connection out of the pool."""
    client = make(pool={"max_size": 1})
    before = do(client, settings)

    def spoil(connection: Any) -> None:
        connection.row_factory = dict_row
        connection.adapters.register_dumper(str, IntDumper)

    client.after_return(spoil)
    after = do(client, settings)
    assert after[1:] == before[1:]
    assert after[0] != before[0]


def test_a_connection_with_changes_may_be_rotated(make: Make) -> None:
    """A reload while a block has changed its connection: the block commits, the next one is clean."""
    client = make(pool={"max_size": 1})
    made = do(client, settings)

    async def block(connection: Any) -> None:
        await wait(connection.set_isolation_level(IsolationLevel.SERIALIZABLE))
        await wait(connection.execute("CREATE TABLE kept (id int)"))
        client.registry.get("orders", force_reload=not client.is_async)
        if client.is_async:
            client.handle.request_reload()

    do(client, block)
    client.open()
    assert do(client, settings)[1:] == made[1:]
    assert client.ask("SELECT count(*) FROM kept") == 0


def test_a_handle_of_a_manager_hands_out_clean_connections(
    config: Path, connection_type: str
) -> None:
    """The API of 4.0: the same."""
    made: list[Any] = []

    async def blocks(handle: Any) -> None:
        for _ in range(3):
            async with handle as connection:
                made.append(await settings(connection))
                await CHANGES["autocommit"](connection)
                await CHANGES["factories"](connection)

    async def use_async() -> None:
        async with PGConnectionManager() as manager:
            await blocks(await manager.get_database_connection(config, connection_type))

    if connection_type.startswith("async"):
        asyncio.run(use_async())
    else:
        with PGConnectionManager() as manager:
            handle = manager.get_database_connection(config, connection_type)
            for _ in range(3):
                with handle as connection:
                    made.append(asyncio.run(settings(connection)))
                    connection.autocommit = True
                    connection.row_factory = dict_row
    assert made[0] == made[1] == made[2]
