"""A TCP proxy before a server: a network that fails on demand, and counts what passes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Literal, Self, TypeVar, get_args

from tests.kit.ports import free_port

Mode = Literal[
    "pass", "refuse", "blackhole", "lost", "truncate", "delay", "half_close", "reset", "cut", "full"
]
#: How a connection ends in the mode `cut`: with FIN, with RST, or without a word.
End = Literal["fin", "rst", "silence"]
T = TypeVar("T")

_CHUNK = 65_536
_PATIENCE = 10.0
#: Turns of the loop in which what was aborted lets its socket go.
_TURNS = 10

_SSL_REQUEST = 80_877_103
_GSS_REQUEST = 80_877_104


async def stop_accepting(server: asyncio.Server) -> None:
    """Close the listening sockets of a server; every client accepted before is connected on return.

    `Server.close()` by itself loses a client that is being accepted: neither it nor its protocol
    hears of the other (CPython issue 109564).
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    try:
        for _ in range(3):
            await asyncio.sleep(0)
    finally:
        server.close()


class MessageCounter:
    """Count the messages of one PostgreSQL connection, both ways, by their type letter.

    The start-up message and its relatives have no letter: they are counted as `startup`, `ssl`
    and `gss`. Behind TLS nothing can be counted any more.
    """

    def __init__(self, frontend: Counter[str], backend: Counter[str]) -> None:
        self._counts = {"frontend": frontend, "backend": backend}
        self._buffers = {"frontend": bytearray(), "backend": bytearray()}
        self._started = False
        #: Whether the server has said that it is ready for a query.
        self.ready = False
        self._answers_due = 0  # single bytes that answer an SSL or GSS request
        self._opaque = False

    def feed(self, direction: Literal["frontend", "backend"], data: bytes) -> None:
        """Take in what was sent in one direction."""
        if self._opaque:
            return
        buffer = self._buffers[direction]
        buffer += data
        while self._take(direction, buffer):
            pass

    def _take(self, direction: Literal["frontend", "backend"], buffer: bytearray) -> bool:
        if self._opaque:
            return False
        if direction == "frontend" and not self._started:
            return self._take_startup(buffer)
        if direction == "backend" and self._answers_due and buffer:
            self._answers_due -= 1
            self._opaque = bytes(buffer[:1]) in (b"S", b"G")
            del buffer[:1]
            return True
        if len(buffer) < 5:
            return False
        (length,) = struct.unpack_from("!I", buffer, 1)
        if len(buffer) < length + 1:
            return False
        self._counts[direction][chr(buffer[0])] += 1
        self.ready = self.ready or (direction == "backend" and buffer[:1] == b"Z")
        del buffer[: length + 1]
        return True

    def _take_startup(self, buffer: bytearray) -> bool:
        if len(buffer) < 8:
            return False
        length, code = struct.unpack_from("!II", buffer)
        if len(buffer) < length:
            return False
        if code in (_SSL_REQUEST, _GSS_REQUEST):
            self._counts["frontend"]["ssl" if code == _SSL_REQUEST else "gss"] += 1
            self._answers_due += 1
        else:
            self._counts["frontend"]["startup"] += 1
            self._started = True
        del buffer[:length]
        return True


class _Link:
    """One client, its upstream connection, and the two tasks between them."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.upstream: asyncio.StreamWriter | None = None
        self.task: asyncio.Task[None] | None = None
        self.lost = False
        #: Bytes that have come from the server.
        self.received = 0

    def close(self, *, reset: bool) -> None:
        for writer in (self.client, self.upstream):
            if writer is None:
                continue
            if reset:
                sock = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if self.task is not None:
            self.task.cancel()

    def half_close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.client.write_eof()


class ChaosProxy:
    """Stand between clients and a server, and misbehave when told to.

    | mode | existing connections | new ones |
    | --- | --- | --- |
    | `pass` | forwarded | forwarded |
    | `refuse` | forwarded | refused by the kernel: the port is closed |
    | `blackhole` | silent both ways, nothing is lost | accepted, then silent |
    | `lost` | silent for good, also after another mode is set | accepted, then the same |
    | `truncate` | of each piece from the server only the first message's head arrives | the same |
    | `delay` | each piece is held for `delay` seconds, each way | the same |
    | `half_close` | the client sees the end, the server does not | the same |
    | `reset` | reset at once | accepted, then reset |
    | `cut` | the same as for new ones | ended after `after` bytes from the server, as `end` says |
    | `full` | forwarded | beyond `most` refused as by a pooler, which `says` why |

    Back in `pass`, what a blackhole held is delivered, as a network does that recovers. The port
    stays the same over all modes. All methods may be called from any thread.

    Args:
        target_host: Where to connect to for each client.
        target_port: Its port; both can be assigned later, for a server that moves.

    Example:
        >>> with ChaosProxy("127.0.0.1", 5432) as proxy:
        ...     proxy.set("blackhole")
    """

    host = "127.0.0.1"

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.port = 0
        self.accepted = 0
        #: The most connections that were being opened at once: accepted, and not ready for a query.
        self.most_opening = 0
        self.client_bytes = 0
        self.server_bytes = 0
        self.frontend: Counter[str] = Counter()
        self.backend: Counter[str] = Counter()
        self._mode: Mode = "pass"
        self._shutting = False
        self._delay = 0.0
        self._after = 0
        self._end: End = "fin"
        self._most = 0
        self._says = ""
        self._links: set[_Link] = set()
        self._opening: set[_Link] = set()
        self._never = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._open_gate = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen. The port is free for good: clients cannot be given it as their own."""
        self._thread.start()
        self.port = free_port()
        self._call(self._listen())
        self._call(self._switch("pass"))

    def close(self) -> None:
        """Cut every connection and stop listening."""
        if not self._loop.is_closed():
            self._call(self._shut())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE)
            self._loop.close()

    @property
    def mode(self) -> Mode:
        """How it behaves now."""
        return self._mode

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._links)

    @property
    def round_trips(self) -> int:
        """How often the server told a client that it is ready for the next query."""
        return self.backend["Z"]

    def set(
        self,
        mode: Mode,
        *,
        delay: float = 0.0,
        after: int = 0,
        end: End = "fin",
        most: int = 0,
        says: str = "",
    ) -> None:
        """Change the behaviour; returns when the change is in force.

        Args:
            mode: The new mode.
            delay: Seconds that each piece is held, for `delay`.
            after: Bytes from the server after which a connection ends, for `cut`.
            end: How it ends, for `cut`.
            most: How many connections there may be, for `full`.
            says: The text of the error that the others get, for `full`.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"{mode!r} is no mode of the proxy")
        self._delay = delay
        self._after, self._end = after, end
        self._most, self._says = most, says
        self._call(self._switch(mode))

    def kill(self, *, reset: bool = False) -> None:
        """Cut the connections of now, in whatever mode, with an end or with a reset."""
        self._call(self._cut(reset=reset))

    def reset_counts(self) -> None:
        """Count from zero again."""
        self.accepted = self.client_bytes = self.server_bytes = 0
        self.most_opening = len(self._opening)
        self.frontend.clear()
        self.backend.clear()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(
            self._accept, self.host, self.port, backlog=512, limit=_CHUNK
        )

    async def _switch(self, mode: Mode) -> None:
        previous, self._mode = self._mode, mode
        if mode == "refuse":
            if self._listener is not None:
                listener, self._listener = self._listener, None
                await stop_accepting(listener)
        elif previous == "refuse":
            await self._listen()
        if mode == "blackhole":
            self._open_gate.clear()
        else:
            self._open_gate.set()
        if mode == "lost":
            for link in self._links:
                link.lost = True
        if mode == "reset":
            await self._cut(reset=True)
        elif mode == "half_close":
            for link in self._links:
                link.half_close()

    async def _cut(self, *, reset: bool) -> None:
        links = list(self._links)
        for link in links:
            link.close(reset=reset)
        tasks = [link.task for link in links if link.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(_TURNS):
            await asyncio.sleep(0)  # turns in which the aborted transports close their sockets

    async def _shut(self) -> None:
        self._shutting = True
        if self._listener is not None:
            await stop_accepting(self._listener)
        await self._cut(reset=False)
        if self._listener is not None:  # from Python 3.12 on it waits for what it has accepted
            await asyncio.wait_for(self._listener.wait_closed(), _PATIENCE)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: the link is known before anything else can run, so _cut misses none.
        self.accepted += 1
        link = _Link(writer)
        if self._mode in ("reset", "refuse") or self._shutting:
            # In the last two it was in the listener's queue when that was closed.
            link.close(reset=True)
            return
        self._links.add(link)
        self._opening.add(link)
        self.most_opening = max(self.most_opening, len(self._opening))
        if self._mode == "half_close":
            link.half_close()
        link.task = self._loop.create_task(self._serve(link, reader))

    async def _serve(self, link: _Link, reader: asyncio.StreamReader) -> None:
        try:
            await self._pass_gate(link)
            if self._mode == "full" and len(self._links) > self._most:
                await self._refuse(link, reader)
            else:
                await self._forward(link, reader)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the server is away, or we cut the link: either way it is over
        finally:
            self._links.discard(link)
            self._opening.discard(link)
            link.task = None
            link.close(reset=False)

    async def _refuse(self, link: _Link, reader: asyncio.StreamReader) -> None:
        """Answer a start-up message as a pooler without room does."""
        code = _SSL_REQUEST
        while code in (_SSL_REQUEST, _GSS_REQUEST):
            length, code = struct.unpack("!II", await reader.readexactly(8))
            await reader.readexactly(length - 8)
            if code in (_SSL_REQUEST, _GSS_REQUEST):
                link.client.write(b"N")
        fields = f"SFATAL\0VFATAL\0CXX000\0M{self._says}\0\0".encode()
        link.client.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        await link.client.drain()
        link.half_close()
        await reader.read()

    async def _pass_gate(self, link: _Link) -> None:
        await self._open_gate.wait()
        if link.lost or self._mode == "lost":
            await self._never.wait()

    async def _forward(self, link: _Link, reader: asyncio.StreamReader) -> None:
        upstream_reader, upstream = await asyncio.open_connection(
            self.target_host, self.target_port, limit=_CHUNK
        )
        link.upstream = upstream
        counter = MessageCounter(self.frontend, self.backend)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump("frontend", reader, upstream, counter, link))
            group.create_task(self._pump("backend", upstream_reader, link.client, counter, link))

    async def _pump(
        self,
        direction: Literal["frontend", "backend"],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        counter: MessageCounter,
        link: _Link,
    ) -> None:
        try:
            while data := await reader.read(_CHUNK):
                if self._mode == "delay":
                    await asyncio.sleep(self._delay)
                await self._pass_gate(link)
                if direction == "frontend":
                    self.client_bytes += len(data)
                else:
                    self.server_bytes += len(data)
                counter.feed(direction, data)
                if self._mode == "truncate" and direction == "backend":
                    data = data[:5]
                if self._mode == "cut" and direction == "backend":
                    await self._cut_off(link, data)
                    continue
                if counter.ready:
                    self._opening.discard(link)
                if writer.transport.is_closing() or (
                    direction == "backend" and self._mode == "half_close"
                ):
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # reset by this side; the end is passed on below
        await self._pass_gate(link)
        if self._mode != "half_close":
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()

    async def _cut_off(self, link: _Link, data: bytes) -> None:
        """Pass on what is left of the bytes that a connection may have, and end it after them."""
        left = self._after - link.received
        link.received += len(data)
        if left < 0:
            return
        link.client.write(data[:left])
        await link.client.drain()
        if len(data) < left:
            return
        if self._end == "rst":
            link.close(reset=True)
        elif self._end == "fin":
            link.half_close()
