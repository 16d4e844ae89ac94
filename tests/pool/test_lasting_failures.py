"""Failures that waiting does not mend: clients that wait hear of them at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgmonkey import ConnectError
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.pool.side import GRACE, Client, Make

CLIENTS = 20


def another_password(database: TemporaryDatabase) -> None:
    database.server.set_password(database.user, database.canary.secret())


def no_login(database: TemporaryDatabase) -> None:
    database.server.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(database.user)))


def mend(database: TemporaryDatabase) -> None:
    database.server.set_password(database.user, database.password)
    database.server.execute(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(database.user)))


def hear(answers: list[Future[Any]]) -> None:
    """Check that every client has its own error with the reason, long before its timeout."""
    began = time.monotonic()
    errors = [answer.exception(40) for answer in answers]
    assert time.monotonic() - began <= 1 + GRACE
    for error in errors:
        assert isinstance(error, ConnectError)
        assert error.reason == "auth"
        assert error.hint
    assert len({id(error) for error in errors}) == len(errors)


@pytest.mark.parametrize("break_it", [another_password, no_login])
def test_clients_that_wait_hear_at_once_when_nothing_is_left(
    make: Make, database: TemporaryDatabase, break_it: Callable[[TemporaryDatabase], None]
) -> None:
    """All connections are out and clients queue; the sessions end and the login is refused.

    Each client that waits has the reason `auth` at once, and not at its timeout.
    """
    client = make(pool={"min_size": 1, "max_size": 2})
    with pytest.raises(psycopg.OperationalError), client.holding(2):
        answers = [client.ask_soon(timeout=40) for _ in range(CLIENTS)]
        eventually(lambda: client.handle.status().waiting == CLIENTS, 10, "they wait")
        break_it(database)
        database.terminate_backends()
    hear(answers)
    mend(database)
    eventually(lambda: works(client), 20, "it works again")


@pytest.mark.parametrize("break_it", [another_password, no_login])
def test_clients_that_wait_for_the_first_connection_hear_at_once(
    make: Make, database: TemporaryDatabase, break_it: Callable[[TemporaryDatabase], None]
) -> None:
    """Twenty clients come together to a handle that was never open; the error is for all of them."""
    client = make(pool={"min_size": 1, "max_size": 2})
    break_it(database)
    hear([client.ask_soon(timeout=40) for _ in range(CLIENTS)])
    mend(database)
    eventually(lambda: works(client), 20, "it works again")


def test_clients_of_connections_that_live_on_hear_of_nothing(
    make: Make, database: TemporaryDatabase
) -> None:
    """A refused login does not concern those whom an open connection serves, however many wait."""
    client = make(pool={"min_size": 1, "max_size": 4})
    client.fill(1)
    another_password(database)
    answers = [client.ask_soon("SELECT 1 FROM pg_sleep(0.02)", timeout=40) for _ in range(30)]
    assert [answer.exception(40) for answer in answers] == [None] * 30
    assert client.errors() == {}
    assert client.handle.status().last_failure_reason == "auth"
    mend(database)
    client.fill(4, timeout=40)


def works(client: Client) -> bool:
    """Tell whether a checkout works now."""
    try:
        return bool(client.ask(timeout=2) == 1)
    except ConnectError:
        return False
