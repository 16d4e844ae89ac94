"""Clients that time out at once: how long after its deadline the last one gets its error."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import perf_counter
from typing import Any

from psycopg_pool import AsyncConnectionPool, PoolTimeout

from benchmarks.comparison import Result, duration, number
from benchmarks.setting import Setting, setting
from pgmonkey import Registry

CLIENTS = (1000, 4000)
TIMEOUT = 2.0
ROUNDS = 5
#: Seconds that the last of 4,000 may be late.
BAR = 0.2

Borrow = Callable[[], AbstractAsyncContextManager[Any]]


def run() -> list[Result]:
    """Let thousands of tasks wait for the one connection of a pool, which is held."""
    with setting() as place:
        place.declare("events", "async_pool")
        return asyncio.run(_compare(place))


async def _compare(place: Setting) -> list[Result]:
    late: dict[tuple[int, str], list[float]] = {}
    with Registry(place.directory, watch=False, metrics=None) as registry:
        async with (
            _ours(registry.get("events")) as ours,
            _raw(place.arguments) as raw,
        ):
            for each in range(ROUNDS + 1):
                for clients in CLIENTS:
                    for name, borrow in (("pgmonkey", ours), ("psycopg_pool", raw)):
                        seconds = await _last(borrow, clients)
                        if each:  # the first one warms up
                            late.setdefault((clients, name), []).append(seconds)
    print(f"\nTasks that wait {TIMEOUT:g} s for a held connection: how late the last error is\n")
    print("| tasks | pgmonkey | psycopg_pool |", "| --- | --- | --- |", sep="\n")
    for clients in CLIENTS:
        medians = [
            duration(statistics.median(late[clients, name]))
            for name in ("pgmonkey", "psycopg_pool")
        ]
        print(f"| {clients:,} | {' | '.join(medians)} |")
    most = CLIENTS[-1]
    what = f"{most:,} clients that time out at once: how late the last one is"
    return [
        number(what, late[most, "pgmonkey"], "s", bar=BAR),
        number(f"{what}, psycopg_pool", late[most, "psycopg_pool"], "s"),
    ]


@asynccontextmanager
async def _ours(handle: Any) -> AsyncIterator[Borrow]:
    async with handle:  # held
        yield lambda: handle.connection(timeout=TIMEOUT)
    await handle.close()


@asynccontextmanager
async def _raw(arguments: dict[str, Any]) -> AsyncIterator[Borrow]:
    async with (
        AsyncConnectionPool(kwargs=arguments, min_size=1, max_size=1, open=False) as pool,
        pool.connection(),  # held
    ):
        yield lambda: pool.connection(timeout=TIMEOUT)


async def _last(borrow: Borrow, clients: int) -> float:
    """Return how many seconds after its own deadline the latest client got its error."""

    async def client() -> float:
        began = perf_counter()
        try:
            async with borrow():
                raise AssertionError("the connection is held")
        except PoolTimeout:
            return perf_counter() - began - TIMEOUT

    return max(await asyncio.gather(*(client() for _ in range(clients))))
