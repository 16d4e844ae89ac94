"""Failures that waiting does not mend: the first error says so, at once, and not for ever."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgmonkey import CheckoutTimeout, ConnectError
from pgmonkey.pool.failures import HINTS
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.pool.side import Make, takes, works

Fault = Callable[[TemporaryDatabase, str], Callable[[], object]]


def alter(statement: str, undo: str, kind: str) -> Fault:
    """Return a fault that is one statement, and is mended by another."""

    def act(database: TemporaryDatabase, _secret: str) -> Callable[[], object]:
        name = sql.Identifier(database.user if kind == "ROLE" else database.name)
        database.server.execute(sql.SQL(f"ALTER {kind} {{}} {statement}").format(name))
        return lambda: database.server.execute(sql.SQL(f"ALTER {kind} {{}} {undo}").format(name))

    return act


def another_password(database: TemporaryDatabase, secret: str) -> Callable[[], object]:
    database.server.set_password(database.user, secret)
    return lambda: database.server.set_password(database.user, database.password)


def rejected_address(database: TemporaryDatabase, _secret: str) -> Callable[[], object]:
    server = database.server
    rules = server.data_directory / "pg_hba.conf"
    before = rules.read_text(encoding="utf-8")
    owner = rules.stat()

    def write(text: str, *, refused: bool) -> None:
        rules.write_text(text, encoding="utf-8")
        assert rules.stat().st_uid == owner.st_uid
        server.reload()
        eventually(lambda: is_refused() == refused, 10, "the server has read its rules")

    def is_refused() -> bool:
        try:
            database.connect().close()
        except psycopg.OperationalError:
            return True
        return False

    write(f"host all {database.user} all reject\n{before}", refused=True)
    return lambda: write(before, refused=False)


FAULTS: dict[str, tuple[str, Fault]] = {
    "another password": ("auth", another_password),
    "no login": ("auth", alter("NOLOGIN", "LOGIN", "ROLE")),
    "expired role": (
        "auth",
        alter("VALID UNTIL '2001-01-01'", "VALID UNTIL 'infinity'", "ROLE"),
    ),
    "closed database": (
        "no_database",
        alter("ALLOW_CONNECTIONS false", "ALLOW_CONNECTIONS true", "DATABASE"),
    ),
    "rejected address": ("hba", rejected_address),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_waiting_does_not_mend_is_the_first_error_and_heals_by_itself(
    make: Make,
    database: TemporaryDatabase,
    events: CapturedEvents,
    canary: Canary,
    fault: str,
) -> None:
    """Open connections serve on; with none left, each error comes at once and says why.

    The server is not hammered, and when it is mended the next connection is made by itself.
    """
    reason, act = FAULTS[fault]
    client = make(pool={"min_size": 1, "max_size": 1})
    client.fill(1)
    mend = act(database, canary.secret())
    try:
        client.fill(1)
        database.terminate_backends()
        with takes(2), pytest.raises(ConnectError) as caught:
            client.ask(timeout=20)
        assert caught.value.reason == reason
        error = caught.value
        assert error.database == "orders"
        assert error.text.startswith("connection to server at ")
        assert str(error) == (
            f"orders: cannot connect: {error.text} [{reason}]\n  hint: {HINTS[error.reason]}"
        )
        attempts, began = client.handle.status().connect_attempts, time.monotonic()
        for _ in range(20):
            with pytest.raises(ConnectError):
                client.ask(timeout=5)
        # The pauses are 1, 2, 4 ... seconds, so that few fit into any time.
        allowed = 2 + math.log2(1 + time.monotonic() - began)
        assert client.handle.status().connect_attempts - attempts <= allowed, "it is not hammered"
        assert len(events.named("connect.failed", reason=reason)) == 1
    finally:
        mend()
    eventually(client.handle.is_open, 20, "it is tried again though nobody asks")
    assert works(client)
    assert len(events.named("connect.recovered")) == 1


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "user": ("auth", {"user": "nobody_of_this_name"}),
    "database": ("no_database", {"dbname": "no_database_of_this_name"}),
    "encryption": ("tls", {"sslmode": "require"}),
    "setting": ("setting", {"options": "-c statement_timout=5s"}),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_the_file_is_the_first_error(make: Make, mistake: str) -> None:
    """The very first checkout fails at once with the reason, and not after its timeout."""
    reason, connection = WRONG[mistake]
    client = make(connection=connection)

    with takes(2), pytest.raises(ConnectError) as caught:
        client.ask(timeout=20)
    assert caught.value.reason == reason


def test_the_text_of_an_error_is_what_the_server_said(make: Make) -> None:
    """The server's own words, without what psycopg and libpq add around them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = make(connection={"host": "127.0.0.1", "port": port})

    with pytest.raises(CheckoutTimeout) as caught:
        client.ask(timeout=0.2)
    error = caught.value
    assert (
        error.text == f'connection to server at "127.0.0.1", port {port} failed: Connection refused'
    )
    assert f"\n  the last connect failed: {error.text} [refused]\n" in str(error)
