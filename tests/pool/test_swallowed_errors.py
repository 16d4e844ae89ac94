"""A block that swallows the error of a statement is rolled back by the server: an event says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import structlog

from pgmonkey import Registry
from pgmonkey.telemetry.events import is_first
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.places import new_place
from tests.pool.side import Client, Make

#: Repetitions, where an event must come once.
MANY = 100
EVENT = "checkout.rolled_back"


@pytest.fixture(autouse=True)
def table(database: TemporaryDatabase) -> None:
    """A table whose first row is there."""
    with database.connect() as owner:
        owner.execute("CREATE TABLE rows (id int PRIMARY KEY)")
        owner.execute("INSERT INTO rows VALUES (0)")


@pytest.fixture
def client(make: Make) -> Client:
    """A client of that database."""
    return make()


def rows(database: TemporaryDatabase) -> list[int]:
    return [number for (number,) in database.execute("SELECT id FROM rows ORDER BY id")]


def swallows(number: int, error: str = "INSERT INTO rows VALUES (0)") -> Callable[[Any], Any]:
    """Return what inserts a row and swallows the error of another statement."""

    def sync(connection: Any) -> None:
        connection.execute("INSERT INTO rows VALUES (%s)", [number])
        with suppress(psycopg.Error):
            connection.execute(error)

    async def async_(connection: Any) -> None:
        await connection.execute("INSERT INTO rows VALUES (%s)", [number])
        with suppress(psycopg.Error):
            await connection.execute(error)

    return lambda connection: (
        async_(connection) if isinstance(connection, psycopg.AsyncConnection) else sync(connection)
    )


def in_transaction(work: Callable[[Any], Any], **options: Any) -> Callable[[Any], Any]:
    """Return what does the same inside `connection.transaction()`."""

    def sync(connection: Any) -> None:
        with connection.transaction(**options):
            work(connection)

    async def async_(connection: Any) -> None:
        async with connection.transaction(**options):
            await work(connection)

    return lambda connection: (
        async_(connection) if isinstance(connection, psycopg.AsyncConnection) else sync(connection)
    )


def test_a_swallowed_error_raises_nothing_and_is_reported_with_its_place(
    client: Client, database: TemporaryDatabase, events: CapturedEvents, connection_type: str
) -> None:
    """The block ends without an exception; the event names the line that borrowed."""
    block, place, _ = new_place(client)
    block(swallows(1))

    assert rows(database) == [0]
    (event,) = events.named(EVENT)
    event.pop("level", None)
    assert event == {
        "event": EVENT,
        "database": "orders",
        "connection_type": connection_type,
        "place": place,
    }


def test_a_place_is_reported_once(client: Client, events: CapturedEvents) -> None:
    """However often a block there swallows an error, one event comes; another place has its own."""
    block, place, _ = new_place(client)
    for _ in range(MANY):
        block(swallows(1))
    other, other_place, _ = new_place(client)
    other(swallows(1))

    assert [event["place"] for event in events.named(EVENT)] == [place, other_place]


def test_a_transaction_block_that_swallows_an_error_is_reported(
    client: Client, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Also where `transaction()` of the handle or of the connection ends it."""
    block, place, _ = new_place(client)
    block(swallows(1), client.handle.transaction)
    other, other_place, _ = new_place(client)
    other(in_transaction(swallows(2)))

    assert rows(database) == [0]
    assert [event["place"] for event in events.named(EVENT)] == [place, other_place]


@pytest.mark.parametrize("autocommit", [True, False])
def test_nothing_is_reported_that_was_not_lost(
    make: Make, database: TemporaryDatabase, events: CapturedEvents, *, autocommit: bool
) -> None:
    """An error in a savepoint, a block that raises, a rollback that was asked for: no event."""
    client = make(connection={"autocommit": str(autocommit).lower()})

    def error_in_a_savepoint(connection: Any) -> Any:
        def sync() -> None:
            with connection.transaction():
                connection.execute("INSERT INTO rows VALUES (1)")
                with suppress(psycopg.Error), connection.transaction():
                    connection.execute("INSERT INTO rows VALUES (0)")
                connection.execute("INSERT INTO rows VALUES (2)")

        async def async_() -> None:
            async with connection.transaction():
                await connection.execute("INSERT INTO rows VALUES (1)")
                with suppress(psycopg.Error):
                    async with connection.transaction():
                        await connection.execute("INSERT INTO rows VALUES (0)")
                await connection.execute("INSERT INTO rows VALUES (2)")

        return async_() if client.is_async else sync()

    def raises(connection: Any) -> Any:
        return connection.execute("INSERT INTO rows VALUES (0)")

    block, _, _ = new_place(client)
    block(error_in_a_savepoint)
    with pytest.raises(psycopg.errors.UniqueViolation):
        block(raises)
    block(swallows(3), lambda: client.handle.transaction(force_rollback=True))
    block(in_transaction(swallows(3), force_rollback=True))

    assert rows(database) == [0, 1, 2]
    assert events.named(EVENT) == []


def test_what_writes_the_event_may_use_the_pool_that_it_is_about(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """It comes after the connection was given back: a pool of one has it for the processor."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 0, "max_size": 1})
    answers: list[Any] = []
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        client = Client(registry)

        def processor(_logger: Any, _method: str, event: Any) -> str:
            if event["event"] == EVENT:
                answers.append(client.ask(timeout=2))
            return ""

        structlog.configure(processors=[processor], logger_factory=structlog.ReturnLoggerFactory())
        try:
            block, _, _ = new_place(client)
            block(swallows(1))
        finally:
            structlog.reset_defaults()
        client.close()

    assert answers == [1]


def test_many_places_take_bounded_memory() -> None:
    """After more than a thousand others a place is new again; no more of them are remembered."""
    assert is_first(EVENT, "first.py", 1)
    assert not is_first(EVENT, "first.py", 1)
    for number in range(1100):
        assert is_first(EVENT, f"other_{number}.py", 1)

    assert is_first(EVENT, "first.py", 1)


def test_threads_at_one_place_report_it_once(client: Client, events: CapturedEvents) -> None:
    """Whichever of many threads comes first: one event."""
    block, place, _ = new_place(client)
    together = threading.Barrier(8)

    def work() -> None:
        together.wait()
        block(swallows(1))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [event["place"] for event in events.named(EVENT)] == [place]
