"""Listeners: the sockets that the service answers on."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from typing import Final

from pgmonkey.errors import PgmonkeyError

DEFAULT_LISTEN: Final = "127.0.0.1:9749"

_LISTEN: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})"
)


# Turns of the loop in which a socket that was accepted becomes a connection of its protocol.
_TURNS: Final = 3


class ServiceError(PgmonkeyError, OSError):
    """Report that the service cannot listen where it was told to."""


def listen(address: str) -> socket.socket:
    """Return a socket that listens at `HOST:PORT`.

    Args:
        address: Such as `127.0.0.1:9749`, `[::1]:9749`, `0.0.0.0:9749`; port 0 is any free one.

    Raises:
        ValueError: It is no address.
        ServiceError: The address cannot be had.

    Example:
        >>> with listen("127.0.0.1:0") as listener:
        ...     listener.getsockname()[0]
        '127.0.0.1'
    """
    match = _LISTEN.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:9749")
    host, port = match["six"] or match["host"], int(match["port"])
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(where[:2], family=family, backlog=128)
    except OSError as error:
        # The errno's own text: Python and the resolver add to it what `address` says already.
        known = isinstance(error.errno, int) and error.errno > 0
        reason = os.strerror(error.errno) if known and error.errno else error.strerror
        raise ServiceError(f"cannot listen on {address}: {reason}") from None


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the address to look at, without a path.

    Args:
        listener: The socket.
        scheme: `http` or `https`.
    """
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where to look
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def stop_accepting(server: asyncio.Server) -> None:
    """Close the listening sockets of a server; who was accepted before is connected on return.

    `Server.close()` by itself loses a client that is being accepted: neither it nor its protocol
    hears of the other (CPython issue 109564).

    Args:
        server: Of the running loop.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    try:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
    finally:
        server.close()
