"""A client of an ASGI application without a server: it sees when an answer begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


async def post(
    app: Any, path: str, query: str, state: Mapping[str, Any], begun: Callable[[int], object]
) -> None:
    """Post to an application as a server would; return when its answer and its tasks have ended.

    Args:
        app: The application; its lifespan is not begun.
        path: The path of the request.
        query: The query string.
        state: The lifespan state.
        begun: Called with the status when the answer begins.
    """

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            begun(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
        "state": dict(state),
    }
    await app(scope, receive, send)
