"""The guard in front of the applications: it refuses requests that no honest client sends."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Bytes of path and query, of all headers together, and of a body; number of headers.
LONGEST_TARGET: Final = 2048
LARGEST_HEAD: Final = 16 * 1024
LARGEST_BODY: Final = 64 * 1024
MOST_HEADERS: Final = 100

_LOCAL_NAMES: Final = frozenset({"localhost"})
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Refusal = tuple[int, str]  # status and text


class Guard:
    """Refuse requests for other hosts and beyond the limits; add the headers of every answer.

    An attacker can let a name of his own resolve to this machine (DNS rebinding); a browser would
    then let the pages of that name read the answers. So a request's `Host` must be `localhost`, a
    loopback address, the address that it was sent to, or one of `hosts` (`None`: any). `open_paths`
    are answered at any IP address, because the kubelet's probes use the pod's.
    """

    def __init__(
        self, app: ASGIApp, hosts: Iterable[str] | None, open_paths: Collection[str] = ()
    ) -> None:
        self._app = app
        self._names = None if hosts is None else _LOCAL_NAMES | {_plain(host) for host in hosts}
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = _refusal_of_size(scope) or self._refusal_of_host(scope)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, text = refusal
        # The bytes that follow on the connection may belong to the request that was refused.
        close = {"Connection": "close"} if scope["http_version"] < "2" else None
        answer = PlainTextResponse(f"{text}\n", status, close)
        await answer(scope, receive, send_with_headers)

    def _refusal_of_host(self, scope: Scope) -> Refusal | None:
        if self._names is None:
            return None
        host = next((value for name, value in scope["headers"] if name == b"host"), None)
        if host is None:
            return None  # HTTP/1.0
        name = _name(host.decode("latin-1"))
        if name in self._names:
            return None
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return 421, "unknown host; --allow-host NAME allows it"
        here = scope.get("server") or ("", None)
        if address.is_loopback or name == here[0] or scope["path"] in self._open_paths:
            return None
        return 421, "unknown address; --allow-host ADDRESS allows it"


def _refusal_of_size(scope: Scope) -> Refusal | None:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    if target > LONGEST_TARGET:
        return 414, "the path is too long"
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MOST_HEADERS or size > LARGEST_HEAD:
        return 431, "too many headers"
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(value)
    if len(values.get(b"host", ())) > 1:
        return 400, "more than one Host"
    if b"transfer-encoding" in values:
        if b"content-length" in values:
            return 400, "both Content-Length and Transfer-Encoding"
        return 411, "the body needs a Content-Length"
    length = values.get(b"content-length", [b"0"])[0]
    if not re.fullmatch(rb"[0-9]{1,18}", length):
        return 400, "Content-Length is not a number"
    if int(length) > LARGEST_BODY:
        return 413, "the body is too large"
    return None


def _plain(host: str) -> str:
    return host.lower().rstrip(".").strip("[]")


def _name(host: str) -> str:
    """Return the name of a `Host`, without its port."""
    if host.startswith("["):
        return _plain(host[1:].partition("]")[0])
    return _plain(host.rpartition(":")[0] if re.search(r":[0-9]*$", host) else host)
