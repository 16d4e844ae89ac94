"""The HTTP server: uvicorn's HTTP/1.1, with the limits in time and number that it lacks.

uvicorn never ends a connection whose first request does not come, or comes a byte at a time, and
answers everybody with 503 once many are open. Here a request has a deadline that no byte extends,
and when all places are taken, the connection whose client has kept it waiting for longest gives up its
own: whoever asks and is quick gets an answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from typing import Any, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from pgmonkey.service.listener import stop_accepting
from pgmonkey.service.middleware import LARGEST_HEAD

#: Seconds for the head of a request to arrive, from the connect or from the answer before it.
HEAD_TIME: Final = 5.0
#: Seconds for a client to take what it was sent.
READ_TIME: Final = 10.0
#: Connections at once. A scrape, some probes and some browsers need a handful.
MOST_CONNECTIONS: Final = 64

_SEND_BUFFER: Final = 128 * 1024  # bytes
_FINISH: Final = 3.0  # seconds that requests in progress have at the end
_STATUS_LINES: Final = {
    400: "Bad Request",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
}

_log = logging.getLogger("pgmonkey.service")
# uvicorn warns of every request that is no HTTP: anybody could fill the log with that.
_uvicorn_log = logging.getLogger("pgmonkey.service.http")
_uvicorn_log.addFilter(lambda record: record.levelno >= logging.ERROR)


class HttpServer:
    """Answer on one socket.

    Args:
        app: What answers.
        listener: A socket that listens already.
        tls: How to encrypt, if so.
    """

    def __init__(
        self, app: ASGIApp, listener: socket.socket, tls: ssl.SSLContext | None = None
    ) -> None:
        self.listener = listener
        # Inherited by every connection. Else the system keeps megabytes for each client that does
        # not read, and it takes seconds to be seen that a slow one does.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._tls = tls
        self._config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=LARGEST_HEAD,
        )
        self._state = ServerState()
        self._waiting: dict[_Connection, None] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._config.load()
        # A handshake is no connection yet, so it needs its own deadline: asyncio's is a minute.
        times: dict[str, Any] = (
            {"ssl_handshake_timeout": HEAD_TIME, "ssl_shutdown_timeout": 1.0} if self._tls else {}
        )
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self._config, self._state, self._waiting),
            sock=self.listener,
            ssl=self._tls,
            **times,
        )

    async def stop(self) -> None:
        """Accept nobody any more, and end when the requests in progress have ended, or in 3 s."""
        if self._server is None:
            return
        await stop_accepting(self._server)
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = asyncio.get_running_loop().time() + _FINISH
        while (  # noqa: ASYNC110 - a set tells nobody that it is empty
            self._state.connections and asyncio.get_running_loop().time() < deadline
        ):
            await asyncio.sleep(0.01)
        for connection in list(self._state.connections):
            connection.transport.abort()


class _Connection(H11Protocol):
    """One connection of a client.

    Args:
        config: uvicorn's.
        state: Holds the connections of one listener.
        waiting: Those of them that wait for their client, in the order of their waiting.
    """

    def __init__(
        self, config: uvicorn.Config, state: ServerState, waiting: dict[_Connection, None]
    ) -> None:
        super().__init__(config, state, {})
        self.logger = _uvicorn_log
        self._waiting = waiting
        self._deadline: asyncio.TimerHandle | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            if not self._waiting:  # every place is taken by a request that is being answered
                self._refuse(503, "too many connections")
                return
            next(iter(self._waiting)).give_up("another client came")
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:  # the head is there
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # unless the next request has come already
            self._wait()

    def send_400_response(self, msg: str) -> None:
        # Called while the error is being handled: it says whether the head was too long.
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(status if status in _STATUS_LINES else 400, msg)
        else:  # half an answer was sent
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.cycle.response_complete:  # the rest of the answer can be sent
            self._stop_waiting()

    def give_up(self, why: str) -> None:
        """End the connection, whatever the client still sends or has not read."""
        _log.debug("connection ended: %s", why)
        self._stop_waiting()
        self.transport.abort()

    def _wait(self) -> None:
        """Wait for the client: to take what it was sent, and then for the head of a request."""
        self._stop_waiting()
        self._waiting[self] = None
        self._watch()

    def _watch(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._deadline = self.loop.call_later(
            READ_TIME if self._unread else HEAD_TIME, self._overdue
        )

    def _overdue(self) -> None:
        if self.transport.get_write_buffer_size() < self._unread:
            self._watch()  # a large answer on a slow line, but it gets there
        else:
            self.give_up("it does not read" if self._unread else "no request came in time")

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int, text: str) -> None:
        _log.debug("request refused: %d %s", status, text)
        body = f"{text}\n".encode()
        head = (
            f"HTTP/1.1 {status} {_STATUS_LINES[status]}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
