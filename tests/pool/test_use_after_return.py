"""A connection that is used after its block: rolled back or closed before the next borrower gets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.pool.places import new_place
from tests.pool.side import Client, Make, takes

MANY = 100
EVENT = "checkout.used_after_return"


@pytest.fixture(autouse=True)
def table(database: TemporaryDatabase) -> None:
    """A table without rows."""
    with database.connect() as owner:
        owner.execute("CREATE TABLE rows (id int)")


@pytest.fixture
def client(make: Make) -> Client:
    """A client whose pool has one connection, which all its borrowers get."""
    return make(pool={"min_size": 1, "max_size": 1})


def rows(database: TemporaryDatabase) -> list[int]:
    return [number for (number,) in database.execute("SELECT id FROM rows ORDER BY id")]


def keep(connection: Any) -> list[Any]:
    return [connection]


def act(client: Client, work: Callable[[], Any]) -> Any:
    """Do something to a connection that is kept, where its loop is."""

    async def act_async() -> Any:
        return await work()

    if client.is_async:
        return asyncio.run_coroutine_threadsafe(act_async(), client.loop).result(30)
    return work()


def test_what_is_done_after_the_return_is_not_committed_and_is_reported(
    client: Client, database: TemporaryDatabase, events: CapturedEvents, connection_type: str
) -> None:
    """The next block, an empty one, commits nothing of it; the event names the function that borrowed."""
    block, _, function = new_place(client)
    (kept,) = block(keep)
    backend = kept.info.backend_pid
    act(client, lambda: kept.execute("INSERT INTO rows VALUES (1)"))
    client.run(lambda connection: None)

    event = events.wait(EVENT)
    event.pop("level", None)
    assert event == {
        "event": EVENT,
        "database": "orders",
        "connection_type": connection_type,
        "place": function,
    }
    assert rows(database) == []
    assert client.ask("SELECT pg_backend_pid()") == backend, "the connection was rolled back only"


def test_every_use_is_rolled_back_and_each_borrower_reported_once(
    client: Client, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """A hundred times: no row, no error, one event."""
    block, _, function = new_place(client)
    for number in range(MANY):
        (kept,) = block(keep)
        act(client, partial(kept.execute, f"INSERT INTO rows VALUES ({number})"))
        assert client.ask("SELECT count(*) FROM rows") == 0

    events.wait(EVENT)
    assert [event["place"] for event in events.named(EVENT)] == [function]
    assert rows(database) == []


def test_a_failed_statement_after_the_return_disturbs_no_other_block(client: Client) -> None:
    """The aborted transaction is rolled back, too."""
    (kept,) = client.run(keep)
    with pytest.raises(psycopg.errors.UndefinedTable):
        act(client, lambda: kept.execute("SELECT * FROM missing"))

    assert client.ask() == 1


def test_a_statement_that_still_runs_costs_its_connection(
    client: Client, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """The next borrower gets another connection, without waiting for the statement."""
    block, _, function = new_place(client)
    (kept,) = block(keep)
    kept.pgconn.send_query(b"SELECT pg_sleep(30)")
    with takes(0.5):
        assert client.ask("SELECT pg_backend_pid()") in {
            backend["pid"] for backend in database.backends()
        }

    events.wait(EVENT, place=function)
    assert client.handle.status().evicted["used"] == 1
    database.terminate_backends()  # the server notices at the end of a statement that its client left


def test_a_transaction_block_that_is_still_open_costs_its_connection(
    client: Client, database: TemporaryDatabase
) -> None:
    """Its owner gets an error; the next borrower has another connection, and loses no work."""
    (kept,) = client.run(keep)
    backend = kept.info.backend_pid
    transaction = kept.transaction()
    act(client, transaction.__aenter__ if client.is_async else transaction.__enter__)
    client.run(lambda connection: connection.execute("INSERT INTO rows VALUES (1)"))

    assert rows(database) == [1]
    assert client.ask("SELECT pg_backend_pid()") != backend
    with pytest.raises(psycopg.OperationalError):
        act(client, lambda: kept.execute("INSERT INTO rows VALUES (2)"))


def test_a_rollback_that_gets_no_answer_takes_a_part_of_the_time_of_the_checkout(
    make: Make, proxy: ChaosProxy, database: TemporaryDatabase
) -> None:
    """The silent connection is closed; the checkout waits at most a third of its time for it."""
    client = make(through=proxy, pool={"min_size": 1, "max_size": 1})
    (kept,) = client.run(keep)
    act(client, lambda: kept.execute("INSERT INTO rows VALUES (1)"))
    proxy.set("lost")
    asked = client.ask_soon(timeout=6)
    proxy_is_silent = proxy.accepted
    eventually(lambda: client.handle.status().evicted["used"] == 1, 5, "it was given up")
    proxy.set("pass")

    assert asked.result() == 1
    assert proxy.accepted > proxy_is_silent
    eventually(lambda: rows(database) == [])


def test_a_connection_that_was_closed_after_its_return_is_replaced(
    client: Client, events: CapturedEvents
) -> None:
    """Closing it is no use that needs to be undone."""
    (kept,) = client.run(keep)
    act(client, kept.close)

    assert client.ask() == 1
    assert events.named(EVENT) == []
    assert client.handle.status().evicted["dead"] == 1
