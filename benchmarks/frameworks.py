"""Requests of one application in FastAPI and Flask, on pgmonkey and on psycopg_pool.

The application is called as a server calls it, without a network: what is left is the framework, the
checkout, one INSERT and its COMMIT before the response. What a request costs this process decides how
many there are in a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import process_time
from typing import Annotated, Any

import psycopg
from fastapi import Depends, FastAPI
from flask import Flask, g
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from benchmarks.comparison import Race, Result
from benchmarks.setting import setting
from pgmonkey import Registry
from pgmonkey.contrib.fastapi import Connection, lifespan
from pgmonkey.contrib.flask import connection, init_app
from tests.kit.asgi import post

POOL = 4
CLIENTS = 4
REQUESTS = 24
ROUNDS = 201
BAR = 1.05

INSERT = "INSERT INTO requests VALUES (%s)"


def run() -> list[Result]:
    """Compare requests through `pgmonkey.contrib` with those through pools of psycopg_pool."""
    logging.getLogger("pgmonkey").addHandler(logging.NullHandler())
    with setting(synchronous_commit="off") as place:
        place.server.execute("CREATE TABLE requests (number int)")
        place.server.execute("GRANT ALL ON requests TO app")
        place.declare("orders", "pool", size=POOL, min_size=POOL)
        with Registry(place.directory, watch=False, metrics=None) as registry:
            results = _flask(registry, place.arguments)
            with asyncio.Runner() as runner:
                return [*results, *_fastapi(registry, place.arguments, runner)]


def _fastapi(
    registry: Registry, arguments: dict[str, Any], runner: asyncio.Runner
) -> Iterator[Result]:
    ours, theirs = FastAPI(), FastAPI()
    stack = ExitStack()
    sync_pool = stack.enter_context(
        ConnectionPool(kwargs=arguments, min_size=POOL, max_size=POOL, open=True)
    )

    async def open_pool() -> AsyncConnectionPool[Any]:
        pool = AsyncConnectionPool(kwargs=arguments, min_size=POOL, max_size=POOL, open=False)
        await pool.open(wait=True)
        return pool

    pool = runner.run(open_pool())

    async def borrow() -> AsyncIterator[Any]:
        async with pool.connection() as conn:
            yield conn

    def borrow_in_a_thread() -> Iterator[Any]:
        with sync_pool.connection() as conn:
            yield conn

    async def add(number: int, conn: Any) -> int:
        await conn.execute(INSERT, [number])
        return number

    def add_in_a_thread(number: int, conn: Any) -> int:
        conn.execute(INSERT, [number])
        return number

    for app, path, function, asked in (
        (ours, "/async", add, Annotated[psycopg.AsyncConnection, Connection("orders")]),
        (ours, "/sync", add_in_a_thread, Annotated[psycopg.Connection, Connection("orders")]),
        (theirs, "/async", add, Annotated[Any, Depends(borrow, scope="function")]),
        (
            theirs,
            "/sync",
            add_in_a_thread,
            Annotated[Any, Depends(borrow_in_a_thread, scope="function")],
        ),
    ):
        function.__annotations__ = {"number": int, "conn": asked, "return": int}
        app.post(path)(function)

    async def begin() -> Any:
        return await lifespan(registry)(ours).__aenter__()

    state = runner.run(begin())
    for path in ("/async", "/sync"):
        race = Race(
            {
                "pgmonkey": lambda path=path: runner.run(_load(ours, path, state)),
                "psycopg_pool": lambda path=path: runner.run(_load(theirs, path, {})),
            },
            rounds=ROUNDS,
            operations=REQUESTS,
            clock=process_time,
        )
        print(race.table(f"A request in FastAPI, {path[1:]}", "psycopg_pool"))
        what = f"request in FastAPI, {path[1:]} / psycopg_pool"
        yield race.result(what, "pgmonkey", "psycopg_pool", bar=BAR)
    runner.run(registry.aclose())
    runner.run(pool.close())
    stack.close()


async def _load(app: FastAPI, path: str, state: Any) -> None:
    def begun(status: int) -> None:
        assert status == 200, status

    async def client(first: int) -> None:
        for number in range(first, REQUESTS, CLIENTS):
            await post(app, path, f"number={number}", state, begun)

    await asyncio.gather(*(client(first) for first in range(CLIENTS)))


def _flask(registry: Registry, arguments: dict[str, Any]) -> list[Result]:
    ours, theirs = Flask("ours"), Flask("theirs")
    init_app(ours, registry)

    @ours.post("/<int:number>")
    def add(number: int) -> str:
        connection("orders").execute(INSERT, [number])
        return ""

    with ConnectionPool(kwargs=arguments, min_size=POOL, max_size=POOL, open=True) as pool:

        @theirs.post("/<int:number>")
        def add_there(number: int) -> str:
            g.block = pool.connection()
            g.block.__enter__().execute(INSERT, [number])
            return ""

        @theirs.after_request
        def commit(response: Any) -> Any:
            g.pop("block").__exit__(None, None, None)
            return response

        with ThreadPoolExecutor(CLIENTS) as threads:

            def load(app: Flask) -> None:
                client = app.test_client()
                list(threads.map(lambda n: client.post(f"/{n}").close(), range(REQUESTS)))

            race = Race(
                {"pgmonkey": lambda: load(ours), "psycopg_pool": lambda: load(theirs)},
                rounds=ROUNDS,
                operations=REQUESTS,
                clock=process_time,
            )
        print(race.table("A request in Flask, threads", "psycopg_pool"))
        return [race.result("request in Flask / psycopg_pool", "pgmonkey", "psycopg_pool", bar=BAR)]
