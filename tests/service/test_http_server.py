"""The limits of the HTTP server in time and number, with applications that answer at length."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pgmonkey.service import server as http_server
from pgmonkey.service.listener import listen, url_of
from tests.kit import eventually
from tests.service.mounted import answering
from tests.service.raw import read, request

PIECE = b"x" * 65536
PIECES = 150


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with 10 MB, in pieces or at once, or with a word."""

    async def pieces() -> Any:
        for _ in range(PIECES):
            yield PIECE

    answer: Response = PlainTextResponse("ok")
    if scope["path"] == "/pieces":
        answer = StreamingResponse(pieces())
    elif scope["path"] == "/large":
        answer = Response(PIECE * PIECES)
    await answer(scope, receive, send)


def connect(url: str) -> socket.socket:
    """Connect with a small buffer: what is not read stays with the server."""
    client = socket.socket()
    client.settimeout(20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect(("127.0.0.1", urlsplit(url).port or 0))
    return client


def test_clients_that_read_nothing_give_up_their_places() -> None:
    """When every place is taken by an answer that nobody reads, a client that comes gets one."""
    with answering(app) as url, ExitStack() as stack:
        for _ in range(http_server.MOST_CONNECTIONS + 10):
            client = stack.enter_context(connect(url))
            client.sendall(request("GET /pieces HTTP/1.1"))
            assert client.recv(1)  # its answer has begun
        assert httpx.get(url).text == "ok"


def test_a_client_that_reads_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is not read is given up in time, be it all sent or on its way."""
    monkeypatch.setattr(http_server, "READ_TIME", 0.5)
    with answering(app) as url:
        for path in ("/pieces", "/large"):
            with connect(url) as client:
                client.sendall(request(f"GET {path} HTTP/1.1"))
                eventually(lambda: served(url) == 1)
                eventually(lambda: served(url) == 0, 15)


def served(url: str) -> int:
    """Return how many connections the server holds, which is in this process."""
    port = urlsplit(url).port
    return sum(
        one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED
        for one in psutil.Process().net_connections("tcp4")
    )


@pytest.mark.slow
def test_a_slow_reader_gets_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large answer on a slow line is no reason to end it, as long as it is read."""
    monkeypatch.setattr(http_server, "READ_TIME", 1.0)
    monkeypatch.setattr(http_server, "HEAD_TIME", 1.0)
    for path in ("/pieces", "/large"):
        with answering(app) as url, connect(url) as client:
            client.sendall(request(f"GET {path} HTTP/1.1", "Connection: close"))
            began = time.monotonic()
            size = 0
            while piece := client.recv(65536):
                size += len(piece)
                if time.monotonic() - began < 3:
                    time.sleep(0.02)  # its pace, for three times as long as it has
            assert size > len(PIECE) * PIECES


def test_a_request_has_to_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, half a head, and no second request: each is ended when its time is over."""
    monkeypatch.setattr(http_server, "HEAD_TIME", 0.5)
    with answering(app) as url:
        for sent in (b"", b"GET / HT", request("GET / HTTP/1.1")):
            with connect(url) as client:
                client.sendall(sent)
                began = time.monotonic()
                answer = read(client)
                assert time.monotonic() - began >= 0.4
                assert answer.status == (200 if sent.endswith(b"\r\n\r\n") else 0)


@pytest.mark.parametrize("turns", range(6))
def test_a_stop_loses_nobody_who_is_being_accepted(turns: int) -> None:
    """Who comes in the moment of the stop is ended: no socket is left to the garbage collector."""

    async def stop_in_turn() -> bytes:
        with listen("127.0.0.1:0") as listener, connect(url_of(listener)) as client:
            client.setblocking(False)
            server = http_server.HttpServer(app, listener)
            await server.start()
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.stop()
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 5)

    with suppress(ConnectionResetError):  # it was not accepted yet
        assert asyncio.run(stop_in_turn()) == b""
    gc.collect()  # reports what was left to it, and that fails the test


async def test_a_cancelled_stop_closes_the_listening_socket() -> None:
    """Nobody connects to a server whose stop was cancelled in its first turn."""
    with listen("127.0.0.1:0") as listener:
        address = listener.getsockname()
        server = http_server.HttpServer(app, listener)
        await server.start()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)
