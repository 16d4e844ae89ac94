"""A connection whose prepared statements fit the server no more is handed out no more."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from tests.kit.database import TemporaryDatabase
from tests.pool.side import Client, Make, do, wait

TYPES = ("pool", "async_pool", "normal", "async")
BLOCKS = 100

Body = Callable[[Any], Coroutine[Any, Any, Any]]


@pytest.fixture(params=TYPES)
def connection_type(request: pytest.FixtureRequest) -> str:
    """Each of the four types."""
    return str(request.param)


async def _selects(connection: Any) -> Any:
    cursor = await wait(connection.execute("SELECT * FROM one"))
    return await wait(cursor.fetchall())


async def _wraps(connection: Any) -> Any:
    try:
        return await _selects(connection)
    except psycopg.Error as error:
        raise LookupError("no rows") from error


async def _groups(connection: Any) -> Any:
    try:
        return await _selects(connection)
    except psycopg.Error as error:
        raise ExceptionGroup("several", [ValueError(), error]) from None


async def _swallows(connection: Any) -> Any:
    with suppress(psycopg.Error):
        return await _selects(connection)
    return None


async def _selects_with_another_cursor(connection: Any) -> Any:
    classes = (psycopg.RawCursor, psycopg.AsyncRawCursor)
    cursor = classes[isinstance(connection, psycopg.AsyncConnection)](connection)
    await wait(cursor.execute("SELECT * FROM one"))
    return await wait(cursor.fetchall())


#: What a block does with the error.
WAYS: dict[str, Body] = {
    "raises it": _selects,
    "wraps it": _wraps,
    "groups it": _groups,
    "swallows it": _swallows,
    "raises it of another cursor class": _selects_with_another_cursor,
}


def prepared(make: Make, way: Body, **settings: Any) -> Client:
    """Return a client whose connection has prepared the statement."""
    client = make(pool={"max_size": 1}, connection={"autocommit": "true"}, **settings)
    client.run(lambda connection: connection.execute("CREATE TABLE one (id int)"))
    for _ in range(7):
        do(client, way)
    return client


def errors(client: Client, way: Body, blocks: int) -> int:
    """Return how many of that many blocks got no rows."""
    found = 0
    for _ in range(blocks):
        try:
            found += do(client, way) is None
        except Exception:
            found += 1
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_migration_costs_one_error_per_connection(
    make: Make, database: TemporaryDatabase, way: str
) -> None:
    """`cached plan must not change result type`: once, not until `max_lifetime`."""
    client = prepared(make, WAYS[way])

    for number in range(3):
        database.execute(f"ALTER TABLE one ADD COLUMN more_{number} int")
        assert errors(client, WAYS[way], BLOCKS) == 1
    assert client.handle.status().evicted["unclean"] == 3


@pytest.mark.parametrize("way", WAYS)
def test_statements_that_the_server_forgot_cost_one_error_per_connection(
    make: Make, way: str
) -> None:
    """`prepared statement "_pg3_0" does not exist`: the same."""
    client = prepared(make, WAYS[way])
    # psycopg notices a plain DEALLOCATE ALL.
    client.run(
        lambda connection: connection.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
    )

    assert errors(client, WAYS[way], BLOCKS) == 1


def test_another_feature_that_is_not_supported_costs_no_connection(make: Make) -> None:
    """0A000 says many things; the connection stays where a statement asks for what there is not."""
    client = make(pool={"max_size": 1}, connection={"autocommit": "true"})
    backend = client.ask("SELECT pg_backend_pid()")

    for _ in range(10):
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            client.ask("SELECT * FROM elsewhere.public.one")
    assert client.ask("SELECT pg_backend_pid()") == backend
