"""Checkout and return, and `get`, against psycopg_pool and a plain dictionary."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from benchmarks.comparison import Result, compare
from pgmonkey import Registry
from pgmonkey.embedded_server import EmbeddedServer

CHECKOUTS = 2000
GETS = 100_000

TEXT = """\
connection_type: {type}
connection_settings:
  host: {host}
  port: {port}
  dbname: postgres
  user: app
  password: bench-password
pool_settings: {{min_size: 1, max_size: 1}}
async_pool_settings: {{min_size: 1, max_size: 1}}
"""


def run() -> list[Result]:
    """Compare the hot path with the raw pool's."""
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as name:
        server.create_role("app", "bench-password")
        arguments = {
            "host": server.host,
            "port": server.port,
            "dbname": "postgres",
            "user": "app",
            "password": "bench-password",
        }
        for database, connection_type in (("orders", "pool"), ("events", "async_pool")):
            Path(name, f"{database}.yaml").write_text(
                TEXT.format(type=connection_type, host=server.host, port=server.port),
                encoding="utf-8",
            )
        with Registry(name, watch=False) as registry:
            return [
                *_gets(registry),
                *_sync(registry, arguments),
                *asyncio.run(_async(registry, arguments)),
            ]


def _gets(registry: Registry) -> list[Result]:
    plain = {"orders": registry.get("orders")}

    def get() -> None:
        for _ in range(GETS):
            registry.get("orders")

    def look_up() -> None:
        for _ in range(GETS):
            plain["orders"]

    def nothing() -> None:
        for _ in range(GETS):
            pass

    return [
        compare(
            "`registry.get(name)` / plain dict lookup, loop included",
            get,
            look_up,
            bar=3.5,
            operations=GETS,
        ),
        compare(
            "an empty loop / plain dict lookup, loop included", nothing, look_up, operations=GETS
        ),
    ]


def _sync(registry: Registry, arguments: dict[str, object]) -> list[Result]:
    handle = registry.get("orders")
    with ConnectionPool(kwargs=arguments, min_size=1, max_size=1) as pool:

        def ours() -> None:
            for _ in range(CHECKOUTS):
                with handle:
                    pass

        def raw() -> None:
            for _ in range(CHECKOUTS):
                with pool.connection():
                    pass

        def ours_select() -> None:
            for _ in range(CHECKOUTS // 10):
                with handle as connection:
                    connection.execute("SELECT 1")

        def raw_select() -> None:
            for _ in range(CHECKOUTS // 10):
                with pool.connection() as connection:
                    connection.execute("SELECT 1")

        return [
            compare(
                "checkout and return, sync / psycopg_pool",
                ours,
                raw,
                bar=0.85,
                operations=CHECKOUTS,
            ),
            compare(
                "`SELECT 1`, sync / psycopg_pool",
                ours_select,
                raw_select,
                bar=1.02,
                operations=CHECKOUTS // 10,
            ),
        ]


async def _async(registry: Registry, arguments: dict[str, object]) -> list[Result]:
    handle = registry.get("events")
    async with AsyncConnectionPool(kwargs=arguments, min_size=1, max_size=1) as pool:
        await handle

        async def ours() -> None:
            for _ in range(CHECKOUTS):
                async with handle:
                    pass

        async def raw() -> None:
            for _ in range(CHECKOUTS):
                async with pool.connection():
                    pass

        result = await _compare_async(ours, raw)
        await handle.close()
    return [result]


async def _compare_async(ours: object, raw: object) -> Result:
    """Measure coroutines as `compare` measures functions, on the loop that owns the pools."""
    import random
    import statistics
    from time import perf_counter

    ratios, bases = [], []
    for number in range(16):
        seconds = {}
        for act in random.sample((ours, raw), 2):
            began = perf_counter()
            await act()  # type: ignore[operator]  # both are coroutine functions
            seconds[act] = perf_counter() - began
        if number:
            ratios.append(seconds[ours] / seconds[raw])
            bases.append(seconds[raw] / CHECKOUTS)
    first, median, third = statistics.quantiles(ratios, n=4)
    return Result(
        "checkout and return, async / psycopg_pool",
        median,
        (first, third),
        0.75,
        statistics.median(bases),
    )
