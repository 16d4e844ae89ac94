"""What a checkout costs without a query, and `get`: pure work of this process."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from time import monotonic, sleep, thread_time
from typing import Any

import prometheus_client
import sqlalchemy
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from benchmarks.comparison import Race, Result, duration
from benchmarks.old_version import OldVersion
from benchmarks.setting import Setting, setting
from pgmonkey import Registry

CHECKOUTS = 500
GETS = 20_000
ROUNDS = 60
LEAKS = "leak_detection: 30s"
#: Handles, or connections of psycopg_pool, that take turns, and the seconds that each rests: longer
#: than 0.1, so every checkout looks at its socket.
TURNS = 50
REST = 0.12


def run() -> list[Result]:
    """Compare the hot path with the raw pool's, and with others'."""
    with setting(max_connections="300") as place:
        place.declare("orders", "pool")
        place.declare("events", "async_pool")
        for number in range(TURNS):
            place.declare(f"watched-{number}", "pool", more=LEAKS)
            place.declare(f"watched-events-{number}", "async_pool", more=LEAKS)
        metrics = prometheus_client.CollectorRegistry()
        with Registry(place.directory, watch=False, metrics=metrics) as registry:
            return [
                _gets(registry),
                *_sync(registry, place),
                _rested(registry, place.arguments),
                *_async(registry, place.arguments),
            ]


def _gets(registry: Registry) -> Result:
    plain = {"orders": registry.get("orders")}

    # As `timeit` does it: one statement in a loop. The loop costs both sides the same, so the
    # figure without it is printed too.
    def get() -> None:
        for _ in range(GETS):
            registry.get("orders")

    def look_up() -> None:
        for _ in range(GETS):
            plain["orders"]

    def nothing() -> None:
        for _ in range(GETS):
            pass

    race = Race(
        {"get": get, "dict": look_up, "loop": nothing},
        rounds=ROUNDS,
        operations=GETS,
        clock=thread_time,
    )
    alone = {name: statistics.median(race.seconds[name]) for name in race.seconds}
    print(
        f"\n`registry.get(name)` {duration(alone['get'] - alone['loop'])},"
        f" a dict lookup {duration(alone['dict'] - alone['loop'])},"
        f" the loop around each {duration(alone['loop'])}"
    )
    return race.result(
        "`registry.get(name)` / plain dict lookup, as `timeit` does it", "get", "dict", bar=3.5
    )


def instrumentation() -> Callable[[], None]:
    """Return the statements of a checkout that measure it, alone: clocks, sums, who holds what.

    The one row that needs internals: nothing switches them off.
    """
    from pgmonkey.pool.stats import FOLD_AT, Stats

    stats = Stats()
    record, records, checkouts = stats.records.extend, stats.records, set[Any]()
    add, discard = checkouts.add, checkouts.discard

    def measure() -> None:
        for _ in range(CHECKOUTS):
            began = monotonic()
            add(stats)
            now = monotonic()
            discard(stats)
            record((began - began, now - began))
            if len(records) >= FOLD_AT:
                stats.fold()

    return measure


def _sync(registry: Registry, place: Setting) -> list[Result]:
    handle = registry.get("orders")
    engine = sqlalchemy.create_engine(
        sqlalchemy.URL.create(
            "postgresql+psycopg",
            "app",
            place.arguments["password"],
            place.server.host,
            place.server.port,
            "postgres",
        ),
        pool_size=1,
        max_overflow=0,
    )
    with ExitStack() as stack:
        pool = stack.enter_context(
            ConnectionPool(kwargs=place.arguments, min_size=1, max_size=1, open=True)
        )
        old = stack.enter_context(OldVersion(place.directory / "orders.yaml"))
        stack.callback(engine.dispose)

        def ours() -> None:
            for _ in range(CHECKOUTS):
                with handle:
                    pass

        def raw() -> None:
            for _ in range(CHECKOUTS):
                with pool.connection():
                    pass

        def alchemy() -> None:
            for _ in range(CHECKOUTS):
                with engine.connect():
                    pass

        ways: dict[str, Callable[[], object]] = {
            "pgmonkey": ours,
            "psycopg_pool": raw,
            "SQLAlchemy": alchemy,
            "what measures it, alone": instrumentation(),
        }
        race = Race(ways, rounds=ROUNDS, operations=CHECKOUTS, clock=thread_time)
        print(race.table("A checkout without a query, sync", "psycopg_pool"))
        if old:
            against = Race(
                {"psycopg_pool": raw, "pgmonkey 4.0": lambda: old("checkout", CHECKOUTS)},
                rounds=ROUNDS // 2,
                operations=CHECKOUTS,
            )
            print(against.table("The same with pgmonkey 4.0, by the wall clock", "psycopg_pool"))
        return [
            race.result(
                "checkout and return, sync / psycopg_pool", "pgmonkey", "psycopg_pool", bar=0.85
            ),
            race.result(
                "instrumentation / a checkout of psycopg_pool",
                "what measures it, alone",
                "psycopg_pool",
                bar=0.12,
            ),
        ]


def _rested(registry: Registry, arguments: dict[str, Any]) -> Result:
    watched = [registry.get(f"watched-{number}") for number in range(TURNS)]
    with ConnectionPool(kwargs=arguments, min_size=TURNS, max_size=TURNS, open=True) as pool:
        pool.wait()
        for handle in watched:
            handle.open()

        def ours() -> None:
            sleep(REST)
            for handle in watched:
                with handle:
                    pass

        def raw() -> None:
            sleep(REST)
            for _ in range(TURNS):
                with pool.connection():
                    pass

        race = Race(
            {"pgmonkey": ours, "psycopg_pool": raw},
            rounds=ROUNDS,
            operations=TURNS,
            clock=thread_time,
        )
    for handle in watched:
        handle.close()
    return race.result(
        "the same with every liveness poll and leak detection", "pgmonkey", "psycopg_pool", bar=1.05
    )


def _async(registry: Registry, arguments: dict[str, Any]) -> list[Result]:
    loop = asyncio.new_event_loop()
    handle = registry.get("events")
    watched = [registry.get(f"watched-events-{number}") for number in range(TURNS)]

    async def open_pool(size: int) -> AsyncConnectionPool[Any]:
        pool = AsyncConnectionPool(kwargs=arguments, min_size=size, max_size=size, open=False)
        await pool.open(wait=True)
        return pool

    async def open_ours() -> None:
        for one in (handle, *watched):
            await one

    single, several = (loop.run_until_complete(open_pool(size)) for size in (1, TURNS))
    loop.run_until_complete(open_ours())

    async def ours() -> None:
        for _ in range(CHECKOUTS):
            async with handle:
                pass

    async def raw() -> None:
        for _ in range(CHECKOUTS):
            async with single.connection():
                pass

    async def ours_rested() -> None:
        await asyncio.sleep(REST)
        for one in watched:
            async with one:
                pass

    async def raw_rested() -> None:
        await asyncio.sleep(REST)
        for _ in range(TURNS):
            async with several.connection():
                pass

    def on_loop(act: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        return lambda: loop.run_until_complete(act())

    try:
        race = Race(
            {"pgmonkey": on_loop(ours), "psycopg_pool": on_loop(raw)},
            rounds=ROUNDS,
            operations=CHECKOUTS,
            clock=thread_time,
        )
        rested = Race(
            {"pgmonkey": on_loop(ours_rested), "psycopg_pool": on_loop(raw_rested)},
            rounds=ROUNDS,
            operations=TURNS,
            clock=thread_time,
        )
    finally:
        for opened in (handle, *watched):
            loop.run_until_complete(opened.close())
        for pool in (single, several):
            loop.run_until_complete(pool.close())
        loop.close()
    print(race.table("A checkout without a query, async", "psycopg_pool"))
    return [
        race.result(
            "checkout and return, async / psycopg_pool", "pgmonkey", "psycopg_pool", bar=0.75
        ),
        rested.result(
            "the same with every liveness poll and leak detection, async",
            "pgmonkey",
            "psycopg_pool",
            bar=1.05,
        ),
    ]
