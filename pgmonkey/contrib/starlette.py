"""Starlette: the registry of an application from its start to its end.

from starlette.applications import Starlette
from pgmonkey.contrib.starlette import lifespan

app = Starlette(routes=..., lifespan=lifespan("registry.d"))

async def add(request):
    async with request.state.pgmonkey.get("orders") as conn:
        await conn.execute("INSERT INTO orders (item) VALUES ('tea')")
    return Response(status_code=201)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypedDict

from pgmonkey.registry.registry import Registry


class State(TypedDict):
    """The lifespan state: what `request.state` has.

    Attributes:
        pgmonkey: The registry.
    """

    pgmonkey: Registry


def lifespan(
    registry: Registry | str | os.PathLike[str],
) -> Callable[[Any], AbstractAsyncContextManager[State]]:
    """Return the lifespan of a Starlette or FastAPI application that uses a registry.

    Requests, WebSockets and mounted applications find the registry in `request.state.pgmonkey`.
    Connections close when the application ends. It connects to nothing at the start.

    Args:
        registry: A directory: the registry is made when the application starts, and closed when it
            ends. Or a registry of yours, if you want options, or a name for it in your modules. Its
            connections, those of engines included, close when the application ends; the
            application can be started again, as tests do.

    Raises:
        RegistryConfigError: at the start: the directory or a file has problems.

    Example:
        >>> app = FastAPI(lifespan=lifespan("registry.d"))

        With more to start and to end:

        >>> @asynccontextmanager
        ... async def start(app):
        ...     async with lifespan("registry.d")(app) as state:
        ...         yield {**state, "started": True}
        >>> app = FastAPI(lifespan=start)
    """

    @asynccontextmanager
    async def run(_app: Any) -> AsyncIterator[State]:
        if not isinstance(registry, Registry):
            async with Registry(registry) as made:
                yield {"pgmonkey": made}
            return
        try:
            yield {"pgmonkey": registry}
        finally:
            await _close_connections(registry)

    return run


async def _close_connections(registry: Registry) -> None:
    """Close what is open; a later checkout opens it again."""
    # Those that were asked for; `registry.get` would make the others.
    for handle in registry._handles():
        if not handle.is_open():
            continue
        if handle.connection_type in ("async", "async_pool"):
            await handle.close()
        else:
            await asyncio.to_thread(handle.close)  # it waits for threads
