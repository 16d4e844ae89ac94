"""`reset_on_return: true`: the session is as new for each borrower, and its statements stay prepared."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import psycopg
import pytest

from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.pool.side import Client, Make, takes, works

#: Blocks, of which psycopg prepares the statements in the sixth.
MANY = 300
AUTOCOMMIT = ("true", "false")

#: What a block may leave in its session: how, and what shows it.
LEFT = {
    "a setting": ("SET work_mem = '9MB'", "SELECT current_setting('work_mem') = '9MB'"),
    "a setting of the session's characteristics": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SELECT current_setting('transaction_read_only') = 'on'",
    ),
    "a setting of an extension": (
        "SELECT set_config('app.tenant', 'seven', false)",
        "SELECT coalesce(current_setting('app.tenant', true), '') <> ''",
    ),
    "a role": ("SET ROLE pg_monitor", "SELECT current_user = 'pg_monitor'"),
    "a temporary table": (
        "CREATE TEMPORARY TABLE mine (id int)",
        "SELECT to_regclass('pg_temp.mine') IS NOT NULL",
    ),
    "an advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "a channel": ("LISTEN news", "SELECT count(*) > 0 FROM pg_listening_channels()"),
    "a cursor": (
        "DECLARE mine CURSOR WITH HOLD FOR SELECT generate_series(1, 3)",
        "SELECT count(*) > 0 FROM pg_cursors WHERE name = 'mine'",
    ),
}


@pytest.fixture(params=AUTOCOMMIT, ids=["autocommit", "transactions"])
def client(request: pytest.FixtureRequest, make: Make, database: TemporaryDatabase) -> Client:
    """A client whose pool has one connection, which is reset when it comes back."""
    database.execute(f"GRANT pg_monitor TO {database.user}")
    with database.connect() as owner:
        owner.execute("CREATE SEQUENCE numbers")
    return make(
        reset_on_return=True,
        pool={"min_size": 1, "max_size": 1},
        connection={"autocommit": request.param},
    )


async def each(connection: Any, *statements: str) -> list[Any]:
    """Run statements and return the first column of each; for both sides."""
    found = []
    for statement in statements:
        cursor = connection.execute(statement)
        if inspect.isawaitable(cursor):
            cursor = await cursor
        row = cursor.fetchone() if cursor.description else None
        if inspect.isawaitable(row):
            row = await row
        found.append(row[0] if row else None)
    return found


def run(client: Client, *statements: str) -> list[Any]:
    """Run statements in one block."""
    if client.is_async:
        return list(client.run(lambda connection: each(connection, *statements)))
    return list(client.run(lambda connection: asyncio.run(each(connection, *statements))))


def test_no_block_fails_because_of_a_reset_however_many_there_are(client: Client) -> None:
    """The driver and the server agree on what is prepared: 300 blocks, no error, one connection."""
    backend = client.ask("SELECT pg_backend_pid()")
    for number in range(MANY):
        assert run(client, "SELECT 1", "SELECT 2", f"SELECT {number % 7} + 3")[:2] == [1, 2]

    prepared = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '_pg3_%'"
    assert client.ask(prepared) >= 2, "they stay prepared"
    assert client.ask("SELECT pg_backend_pid()") == backend
    assert client.errors() == {}


def test_blocks_that_use_the_temporary_table_of_each_go_on(client: Client) -> None:
    """A statement that is prepared works with the table that the next block makes."""
    for number in range(MANY // 3):
        create = "CREATE TEMPORARY TABLE mine (id int)"
        insert = "INSERT INTO mine VALUES (7) RETURNING id"
        assert run(client, create, insert, "SELECT count(*) FROM mine") == [None, 7, 1], number


@pytest.mark.parametrize("left", LEFT)
def test_what_a_block_leaves_in_its_session_is_gone(client: Client, left: str) -> None:
    """The next borrower finds nothing of it, on the same connection unless that has listened."""
    statement, shows = LEFT[left]
    backend, *_, shown = run(client, "SELECT pg_backend_pid()", statement, "COMMIT", shows)
    assert shown
    next_backend, shown = run(client, "SELECT pg_backend_pid()", shows)
    assert not shown
    assert next_backend == backend or left == "a channel"


def test_what_the_file_sets_stays(make: Make, database: TemporaryDatabase) -> None:
    """Settings and the role that the file asks for are there for every borrower."""
    database.execute(f"GRANT pg_monitor TO {database.user}")
    client = make(
        reset_on_return=True,
        pool={"min_size": 1, "max_size": 1},
        connection={"options": "-c work_mem=5MB -c role=pg_monitor"},
    )
    for _ in range(2):
        shows = ("SELECT current_setting('work_mem')", "SELECT current_user")
        assert run(client, *shows) == ["5MB", "pg_monitor"]
        run(client, "SET work_mem = '9MB'", "RESET ROLE", "SET ROLE NONE")


def test_the_state_of_a_sequence_is_gone(client: Client) -> None:
    """`lastval` of a block does not tell what the block before has drawn."""
    assert client.ask("SELECT nextval('numbers')") == 1
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        client.ask("SELECT lastval()")


def test_notifications_of_one_block_come_to_no_other(
    client: Client, database: TemporaryDatabase
) -> None:
    """Those that arrived before the reset are dropped."""

    def listen(connection: Any) -> Any:
        async def listening() -> None:
            await each(connection, "LISTEN news")
            if not connection.autocommit:
                committed = connection.commit()
                if inspect.isawaitable(committed):
                    await committed
            database.execute("NOTIFY news, 'stale'")

        return listening() if client.is_async else asyncio.run(listening())

    def received(connection: Any) -> Any:
        async def receiving() -> list[str]:
            return [note.payload async for note in connection.notifies(timeout=0.2)]

        if client.is_async:
            return receiving()
        return [note.payload for note in connection.notifies(timeout=0.2)]

    client.run(listen)
    assert client.run(received) == []


def test_a_reset_is_one_round_trip(
    make: Make, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """Counted on the wire, in blocks with and without a statement, prepared or not."""
    client = make(
        through=proxy,
        reset_on_return=True,
        pool={"min_size": 1, "max_size": 1},
        connection={"autocommit": "true", "prepare_threshold": "0"},
    )
    client.ask("SELECT 7")
    for statements, trips in (((), 1), (("SELECT 7",), 2)):
        before = proxy.round_trips
        for _ in range(MANY // 3):
            run(client, *statements)
        assert proxy.round_trips - before == MANY // 3 * trips


def test_a_session_that_cannot_be_reset_is_replaced(
    make: Make, database: TemporaryDatabase
) -> None:
    """A block that has nothing to commit ends well; the next one has another connection."""
    client = make(
        reset_on_return=True,
        pool={"min_size": 1, "max_size": 1},
        connection={"autocommit": "true"},
    )
    backend = client.ask("SELECT pg_backend_pid()")
    client.run(lambda _connection: database.terminate_backends())

    assert client.ask("SELECT pg_backend_pid()") != backend
    assert client.errors() == {}


def test_a_silent_network_holds_no_block_at_its_end_for_ever(make: Make, proxy: ChaosProxy) -> None:
    """The reset is given up after five seconds, and its connection closed."""
    client = make(
        through=proxy,
        reset_on_return=True,
        pool={"min_size": 1, "max_size": 1},
        connection={"autocommit": "true", "connect_timeout": 2},
    )
    client.ask()
    with takes(5):
        client.run(lambda _connection: proxy.set("lost"))
    proxy.set("pass")
    eventually(lambda: works(client), 15)
