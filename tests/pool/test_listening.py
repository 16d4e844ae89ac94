"""No connection that listens is handed out."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from psycopg import sql

from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.pool.side import Make, do, wait

TYPES = ("pool", "async_pool", "normal", "async")
TIMES = 20

#: Ways to say LISTEN, and whether they can be seen in the statement.
STATEMENTS: dict[str, Any] = {
    "LISTEN": "LISTEN here",
    "lower case": "listen here",
    "mixed case": "Listen here",
    "bytes": b"LISTEN here",
    "several": "SELECT 1; LISTEN here",
    "Composed": sql.SQL("LISTEN {}").format(sql.Identifier("here")),
    "nested Composed": sql.SQL("{} {}").format(
        sql.SQL("SELECT 1;"), sql.SQL("LISTEN {}").format(sql.Identifier("here"))
    ),
    "SQL": sql.SQL("LISTEN here"),
    "DO": "DO $$ BEGIN EXECUTE 'LISTEN here'; END $$",
}
#: Statements after which a session does not listen, with the word or without it.
NO_STATEMENTS = (
    "SELECT 'LISTEN'",
    "SELECT 1 AS listeners",
    "LISTEN here; UNLISTEN *",
    "UNLISTEN *",
)


@pytest.fixture(params=TYPES)
def connection_type(request: pytest.FixtureRequest) -> str:
    """Each of the four types."""
    return str(request.param)


async def listening(connection: Any) -> tuple[int, list[Any]]:
    """Return the backend of a connection, and the channels that it listens to."""
    cursor = await wait(connection.execute("SELECT pg_listening_channels()"))
    return connection.info.backend_pid, await wait(cursor.fetchall())


def test_a_connection_that_listens_is_closed_at_its_return(make: Make) -> None:
    """However a block says LISTEN, the next one gets a connection that does not listen."""
    client = make(pool={"max_size": 1})
    for way, statement in STATEMENTS.items():

        async def block(connection: Any, statement: Any = statement) -> int:
            await wait(connection.execute(statement))
            return int(connection.info.backend_pid)

        backend = do(client, block)
        after, channels = do(client, listening)
        assert channels == [], way
        assert after != backend, way
    assert client.handle.status().evicted["unclean"] == len(STATEMENTS)


def test_a_connection_that_does_not_listen_is_kept(make: Make) -> None:
    """The word alone costs one question, and no connection."""
    client = make(pool={"max_size": 1})
    backends: set[int] = set()
    for statement in NO_STATEMENTS:

        async def block(connection: Any, statement: str = statement) -> int:
            await wait(connection.execute(statement))
            return int(connection.info.backend_pid)

        backends |= {do(client, block) for _ in range(TIMES)}
        assert len(backends) == 1, statement


@pytest.mark.skipif(sys.version_info < (3, 14), reason="it has no template strings")
def test_a_template_string_is_looked_at_too(make: Make) -> None:
    """Its own text, and what it takes in as SQL."""
    from string import templatelib

    said = templatelib.Template("LISTEN here")
    takes_in = templatelib.Interpolation(sql.SQL("LISTEN here"), "statement", None, "q")
    client = make(pool={"max_size": 1})

    for statement in (said, templatelib.Template(takes_in)):
        client.run(lambda connection, statement=statement: connection.execute(statement))
        assert do(client, listening)[1] == []


def test_a_listen_that_is_rolled_back_costs_no_connection(make: Make) -> None:
    """It has no effect."""
    client = make(pool={"max_size": 1})

    async def block(connection: Any) -> int:
        await wait(connection.execute("LISTEN here"))
        await wait(connection.rollback())
        return int(connection.info.backend_pid)

    assert len({do(client, block) for _ in range(10)}) == 1


def test_notifications_of_one_block_are_not_delivered_to_the_next(
    make: Make, database: TemporaryDatabase
) -> None:
    """20,000 notifications for a block that has ended go nowhere."""
    client = make(pool={"max_size": 1})
    client.run(lambda connection: connection.execute("LISTEN here"))
    database.execute("SELECT pg_notify('here', n::text) FROM generate_series(1, 20000) AS n")

    async def block(connection: Any) -> list[Any]:
        await wait(connection.execute("LISTEN here"))
        await wait(connection.commit())
        notes = connection.notifies(timeout=0.1)
        if client.is_async:
            return [note async for note in notes]
        return list(notes)

    assert do(client, block) == []


def test_a_connection_that_listens_unnoticed_is_closed_when_it_is_notified(
    make: Make, database: TemporaryDatabase
) -> None:
    """A function that LISTENs cannot be seen; the first notification shows it."""
    client = make(pool={"max_size": 1})
    database.execute("CREATE SCHEMA hidden")
    database.execute(
        "CREATE FUNCTION hidden.subscribe() RETURNS void LANGUAGE plpgsql"
        " AS $$ BEGIN EXECUTE 'LIS' || 'TEN here'; END $$"
    )
    database.execute(f'GRANT USAGE ON SCHEMA hidden TO "{database.user}"')

    async def block(connection: Any) -> int:
        await wait(connection.execute("SELECT hidden.subscribe()"))
        return int(connection.info.backend_pid)

    backend = do(client, block)
    database.execute("NOTIFY here")
    client.rest()
    after, channels = do(client, listening)
    assert (after != backend, channels) == (True, [])
    assert client.handle.status().evicted["unclean"] == 1


def test_other_statements_cost_no_question(
    make: Make, connection_type: str, proxy: ChaosProxy
) -> None:
    """Only a block with the word LISTEN pays a round trip at its return."""
    client = make(through=proxy, connection={"prepare_threshold": "1000"}, pool={"max_size": 1})

    def trips(statement: str) -> int:
        before = proxy.round_trips
        client.ask(statement)
        eventually(lambda: client.handle.status().idle == 1)
        return proxy.round_trips - before

    client.ask("SELECT 1")
    assert trips("SELECT 1") == 3, "BEGIN, the statement, COMMIT"
    assert trips("SELECT 'LISTEN'") == 4
