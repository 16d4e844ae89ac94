"""The first connections of a pool: as many as are asked for, and no more."""

from __future__ import annotations

from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.pool.side import Make


def test_the_first_client_makes_no_connection_beyond_min_size(
    make: Make, database: TemporaryDatabase
) -> None:
    """It waits for the connection that is being made for it, and starts no second one."""
    client = make(pool={"min_size": 1, "max_size": 4})
    assert client.ask() == 1
    assert client.handle.status().connect_attempts == 1
    assert len(database.backends()) == 1


def test_clients_that_come_while_a_pool_opens_make_it_grow_for_all_of_them(
    make: Make, database: TemporaryDatabase
) -> None:
    """Four clients come at once: each has a connection of its own as soon as it is made."""
    client = make(pool={"min_size": 1, "max_size": 4})
    answers = [client.ask_soon("SELECT pg_sleep(1)", timeout=5) for _ in range(4)]
    eventually(lambda: client.handle.status().used == 4, 5, "all four are served")
    for answer in answers:
        answer.result(10)
    assert len(database.backends()) == 4
