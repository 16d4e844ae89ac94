"""Failures that waiting does not mend: the first error says so, at once, and not for ever."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from pathlib import Path
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
        # The pauses are a second; after a wrong password 2, 4, 8 ... seconds.
        seconds = time.monotonic() - began
        wrong_password = fault in ("another password", "expired role")
        allowed = 2 + (math.log2(1 + seconds) if wrong_password else seconds)
        assert client.handle.status().connect_attempts - attempts <= allowed, "it is not hammered"
        assert len(events.named("connect.failed", reason=reason)) == 1
    finally:
        mend()
    eventually(lambda: client.handle.status().idle == 1, 20, "it is tried again without a client")
    assert works(client)
    assert len(events.named("connect.recovered")) == 1


def another_name(database: TemporaryDatabase, _secret: str) -> Callable[[], object]:
    server, name = database.server, sql.Identifier(database.name)
    away = sql.Identifier(f"{database.name}_away")
    server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
    database.terminate_backends()
    server.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(name, away))

    def mend() -> None:
        server.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(away, name))
        server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))

    return mend


@pytest.mark.slow
@pytest.mark.parametrize(
    "reason, act",
    [("auth", FAULTS["no login"][1]), ("no_database", another_name)],
    ids=["no login", "another name"],
)
def test_clients_succeed_within_two_seconds_after_a_refusal_was_mended(
    make: Make, database: TemporaryDatabase, canary: Canary, reason: str, act: Fault
) -> None:
    """A role that may log in again, a database that is back: also after a refusal of ten seconds."""
    client = make(pool={"min_size": 1, "max_size": 1})
    client.fill(1)
    mend = act(database, canary.secret())
    try:
        database.terminate_backends()
        began = time.monotonic()
        while time.monotonic() - began < 10:
            with takes(1), pytest.raises(ConnectError) as caught:
                client.ask(timeout=20)
            assert caught.value.reason == reason
            time.sleep(0.05)
    finally:
        mend()
    with takes(2):
        eventually(lambda: works(client), 20, "it works again")


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


NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "role": ("auth", {"user": "too many clients", "password": "any"}),
    "database": ("no_database", {"dbname": "pg_hba.conf says: authentication failed"}),
    "quotes": ("no_database", {"dbname": 'say "SCRAM" to "SSL"'}),
}


@pytest.mark.parametrize("named", NAMED)
def test_a_name_that_reads_like_an_error_does_not_decide_the_reason(make: Make, named: str) -> None:
    """A role or a database may be called like one."""
    reason, connection = NAMED[named]
    client = make(connection=connection)
    with takes(2), pytest.raises(ConnectError) as caught:
        client.ask(timeout=20)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "directory, name, reason",
    [
        ("pg-ssl", "", "refused"),
        ("SCRAM", "", "refused"),
        ("", f"{'scram' * 14}.example", "dns"),  # no resolver accepts so long a part of a name
    ],
)
def test_a_host_that_reads_like_an_error_is_waited_for(
    make: Make, tmp_path: Path, directory: str, name: str, reason: str
) -> None:
    """A socket directory or a host may be called like an error that waiting does not mend."""
    if directory:
        (tmp_path / directory).mkdir()
    client = make(connection={"host": name or str(tmp_path / directory)})
    with takes(0.5, 0.5), pytest.raises(CheckoutTimeout) as caught:
        client.ask(timeout=0.5)
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
