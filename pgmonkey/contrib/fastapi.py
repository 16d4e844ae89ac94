"""FastAPI: a connection for each request, committed before the response is sent.

from typing import Annotated
import psycopg
from fastapi import FastAPI
from pgmonkey.contrib.fastapi import Connection, lifespan

app = FastAPI(lifespan=lifespan("registry.d"))
Orders = Annotated[psycopg.AsyncConnection, Connection("orders")]

@app.post("/orders", status_code=201)
async def add(item: str, conn: Orders) -> None:
    await conn.execute("INSERT INTO orders (item) VALUES (%s)", [item])
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cache
from inspect import isasyncgenfunction, isgeneratorfunction, unwrap
from types import CodeType
from typing import TYPE_CHECKING, Any, get_origin

import psycopg
from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import params
from starlette.requests import HTTPConnection

from pgmonkey.contrib.sides import ASYNC, SYNC, checkout
from pgmonkey.contrib.starlette import lifespan

if TYPE_CHECKING:
    from pgmonkey.registry.registry import Registry

__all__ = ["Connection", "lifespan"]


def Connection(name: str) -> Any:  # noqa: N802 - it stands where FastAPI's `Depends` does, and is read as one
    """Give an endpoint, or a dependency of it, a connection for the time that it runs.

    Write it in `Annotated`, after the type of the connection. What the endpoint did is committed
    when it returns, before the response is sent; if the commit fails, the response is a 500. It is
    rolled back when the endpoint raises, `HTTPException` included. Everything in one request that
    asks for the same database gets the same connection, and with it one transaction.

    It costs a checkout for each request. A request waits for a `psycopg.Connection` in a thread
    of its own, so it takes none of the threads that run endpoints.

    A dependency with `yield` that takes a connection needs `Depends(..., scope="function")`, too.
    An endpoint that is a generator runs while its response is sent: it opens a block of its own.

    Args:
        name: The name of the database. Its file may declare any type: `psycopg.AsyncConnection`
            takes it as `async_pool` or `async`, `psycopg.Connection` as `pool` or `normal`.

    Raises:
        TypeError: when the endpoint is declared: the type is not a connection of psycopg.
        RuntimeError: in a request: the application has no registry, or the endpoint is a generator.
        CheckoutTimeout, ConnectError, UnknownDatabaseError: in a request: as a checkout does.

    Example:
        >>> from typing import Annotated
        >>> app = FastAPI(lifespan=lifespan("registry.d"))
        >>> @app.get("/orders")
        ... async def count(conn: Annotated[psycopg.AsyncConnection, Connection("orders")]) -> int:
        ...     cursor = await conn.execute("SELECT count(*) FROM orders")
        ...     return (await cursor.fetchone())[0]
    """
    return _OfType(scope="function", database=name)


@dataclass(frozen=True)
class _OfType(params.Depends):
    """A dependency that is chosen by the type that it annotates.

    For `Depends()` without a dependency FastAPI takes the annotated type as the dependency, by
    `dataclasses.replace`. So that type arrives here, and a dependency takes its place.
    """

    database: str = ""

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()  # not in each version of FastAPI
        annotated: Any = self.dependency
        if annotated is not None:
            chosen = _dependency(get_origin(annotated) or annotated, self.database)
            object.__setattr__(self, "dependency", chosen)


@cache  # the same for the same database: so FastAPI calls it once for each request
def _dependency(annotated: Any, name: str) -> Callable[[HTTPConnection], AsyncIterator[Any]]:
    if annotated is psycopg.AsyncConnection:

        async def connection(request: HTTPConnection) -> AsyncIterator[Any]:
            registry, code = _asked_by(request)
            async with checkout(registry, name, ASYNC, code) as conn:
                yield conn

    elif annotated is psycopg.Connection:

        async def connection(request: HTTPConnection) -> AsyncIterator[Any]:
            registry, code = _asked_by(request)
            block = checkout(registry, name, SYNC, code)
            conn = await _in_a_thread(block.__enter__)
            try:
                yield conn
            except BaseException as error:
                await _leave(block, type(error), error, error.__traceback__)
                raise
            await _leave(block)

    else:
        raise TypeError(
            f'Connection("{name}") gives a psycopg.AsyncConnection or a psycopg.Connection, '
            f"not {annotated!r}: "
            f'write Annotated[psycopg.AsyncConnection, Connection("{name}")]'
        )
    return connection


async def _in_a_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that may wait for a connection, or gives one back.

    The threads of FastAPI are limited, by default to 40 for all requests. If requests waited in
    them for connections, those that have one would get no thread to end in. Each call counts by
    itself instead.
    """
    return await to_thread.run_sync(function, *arguments, limiter=CapacityLimiter(1))


async def _leave(block: Any, *exc_info: Any) -> None:
    """Leave a block, also that of a cancelled request, which older versions of FastAPI cancel again."""
    with CancelScope(shield=True):
        await _in_a_thread(block.__exit__, *exc_info)


def _asked_by(request: HTTPConnection) -> tuple[Registry, CodeType | None]:
    """Return the registry of the application, and the code of the endpoint.

    Raises:
        RuntimeError: there is no registry, or the endpoint would use a connection after its return.
    """
    endpoint = unwrap(request.scope["endpoint"]) if "endpoint" in request.scope else None
    if isasyncgenfunction(endpoint) or isgeneratorfunction(endpoint):
        raise RuntimeError(
            f"{endpoint.__qualname__} is a generator: it runs while its response is sent, when a"
            " Connection() is given back already; open a block in it:"
            ' async with request.state.pgmonkey.get("orders") as conn:'
        )
    try:
        registry: Registry = request.state.pgmonkey
    except AttributeError:
        raise RuntimeError(
            'the application has no registry: write FastAPI(lifespan=lifespan("registry.d")); '
            "in tests, a TestClient begins the lifespan as a context manager: with TestClient(app)"
        ) from None
    return registry, getattr(endpoint, "__code__", None)
