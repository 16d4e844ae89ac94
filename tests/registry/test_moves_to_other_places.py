"""Rotations that lead to another database: no checkout works on the old one after the reload."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client
from tests.registry.load import Peak, table_of_commits, working

SIZE = 4
MOVES = 10
STATEMENT = "SELECT current_database()"


@pytest.fixture
def other(database: TemporaryDatabase) -> Iterator[TemporaryDatabase]:
    """A second database on the same server, whose owner may use both."""
    other = TemporaryDatabase.create(database.server, database.canary)
    other.execute(f'GRANT ALL ON SCHEMA public TO "{database.user}"')
    yield other
    other.disconnect()
    try:
        other.assert_unused()
    finally:
        other.execute(f'DROP OWNED BY "{database.user}"')
        other.drop()


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    side: str,
    place: TemporaryDatabase,
    number: int,
) -> None:
    """Declare a database that is at a place, as the same user; the name tells which change it is."""
    sizes = {"min_size": 2, "max_size": SIZE}
    registry_dir.declare(
        "orders",
        database,
        side,
        connection={"dbname": place.name, "application_name": f"app-{number}"},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )


@pytest.mark.parametrize("side", SIDES)
def test_after_a_move_no_checkout_gets_a_connection_of_the_old_place(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    other: TemporaryDatabase,
    side: str,
) -> None:
    """When `reload()` has returned, every checkout is at the new place, under load and ten times.

    Transactions that were under way commit where they began; none fails. The old place and the new
    one together never have more connections than the pool and one.
    """
    places = (database, other)
    for place in places:
        table_of_commits(place, database.user)
    declare(registry_dir, database, side, database, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        with Peak(database) as peak, working(registry, side, 0.005) as load:
            load.goes_on()
            for number in range(1, MOVES + 1):
                declare(registry_dir, database, side, places[number % 2], number)
                assert registry.reload().applied == ("orders",)
                load.expected = f"app-{number}"
                load.goes_on()
        assert load.outdated == []
        assert peak.highest <= SIZE + 1
        assert registry.wait_drained(timeout=10)
        committed = [
            row[0] for place in places for row in place.execute("SELECT id FROM public.done")
        ]
        assert sorted(committed) == sorted(load.committed)
        assert places[(MOVES + 1) % 2].backends() == []


@pytest.mark.parametrize("side", SIDES)
def test_clients_that_wait_during_a_move_get_connections_of_the_new_place(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    other: TemporaryDatabase,
    side: str,
) -> None:
    """Every connection is out at the old place: clients that wait are served from the new one."""
    declare(registry_dir, database, side, database, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        with client.holding(SIZE) as old:
            answers = [client.ask_soon(STATEMENT, timeout=30) for _ in range(3 * SIZE)]
            eventually(lambda: client.handle.status().waiting == 3 * SIZE, 10, "they wait")
            declare(registry_dir, database, side, other, 1)
            assert registry.reload().applied == ("orders",)
            assert {one["pid"] for one in database.backends()} == set(old), "nothing is cut"
        assert [answer.result(30) for answer in answers] == [other.name] * (3 * SIZE)
        assert client.errors() == {}
        eventually(lambda: database.backends() == [], 10, "the old connections are closed")


def test_a_thread_in_the_middle_of_its_block_stays_where_it_is(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """A block that is open over a move ends at the old place; the next one of its thread is new."""
    declare(registry_dir, database, "pool", database, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        begun, moved = threading.Event(), threading.Event()
        seen: list[Any] = []

        def work() -> None:
            with handle as connection:
                seen.append(connection.execute(STATEMENT).fetchone())
                begun.set()
                assert moved.wait(20)
                seen.append(connection.execute(STATEMENT).fetchone())
            with handle as connection:
                seen.append(connection.execute(STATEMENT).fetchone())

        thread = threading.Thread(target=work)
        thread.start()
        assert begun.wait(20)
        declare(registry_dir, database, "pool", other, 1)
        assert registry.reload().applied == ("orders",)
        moved.set()
        thread.join()
    assert seen == [(database.name,), (database.name,), (other.name,)]
