"""The limits of the HTTP server in time and number, from outside, with applications of the test."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import prometheus_client
import psutil
import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pgmonkey import Registry
from pgmonkey.service import server
from pgmonkey.service.app import Readiness, application, probe_routes
from pgmonkey.service.server import HttpServer, listen, url_of
from pgmonkey.service.tls import Certificate
from tests.docs.snippets import ROOT
from tests.kit import RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.certificates import Authority
from tests.service.mounted import answering
from tests.service.raw import read, request

PIECE = b"x" * 65536
PIECES = 150

#: Seconds after which every connection that does nothing for us is gone.
GONE = 20
#: Part of the real limits that is tried here; tests/service/test_bad_requests.py has real ones.
PART = 0.4
LIMITS = ("_HEAD_TIMEOUT", "_READ_TIMEOUT", "_IDLE_TIMEOUT", "_FINISH")


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that do not take the time of a person who waits for the tests."""
    for name in LIMITS:
        monkeypatch.setattr(server, name, PART * getattr(server, name))
    for name in ("keep_alive_timeout", "ssl_handshake_timeout", "graceful_timeout"):
        monkeypatch.setattr(server._Config, name, PART * getattr(server._Config, name))


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
    elif scope["path"] == "/medium":  # some of it stays with the server when the answer is complete
        answer = Response(PIECE * 3)
    await answer(scope, receive, send)


def connect(url: str) -> socket.socket:
    """Connect with a small buffer: what is not read stays with the server."""
    client = socket.socket()
    client.settimeout(20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect(("127.0.0.1", urlsplit(url).port or 0))
    return client


def served(url: str) -> int:
    """Return how many connections the server holds, which is in this process."""
    port = urlsplit(url).port
    return sum(
        one.laddr.port == port and one.status not in (psutil.CONN_LISTEN, psutil.CONN_TIME_WAIT)
        for one in psutil.Process().net_connections("tcp4")
    )


@pytest.mark.slow
@pytest.mark.parametrize("clients", [64, 100])
def test_a_byte_of_body_after_the_answer_keeps_no_connection(clients: int) -> None:
    """Clients that take an answer and then send a byte of body are ended; others get answers."""
    with answering(app) as url, ExitStack() as stack:
        began = time.monotonic()
        held = [stack.enter_context(connect(url)) for _ in range(clients)]
        for client in held:
            client.sendall(request("POST / HTTP/1.1", "Content-Length: 60000"))
        for client in held:
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
            with suppress(OSError):
                client.sendall(b"x")
        assert httpx.get(url).text == "ok"
        eventually(lambda: served(url) == 0, GONE)
        assert time.monotonic() - began < GONE


@pytest.mark.slow
def test_a_dripping_body_keeps_no_connection() -> None:
    """Bodies that drip are ended, whether they say how long they are, or come in many chunks."""
    heads = (
        (request("POST / HTTP/1.1", "Content-Length: 60000"), b"x"),
        (request("POST / HTTP/1.1", "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
    )
    with answering(app) as url, ExitStack() as stack:
        held = [(stack.enter_context(connect(url)), *head) for head in heads * 20]
        for client, head, piece in held:
            client.sendall(head + piece * 2000)
        began = time.monotonic()
        while served(url):
            assert time.monotonic() - began < GONE
            for client, _, piece in held:
                with suppress(OSError):
                    client.send(piece)
            time.sleep(0.2)  # their pace
        assert httpx.get(url).text == "ok"


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_ended() -> None:
    """Answers that are not read are given up, also a small rest after the answer is complete."""
    with answering(app) as url, ExitStack() as stack:
        for path in ("/pieces", "/large", "/medium") * 10:
            client = stack.enter_context(connect(url))
            client.sendall(request(f"GET {path} HTTP/1.1"))
            assert client.recv(1)  # its answer has begun
        assert httpx.get(url).text == "ok"
        eventually(lambda: served(url) == 0, GONE)


@pytest.mark.slow
def test_a_slow_reader_gets_the_whole_answer() -> None:
    """A large answer on a slow line is sent for longer than any limit, as long as it is read."""
    longer = server._IDLE_TIMEOUT + 1
    with answering(app) as url:

        def take(path: str) -> int:
            with connect(url) as client:
                client.sendall(request(f"GET {path} HTTP/1.1", "Connection: close"))
                began, size = time.monotonic(), 0
                while piece := client.recv(8192):
                    size += len(piece)
                    if time.monotonic() - began < longer:
                        time.sleep(0.02)  # its pace
                assert time.monotonic() - began > longer
                return size

        with ThreadPoolExecutor() as threads:
            for size in threads.map(take, ("/pieces", "/large")):
                assert size > len(PIECE) * PIECES


@pytest.mark.slow
def test_a_request_has_to_come_in_time() -> None:
    """No head, half a head and no second request: each connection is ended after a time."""
    with answering(app) as url:

        def wait(sent: bytes) -> None:
            with connect(url) as client:
                client.sendall(sent)
                began = time.monotonic()
                answer = read(client)
                assert 0.8 * server._HEAD_TIMEOUT < time.monotonic() - began < 15
                assert answer.status == (200 if sent.endswith(b"\r\n\r\n") else 0)

        with ThreadPoolExecutor() as threads:
            list(threads.map(wait, (b"", b"GET / HT", request("GET / HTTP/1.1"))))


@pytest.mark.slow
def test_http2_has_the_same_limits() -> None:
    """HTTP/2 clients that only announce themselves, ping, or take nothing are ended, too."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload

    no_window = frame(4, 0, 0, struct.pack("!HI", 4, 0))  # SETTINGS_INITIAL_WINDOW_SIZE
    # GET / with the static table of HPACK: :method, :scheme, :path; :authority localhost.
    get = frame(1, 5, 1, bytes([0x82, 0x86, 0x84, 0x41, 9]) + b"localhost")
    with answering(app) as url, ExitStack() as stack:
        silent, pinging, stuck = (stack.enter_context(connect(url)) for _ in range(3))
        silent.sendall(preface + frame(4, 0, 0))
        pinging.sendall(preface + frame(4, 0, 0))
        stuck.sendall(preface + no_window + get)
        began = time.monotonic()
        while served(url):
            assert time.monotonic() - began < 30
            with suppress(OSError):
                pinging.send(frame(6, 0, 0, b"12345678"))
            time.sleep(0.2)  # its pace
        assert httpx.get(url).text == "ok"


def test_a_websocket_is_refused() -> None:
    """There is none: 403, and the connection ends."""
    with answering(app) as url, connect(url) as client:
        client.sendall(
            request(
                "GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket",
                "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            )
        )  # fmt: skip
        assert read(client).status == 403


def test_handshakes_go_on_while_the_certificate_is_renewed(tmp_path: Path) -> None:
    """No handshake fails in a loop of renewals, and new ones get the new certificate."""
    authority = Authority("pgmonkey tests")
    paths = authority.issue("127.0.0.1", tmp_path)
    pairs = []
    for _ in range(4):
        authority.issue("127.0.0.1", tmp_path)
        pairs.append([path.read_bytes() for path in paths])
    certificate = Certificate(*paths)
    ended = threading.Event()
    context = ssl.create_default_context(cadata=authority.pem)

    def renew() -> int:
        count = 0
        while not ended.is_set():
            for path, content in zip(paths, pairs[count % len(pairs)], strict=True):
                path.write_bytes(content)
            certificate.refresh()
            count += 1
        return count

    def serial(url: str) -> str:
        with (
            connect(url) as client,
            context.wrap_socket(client, server_hostname="127.0.0.1") as encrypted,
        ):
            return str((encrypted.getpeercert() or {})["serialNumber"])

    with answering(app, certificate=certificate) as url, ThreadPoolExecutor() as threads:
        renewals = threads.submit(renew)
        try:
            seen = {serial(url) for _ in range(300)}  # raises if a handshake fails
        finally:
            ended.set()
        assert renewals.result() > 10
        assert len(seen) > 1


@pytest.mark.parametrize("turns", range(6))
def test_a_stop_loses_no_client_that_is_being_accepted(turns: int) -> None:
    """Who connects in the moment of the stop is ended: no socket is left to the garbage collector."""

    async def stop_in_turn() -> bytes:
        with listen("127.0.0.1:0") as listener, connect(url_of(listener)) as client:
            client.setblocking(False)
            stop = asyncio.Event()
            serving = asyncio.create_task(HttpServer(app, listener).run(stop.wait))
            for _ in range(turns):
                await asyncio.sleep(0)
            stop.set()
            await serving
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 5)

    with suppress(ConnectionResetError):  # it was not accepted yet
        assert asyncio.run(stop_in_turn()) == b""
    gc.collect()  # reports what was left to it, and that fails the test


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_server_closes_the_listening_socket(turns: int) -> None:
    """No client can connect to a server that was cancelled, at its start or while it stops."""
    with listen("127.0.0.1:0") as listener:
        address = listener.getsockname()
        stop = asyncio.Event()
        serving = asyncio.create_task(HttpServer(app, listener).run(stop.wait))
        await asyncio.sleep(0.05 if turns % 2 else 0)
        stop.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)


async def test_a_request_in_progress_is_answered_at_the_stop() -> None:
    """After the stop no client can connect; requests that began before it get their answers."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await go_on.wait()
        await PlainTextResponse("done")(scope, receive, send)

    with listen("127.0.0.1:0") as listener:
        address, url = listener.getsockname(), url_of(listener)
        stop = asyncio.Event()
        serving = asyncio.create_task(HttpServer(slow, listener).run(stop.wait))
        async with httpx.AsyncClient() as client:
            asking = asyncio.create_task(client.get(url))
            await began.wait()
            stop.set()
            await asyncio.sleep(0.1)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, 5)
            go_on.set()
            assert (await asking).text == "done"
            await asyncio.wait_for(serving, 5)


async def test_a_request_that_does_not_end_is_ended_at_the_stop() -> None:
    """Applications that never answer, and clients that do not read, delay the end by a bounded time."""
    began = asyncio.Event()

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/large":
            await app(scope, receive, send)
        began.set()
        await asyncio.Event().wait()

    with listen("127.0.0.1:0") as listener, connect(url_of(listener)) as waiting:
        stop = asyncio.Event()
        serving = asyncio.create_task(HttpServer(stuck, listener).run(stop.wait))
        with connect(url_of(listener)) as unread:
            waiting.sendall(request("GET / HTTP/1.1"))
            unread.sendall(request("GET /large HTTP/1.1"))
            await began.wait()
            stop.set()
            before = time.monotonic()
            await asyncio.wait_for(serving, 10)
            assert time.monotonic() - before < server._FINISH + 2
            assert (await asyncio.to_thread(read, waiting)).status == 0


class SlowCollector(Collector):
    """Metrics that take as long as the test wants."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.collections = 0

    def collect(self) -> Iterator[Metric]:
        """Wait, and count."""
        self.collections += 1
        assert self.go_on.wait(30)
        yield GaugeMetricFamily("slow", "Collected slowly.", self.collections)


def test_scrapes_delay_nothing_else(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """While 100 scrapes wait for a slow collector, health is answered; they share a collection."""
    registry_dir.declare("orders", database)
    slow = SlowCollector()
    metrics = prometheus_client.CollectorRegistry()
    with Registry(registry_dir, metrics=metrics) as registry:
        metrics.register(slow)
        slow.collections = 0
        routes = probe_routes(registry, Readiness(registry), metrics)
        with answering(application(routes)) as url, ExitStack() as stack:
            stack.callback(slow.go_on.set)
            clients = [stack.enter_context(connect(url)) for _ in range(100)]
            for client in clients:
                client.sendall(request("GET /metrics HTTP/1.1", "Connection: close"))
            eventually(lambda: slow.collections == 1)
            for path in ("/healthz", "/readyz") * 10:
                assert httpx.get(url + path, timeout=2).status_code in (200, 503)
            slow.go_on.set()
            assert {read(client).status for client in clients} == {200}
        assert slow.collections <= 3


def test_the_page_has_the_limits() -> None:
    """The page of the service says what the limits are."""
    head, read, idle, finish = (f"{getattr(server, name) / PART:g} s" for name in LIMITS)
    page = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    assert f"| {head} after the connect" in page
    assert f"| {read} for each {server._PIECE // 1024} KiB |" in page
    assert f"| a connection without a request | {idle}," in page
    assert f"| connections | {server._MAX_CONNECTIONS:,} for each" in page
    assert f"the requests in progress {finish.removesuffix(' s')} seconds to finish" in page
