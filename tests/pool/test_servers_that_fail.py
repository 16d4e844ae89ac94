"""Servers and networks that fail: a checkout gives a working connection or a clear error in time."""

from __future__ import annotations

import os
import signal
import socketserver
import threading
import time
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, ConnectError
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.pool.side import Client, Make, refuses, takes, works


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_dead_idle_connections_after_a_restart_cost_no_error(
    make: Make, database: TemporaryDatabase, mode: Any
) -> None:
    """Four connections die idle in a restart; all clients that come next are served, at once."""
    client = make()
    client.fill(4)
    database.server.restart(mode)

    with takes(2):
        client.fill(4)
    assert client.handle.status().evicted["dead"] >= 1
    assert client.errors() == {}


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_of_twenty_connections_that_came_back_a_moment_ago_one_at_most_fails_a_block(
    make: Make, database: TemporaryDatabase, mode: Any
) -> None:
    """The first block that meets a dead one makes all others be looked at, however fresh they are."""
    client = make(pool={"min_size": 1, "max_size": 20}, connection={"autocommit": "true"})
    for _ in range(3):
        with client.holding(20):
            database.server.restart(mode)
        assert [fails(client) for _ in range(40)].count(True) <= 1

    assert client.errors() == {}


@pytest.mark.parametrize("connection_type", ["async_pool"])
def test_a_block_that_meets_a_dead_connection_warns_the_other_loops_of_the_handle(
    make: Make, database: TemporaryDatabase
) -> None:
    """What one loop finds out, the pools of the other loops know: one block fails in all of them."""
    client = make(pool={"min_size": 1, "max_size": 5}, connection={"autocommit": "true"})
    others = [Client(client.registry) for _ in range(2)]
    everyone = [client, *others]
    try:
        for _ in range(5):
            with ExitStack() as stack:
                for one in everyone:
                    stack.enter_context(one.holding(5))
                database.terminate_backends()
            assert [fails(one) for _ in range(10) for one in everyone].count(True) <= 1
    finally:
        for one in others:
            one.close()


@pytest.mark.parametrize("connection_type", ["async_pool"])
def test_a_dead_connection_that_nobody_borrowed_warns_the_other_loops_of_the_handle(
    make: Make, database: TemporaryDatabase
) -> None:
    """It is found before it is handed out: no block fails, in no loop."""
    client = make(pool={"min_size": 1, "max_size": 5}, connection={"autocommit": "true"})
    other = Client(client.registry)
    try:
        for _ in range(5):
            client.fill(1)
            with other.holding(5):
                database.terminate_backends()
            assert not fails(client)
            assert not any(fails(other) for _ in range(10))
    finally:
        other.close()


def fails(client: Client) -> bool:
    """Tell whether a block fails because the server has closed its connection."""
    try:
        client.ask()
    except ConnectError:
        raise
    except psycopg.OperationalError:
        return True
    return False


def test_thirty_dead_connections_cost_no_error_and_no_backoff(
    make: Make, database: TemporaryDatabase
) -> None:
    """Thirty dead connections are dropped one after the other without a pause between them."""
    client = make(pool={"min_size": 1, "max_size": 30})
    client.fill(30, timeout=20)
    database.terminate_backends()

    with takes(0.5):
        assert client.ask() == 1
    assert client.errors() == {}


def test_a_connection_that_died_before_anybody_used_it_is_not_handed_out(
    make: Make, database: TemporaryDatabase
) -> None:
    """A connection that the pool has just made is looked at too: only a return proves it alive."""
    client = make(pool={"min_size": 1, "max_size": 2})
    for _ in range(5):
        client.open()
        database.terminate_backends()
        assert client.ask() == 1
        client.shut()

    assert client.errors() == {}


def test_one_connection_that_was_terminated_is_the_only_one_replaced(
    make: Make, database: TemporaryDatabase
) -> None:
    """`pg_terminate_backend`: one connection is dropped, the other ones are the same as before."""
    client = make(pool={"min_size": 3, "max_size": 3})
    before = set(client.fill(3))
    database.execute("SELECT pg_terminate_backend(%s, 5000)", min(before))

    after = set(client.fill(3))
    assert after & before == before - {min(before)}
    assert client.handle.status().evicted["dead"] == 1
    assert client.errors() == {}


def test_statements_in_flight_fail_as_the_driver_says_and_no_more_of_them(
    make: Make, database: TemporaryDatabase
) -> None:
    """A restart cuts what is in flight; nothing of ours repeats it or hides the error."""
    client = make(pool={"min_size": 2, "max_size": 2})
    client.fill(2)
    in_flight = [client.ask_soon("SELECT pg_sleep(30)") for _ in range(2)]
    eventually(
        lambda: [one["state"] for one in database.backends()] == ["active"] * 2, 5, "they run"
    )
    database.server.restart("fast")

    for answer in in_flight:
        assert isinstance(answer.exception(20), psycopg.errors.AdminShutdown)
    client.rest()
    client.fill(2)
    assert client.errors() == {}


@pytest.mark.parametrize("how", ["fin", "rst", "half_close"])
def test_a_connection_that_the_network_has_cut_is_replaced(
    make: Make, proxy: ChaosProxy, how: str
) -> None:
    """An idle connection that ended with FIN or RST is seen without asking, and replaced."""
    client = make(through=proxy)
    client.fill(2)
    if how == "half_close":
        proxy.set("half_close")
        proxy.set("pass")
    else:
        proxy.kill(reset=how == "rst")

    assert [client.ask() for _ in range(3)] == [1, 1, 1]
    assert client.errors() == {}


def test_a_stopped_backend_costs_a_sign_of_life_and_no_error(
    make: Make, database: TemporaryDatabase
) -> None:
    """With `check_on_checkout`, a server process that hangs is given up and the next one taken."""
    client = make(check_on_checkout=True, pool={"min_size": 1, "max_size": 2})
    stopped = client.fill(2)[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        with takes(4):
            backends = client.fill(2, timeout=4)
    finally:
        os.kill(stopped, signal.SIGCONT)

    assert stopped not in backends
    assert client.handle.status().evicted["check"] >= 1


def test_an_answer_that_stops_halfway_ends_at_its_deadline_and_stops_nobody_else(
    make: Make, proxy: ChaosProxy
) -> None:
    """The first part of a sign of life comes, the rest does not: no thread waits for it in libpq."""
    client = make(through=proxy, check_on_checkout=True, connection={"connect_timeout": 2})
    client.fill(1)
    proxy.set("truncate")

    refuses(client, 1.5)
    assert client.handle.status().evicted["check"] >= 1
    proxy.set("pass")
    eventually(lambda: works(client), 10, "it recovers")


def test_a_silent_network_ends_the_checkout_in_time(make: Make, proxy: ChaosProxy) -> None:
    """With `check_on_checkout` on a network that swallows everything, the deadline holds."""
    client = make(
        through=proxy, check_on_checkout=True, connection={"connect_timeout": 2}, timeout=5
    )
    client.fill(4)
    proxy.set("blackhole")

    error = refuses(client, 1.5)
    assert "orders" in str(error)
    proxy.set("pass")
    eventually(lambda: works(client), 10, "it recovers")


def test_a_sign_of_life_is_one_message_and_leaves_no_transaction(
    make: Make, proxy: ChaosProxy
) -> None:
    """The check costs one round trip, and the connection is handed out idle."""
    client = make(through=proxy, check_on_checkout=True)
    client.fill(1)
    proxy.reset_counts()

    status = client.run(lambda connection: connection.info.transaction_status)
    assert status == psycopg.pq.TransactionStatus.IDLE
    eventually(lambda: proxy.round_trips == 1, 5, "it was answered")
    assert sum(proxy.frontend.values()) == 1


def test_a_connection_that_was_idle_for_long_is_asked_for_a_sign_of_life(
    make: Make, proxy: ChaosProxy
) -> None:
    """A network may have forgotten it: it is asked once; one that was used lately is not."""
    client = make(through=proxy)
    client.fill(1)

    def age(connection: Any) -> None:
        connection.returned_at -= 30  # seconds: as if it had been idle for so long

    client.run(lambda connection: connection)
    proxy.reset_counts()
    assert client.run(lambda connection: connection.info.backend_pid) > 0
    assert sum(proxy.frontend.values()) == 0
    client.after_return(age)
    assert client.run(lambda connection: connection.info.backend_pid) > 0
    eventually(lambda: proxy.round_trips == 1, 5, "it was answered")
    assert sum(proxy.frontend.values()) == 1


def test_a_server_that_is_down_gives_its_reason_within_the_timeout(
    make: Make, proxy: ChaosProxy
) -> None:
    """The error of a checkout while the server refuses says so, and comes in time."""
    client = make(through=proxy)
    client.fill(2)
    proxy.set("refuse")
    proxy.kill()

    for _ in range(3):
        error = refuses(client, 0.5)
        assert error.reason == "refused"
        assert "refused" in str(error)
    assert client.handle.status().waiting == 0


def test_a_server_that_accepts_and_says_nothing_gives_its_reason_within_the_timeout(
    make: Make, proxy: ChaosProxy
) -> None:
    """The first connection to a silent server: the client hears of it at its own deadline."""
    proxy.set("blackhole")
    client = make(through=proxy, connection={"connect_timeout": 2})

    with takes(1), pytest.raises(CheckoutTimeout):
        client.ask(timeout=1)
    eventually(
        lambda: client.handle.status().last_failure_reason == "timeout", 10, "the reason is known"
    )
    assert refuses(client, 0.5).reason == "timeout"


def test_a_slow_network_is_slow_but_right(make: Make, proxy: ChaosProxy) -> None:
    """With a delay on every message checkouts work, and no connection is made twice."""
    client = make(through=proxy, pool={"min_size": 1, "max_size": 1})
    client.fill(1)
    proxy.set("delay", delay=0.5)
    before = client.handle.status().uses.sum
    assert [client.ask(timeout=20) for _ in range(2)] == [1, 1]

    status = client.handle.status()
    assert status.connect_attempts == 1
    assert status.uses.sum - before >= 2 * 0.5
    proxy.set("pass")


def test_a_server_without_a_free_slot_serves_with_what_there_is(
    make: Make, database: TemporaryDatabase
) -> None:
    """Others hold all connections of the server: the open ones serve, growth fails softly."""
    client = make()
    client.fill(1)
    others = []
    try:
        with pytest.raises(psycopg.OperationalError, match=r"too many|remaining connection slots"):
            while True:
                others.append(database.connect())
        answers = [client.ask_soon("SELECT 1 FROM pg_sleep(0.05)", timeout=20) for _ in range(6)]
        assert [answer.result(30) for answer in answers] == [1] * 6
        assert client.handle.status().connect_failures["too_many_connections"] >= 1
    finally:
        for other in others:
            other.close()
    client.fill(4)


def test_a_full_role_serves_with_what_there_is(make: Make, database: TemporaryDatabase) -> None:
    """When the role has no connection left, the pool goes on with the ones that it has."""
    database.connection_limit(2)
    client = make()
    client.fill(2)

    with pytest.raises(CheckoutTimeout) as caught:
        client.fill(3, timeout=0.5)
    assert caught.value.reason == "too_many_connections"
    assert client.ask() == 1
    database.connection_limit(-1)


@pytest.mark.parametrize("by", ["statement_timeout", "pg_cancel_backend"])
def test_a_cancelled_statement_leaves_a_usable_connection(
    make: Make, database: TemporaryDatabase, by: str
) -> None:
    """The error reaches the caller as it is, and its connection serves the next one."""
    settings = {"statement_timeout": "50ms"} if by == "statement_timeout" else {}
    client = make(
        pool={"min_size": 1, "max_size": 1}, sync_settings=settings, async_settings=settings
    )
    before = client.ask("SELECT pg_backend_pid()")
    cancelled = client.ask_soon("SELECT pg_sleep(30)")
    if by == "pg_cancel_backend":
        eventually(
            lambda: database.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                " WHERE pid = %s AND state = 'active'",
                before,
            ),
            5,
            "it is running",
        )

    assert isinstance(cancelled.exception(20), psycopg.errors.QueryCanceled)
    assert client.ask("SELECT pg_backend_pid()") == before


def test_a_port_that_speaks_something_else_is_an_error_and_no_hang(
    make: Make,
) -> None:
    """A port that answers in HTTP ends in an error within the timeout."""

    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1024)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        try:
            client = make(connection={"port": other.server_address[1], "connect_timeout": 2})
            error = refuses(client, 1)
            assert error.reason == "other"
            assert "is this the port of a PostgreSQL server?" in str(error)
        finally:
            other.shutdown()
            thread.join()


def test_a_connection_past_its_lifetime_is_not_handed_out(make: Make) -> None:
    """`max_lifetime` holds at checkout, also for a connection that was not borrowed."""
    client = make(pool={"min_size": 1, "max_size": 1, "max_lifetime": "300ms"})
    before = client.ask("SELECT pg_backend_pid()")
    born = time.monotonic()
    eventually(lambda: time.monotonic() - born > 0.4, 2, "it is too old")

    assert client.ask("SELECT pg_backend_pid()") != before
    assert client.handle.status().evicted["lifetime"] == 1
