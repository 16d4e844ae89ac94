"""The HTTP server: Hypercorn on our own listening sockets.

Hypercorn bounds the head of a request and ends clients that send nothing. It leaves to the
application what needs the connection itself: clients that do not read their answer, the number of
connections, and an end in bounded time. So the listening socket remembers what it accepts: shutting
down a socket ends its connection, whatever the protocol on it waits for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from hypercorn.asyncio import serve
from hypercorn.config import Config, Sockets
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgmonkey.errors import PgmonkeyError
from pgmonkey.service.middleware import LARGEST_HEAD
from pgmonkey.service.tls import Certificate

DEFAULT_LISTEN: Final = "127.0.0.1:9749"

#: Seconds for the head of a request to arrive, from the connect or from the answer before it.
_HEAD_TIMEOUT: Final = 5.0
#: Seconds for a client to take 64 KiB of its answer.
_READ_TIMEOUT: Final = 10.0
#: Seconds after which a connection without a request is ended, whatever Hypercorn waits for.
_IDLE_TIMEOUT: Final = _HEAD_TIMEOUT + _READ_TIMEOUT
#: Connections of one listening socket. More are closed at once: without descriptors the registry
#: could not read its files. As many may wait to be accepted: the system lets others try again after
#: 1, 3 and 7 s, and who connected before them runs into `_HEAD_TIMEOUT` if it waits for all.
_MAX_CONNECTIONS: Final = 1024

_PIECE: Final = 64 * 1024  # bytes of an answer that are sent at once
_SEND_BUFFER: Final = 64 * 1024  # bytes that the system keeps for a client that does not read
_FINISH: Final = 3.0  # seconds that requests in progress have at the end
# Turns of the loop in which a socket that was accepted becomes a connection of Hypercorn.
_TURNS: Final = 3

_LISTEN: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})"
)

_log = logging.getLogger("pgmonkey.service")
# Hypercorn's own. It announces its start, which we do in our words.
_hypercorn_log = logging.getLogger("pgmonkey.service.http")
_hypercorn_log.addFilter(lambda record: record.levelno >= logging.ERROR)


class ServiceError(PgmonkeyError, OSError):
    """The service cannot listen at the address that it was given."""


class _Connection:
    """A connection that was accepted, its requests in progress, and the tasks of their bodies."""

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.requests: set[asyncio.Task[Any]] = set()
        self.bodies: set[asyncio.Task[None]] = set()
        self.idle_since = time.monotonic()
        self.ended = False

    def end(self) -> None:
        self.ended = True
        with suppress(OSError):  # the client was faster
            self.socket.shutdown(socket.SHUT_RDWR)


class Listener(socket.socket):
    """A listening socket that remembers the connections that it accepted."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(fileno=listening.detach())
        # Inherited by every connection. By default the system keeps megabytes for each client.
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.connections: dict[tuple[str, int], _Connection] = {}
        self.accepting = True

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; close those that are too many."""
        if not self.accepting:
            raise BlockingIOError
        accepted, address = super().accept()
        if len(self.connections) >= _MAX_CONNECTIONS:
            self.end_idle()
            while len(self.connections) >= _MAX_CONNECTIONS:
                accepted.close()
                accepted, address = super().accept()
        self.connections[address[:2]] = _Connection(accepted)
        return accepted, address

    def end_idle(self) -> None:
        """End the connections that were without a request for too long; forget closed ones."""
        limit = time.monotonic() - _IDLE_TIMEOUT
        for address, one in list(self.connections.items()):
            if one.socket.fileno() == -1 and not one.requests:
                del self.connections[address]
            elif not one.requests and not one.ended and one.idle_since < limit:
                _log.debug("connection of %s ended: no request", address[0])
                one.end()


def listen(address: str) -> Listener:
    """Return a socket that listens at `HOST:PORT`, such as `[::1]:9749`; port 0 is any free one.

    Raises:
        ValueError: It is not an address.
        ServiceError: The address cannot be used.
    """
    match = _LISTEN.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:9749")
    host, port = match["six"] or match["host"], int(match["port"])
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return Listener(socket.create_server(where[:2], family=family, backlog=_MAX_CONNECTIONS))
    except OSError as error:
        # The errno's own text: Python and the resolver add to it what `address` says already.
        known = isinstance(error.errno, int) and error.errno > 0
        reason = os.strerror(error.errno) if known and error.errno else error.strerror
        raise ServiceError(f"cannot listen on {address}: {reason}") from None


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the address to open, without a path."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where to look
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class HttpServer:
    """Answer on one listening socket, encrypted if there is a certificate.

    The bodies of requests are dropped, because no application of ours reads one.
    """

    def __init__(
        self, app: ASGIApp, listener: Listener, certificate: Certificate | None = None
    ) -> None:
        self.listener = listener
        self._app = app
        self._config = _Config(listener, certificate)

    async def run(self, stop: Callable[[], Awaitable[object]]) -> None:
        """Answer until `stop` returns. Then requests in progress have 3 s to finish."""
        ending = asyncio.Event()
        app: Any = self._answer  # Starlette's types of messages are wider than Hypercorn's
        serving = asyncio.create_task(
            serve(app, self._config, shutdown_trigger=ending.wait, mode="asgi")
        )
        stopping = asyncio.ensure_future(stop())
        sweeping = asyncio.create_task(self._sweep())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()  # it could not start
            # Closing a socket that is accepting loses the client (CPython issue 109564).
            self.listener.accepting = False
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            ending.set()
            # Hypercorn's own limit has no effect since Python 3.12.
            await asyncio.wait({serving}, timeout=_FINISH)
        finally:
            self.listener.accepting = False
            ending.set()
            for connection in self.listener.connections.values():
                for request in connection.requests:
                    request.cancel()
                connection.end()
            sweeping.cancel()
            stopping.cancel()
            await asyncio.wait({serving}, timeout=_FINISH)
            if not (serving.cancel() or serving.cancelled()) and (error := serving.exception()):
                _log.debug("a connection failed at the end: %r", error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.listener.end_idle()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # 403
        if scope["type"] != "http":
            return
        connection = self.listener.connections.get(scope["client"][:2])
        request = asyncio.current_task()
        if connection is None or request is None:
            return  # the client has gone

        async def send_in_time(message: Message) -> None:
            try:
                for piece in _pieces(message):
                    async with asyncio.timeout(_READ_TIMEOUT):
                        await send(piece)
            except TimeoutError:
                _log.debug("connection of %s ended: it does not read", scope["client"][0])
                connection.end()
                raise

        async def drop_body() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        # Not cancelled at the end: Hypercorn waits for room in the queue of `receive`, to put the
        # disconnect there.
        dropping = asyncio.create_task(drop_body())
        connection.bodies.add(dropping)
        dropping.add_done_callback(connection.bodies.discard)

        async def receive_disconnect() -> Message:
            await asyncio.shield(dropping)
            return {"type": "http.disconnect"}

        connection.requests.add(request)
        try:
            await self._app(scope, receive_disconnect, send_in_time)
        except Exception:
            if not connection.ended:
                raise
        finally:
            connection.requests.discard(request)
            connection.idle_since = time.monotonic()


def _pieces(message: Message) -> Iterator[Message]:
    body = message.get("body", b"")
    for start in range(0, len(body) - _PIECE, _PIECE):
        yield {**message, "body": body[start : start + _PIECE], "more_body": True}
    yield {**message, "body": body[-(len(body) % _PIECE or _PIECE) :]} if body else message


class _Config(Config):
    """Hypercorn's configuration, with our socket and our TLS context."""

    accesslog = None
    errorlog = _hypercorn_log
    include_server_header = False
    keep_alive_timeout = _HEAD_TIMEOUT
    h11_max_incomplete_size = LARGEST_HEAD
    backlog = _MAX_CONNECTIONS
    # A handshake is not yet a request, so it needs its own deadline.
    ssl_handshake_timeout = _HEAD_TIMEOUT
    graceful_timeout = 2 * _FINISH  # ours is over before

    def __init__(self, listener: Listener, certificate: Certificate | None) -> None:
        self._listener = listener
        self._certificate = certificate
        if certificate is not None:
            self.certfile, self.keyfile = certificate.paths

    def create_sockets(self) -> Sockets:
        if self._certificate is None:
            return Sockets([], [self._listener], [])
        return Sockets([self._listener], [], [])

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self._certificate.context if self._certificate else None
