from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import time
from contextlib import suppress

import psycopg
import pytest

from tests.kit import eventually


@pytest.fixture
def connect(proxy, database):
    """Connect through the proxy."""

    def connect(**overrides):
        settings = {"host": proxy.host, "port": proxy.port, "autocommit": True}
        return database.connect(**settings | overrides)

    return connect


def test_pass_forwards_and_counts_messages(proxy, connect):
    """A simple query is one message to the server and one round trip."""
    conn = connect()
    eventually(lambda: proxy.round_trips == 1, message="logged in")
    assert proxy.frontend["startup"] == 1
    proxy.reset_counts()

    conn.execute("SELECT 1", prepare=False)

    assert proxy.round_trips == 1
    assert proxy.backend["D"] == 1
    assert proxy.client_bytes > 0
    assert proxy.server_bytes > 0


def test_an_answer_to_a_tls_request_is_no_message(proxy, connect):
    """The single byte that refuses TLS does not confuse the count."""
    connect(sslmode="prefer")

    assert proxy.frontend["ssl"] == 1
    eventually(lambda: proxy.round_trips == 1)


def test_refuse_refuses_new_connections_and_keeps_old_ones(proxy, connect):
    """In `refuse` the kernel refuses connections; back in `pass` the port is the same."""
    conn = connect()
    port = proxy.port
    proxy.set("refuse")

    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect()
    assert conn.execute("SELECT 1").fetchone() == (1,)

    proxy.set("pass")
    assert proxy.port == port
    assert connect().execute("SELECT 2").fetchone() == (2,)


@pytest.mark.parametrize("turns", range(6))
def test_refuse_loses_nothing_that_is_being_accepted(proxy, turns):
    """A client that connects during a change of mode is ended, and its socket is closed."""
    loop = proxy._loop
    busy, go_on = threading.Event(), threading.Event()

    async def stop_in_turn() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await proxy._switch("refuse")

    def hold() -> None:
        busy.set()
        go_on.wait(5)

    loop.call_soon_threadsafe(hold)
    assert busy.wait(5)
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as client:
        switched = asyncio.run_coroutine_threadsafe(stop_in_turn(), loop)
        go_on.set()
        switched.result(5)
        proxy.kill()

        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
    gc.collect()  # reports what was left to it, and that fails the test


def test_blackhole_is_silent_and_loses_nothing(proxy, connect):
    """In `blackhole` no answer comes; the server answers when it ends."""
    conn = connect()
    proxy.set("blackhole")
    conn.pgconn.send_query(b"SELECT 42")
    conn.pgconn.flush()

    with pytest.raises(psycopg.errors.ConnectionTimeout):
        connect(connect_timeout=2)
    conn.pgconn.consume_input()
    assert conn.pgconn.is_busy()

    proxy.set("pass")

    def answered() -> bool:
        conn.pgconn.consume_input()
        return not conn.pgconn.is_busy()

    eventually(answered)
    assert conn.pgconn.get_result().get_value(0, 0) == b"42"
    assert conn.pgconn.get_result() is None


@pytest.mark.timing
def test_delay_holds_each_piece(proxy, connect):
    """In `delay` a round trip takes at least the delay of both ways."""
    conn = connect()
    proxy.set("delay", delay=0.05)
    start = time.monotonic()

    conn.execute("SELECT 1", prepare=False)

    assert time.monotonic() - start >= 0.1


def test_half_close_shows_the_client_an_end(proxy):
    """In `half_close` the client reads the end of the stream and can still write."""
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as client:
        eventually(lambda: proxy.connections == 1)
        proxy.set("half_close")

        assert client.recv(1) == b""
        client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
        eventually(lambda: proxy.client_bytes == 8)


def test_reset_resets_old_and_new_connections(proxy, connect):
    """In `reset` established connections break and new ones do not get through."""
    conn = connect()
    proxy.set("reset")

    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        connect()


def test_kill_cuts_what_is_connected(proxy, connect, database):
    """`kill` ends the open connections, on the server too; the next one works."""
    conn = connect()
    proxy.kill()

    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT 1")
    connect().execute("SELECT 1")
    eventually(lambda: len(database.backends()) == 1)


@pytest.mark.parametrize("end, error", [("fin", None), ("rst", ConnectionResetError)])
def test_cut_ends_a_connection_after_so_many_bytes(proxy, end, error):
    """The client gets exactly these bytes of the server, then the end that was asked for."""
    proxy.set("cut", after=1, end=end)
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as client:
        client.sendall(struct.pack("!II", 8, 80_877_103) * 2)
        assert client.recv(100) == b"N"
        if error is None:
            assert client.recv(100) == b""
        else:
            with pytest.raises(error):
                client.recv(100)


def test_full_refuses_connections_beyond_the_most(proxy, connect):
    """The open ones serve, another one gets the error, and when one is closed there is room."""
    conn = connect()
    proxy.set("full", most=1, says="no room")
    with pytest.raises(psycopg.OperationalError, match="FATAL:  no room"):
        connect()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    conn.close()
    eventually(lambda: proxy.connections == 0, message="it is closed")
    assert connect().execute("SELECT 1").fetchone() == (1,)
