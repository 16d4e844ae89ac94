"""Requests byte by byte, for what no HTTP client sends."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class RawAnswer:
    """What came back until the other side closed, or the first answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def connect(url: str, timeout: float = 10.0) -> socket.socket:
    """Open a connection to a service."""
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), parts.port or 0), timeout)


def send(url: str, data: bytes) -> RawAnswer:
    """Send bytes, and read until the other side ends the connection. Status 0: no answer."""
    with connect(url) as client:
        with suppress(OSError):  # it has refused already
            client.sendall(data)
        return read(client)


def read(client: socket.socket) -> RawAnswer:
    """Read until the end of the connection."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1."):
        return RawAnswer(0)
    pairs = (line.partition(":") for line in lines)
    return RawAnswer(
        int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, body
    )


def request(first: str, *headers: str, host: str = "localhost") -> bytes:
    """Return a request without a body."""
    return "\r\n".join([first, f"Host: {host}", *headers, "", ""]).encode("latin-1")
