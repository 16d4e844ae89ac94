"""What a checkout costs without a query, and `get`: pure work of this process."""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic, thread_time
from typing import Any

import sqlalchemy
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from benchmarks.comparison import Race, Result, duration
from benchmarks.old_version import OldVersion
from benchmarks.setting import Setting, setting
from pgmonkey import Registry
from pgmonkey.pool import async_handle, lifecycle
from pgmonkey.pool import handle as sync_handle
from pgmonkey.pool.usage import FOLD_AT, Usage

CHECKOUTS = 500
GETS = 20_000
ROUNDS = 60
LEAKS = "leak_detection: 30s"


def run() -> list[Result]:
    """Compare the hot path with the raw pool's, and with others'."""
    with setting() as place:
        place.declare("orders", "pool")
        place.declare("watched", "pool", more=LEAKS)
        place.declare("events", "async_pool")
        place.declare("watched_events", "async_pool", more=LEAKS)
        with Registry(place.directory, watch=False, metrics=None) as registry:
            return [
                _gets(registry),
                *_sync(registry, place),
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
    """Return the statements of a checkout that measure it, alone: clocks, sums, who holds what."""
    usage = Usage()
    record, records, checkouts = usage.records.extend, usage.records, set[Any]()
    add, discard = checkouts.add, checkouts.discard
    seen: deque[float] = deque(maxlen=1)

    def measure() -> None:
        for _ in range(CHECKOUTS):
            began = monotonic()
            add(usage)
            now = monotonic()
            discard(usage)
            record((began - began, now - began))
            if len(records) >= FOLD_AT:
                usage.fold()
        seen.append(usage.durations()[0].sum)

    return measure


@contextmanager
def every_poll() -> Iterator[None]:
    """Let every checkout look at the socket, also of a connection that just came back."""
    modules = (sync_handle, async_handle, lifecycle)
    fresh = [module.FRESH for module in modules]
    for module in modules:
        module.FRESH = -1.0  # type: ignore[misc]  # a constant, but for this measurement
    try:
        yield
    finally:
        for module, value in zip(modules, fresh, strict=True):
            module.FRESH = value  # type: ignore[misc]  # as above


def _sync(registry: Registry, place: Setting) -> list[Result]:
    handle, watched = registry.get("orders"), registry.get("watched")
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

        def polled() -> None:
            with every_poll():
                for _ in range(CHECKOUTS):
                    with watched:
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
            "pgmonkey, every poll and leak detection": polled,
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
                "the same with every liveness poll and leak detection",
                "pgmonkey, every poll and leak detection",
                "psycopg_pool",
                bar=1.05,
            ),
            race.result(
                "instrumentation / a checkout of psycopg_pool",
                "what measures it, alone",
                "psycopg_pool",
                bar=0.12,
            ),
        ]


def _async(registry: Registry, arguments: dict[str, Any]) -> list[Result]:
    loop = asyncio.new_event_loop()
    handle, watched = registry.get("events"), registry.get("watched_events")

    async def open_pool() -> AsyncConnectionPool[Any]:
        pool = AsyncConnectionPool(kwargs=arguments, min_size=1, max_size=1, open=False)
        await pool.open(wait=True)
        await handle
        await watched
        return pool

    pool = loop.run_until_complete(open_pool())

    async def ours() -> None:
        for _ in range(CHECKOUTS):
            async with handle:
                pass

    async def polled() -> None:
        with every_poll():
            for _ in range(CHECKOUTS):
                async with watched:
                    pass

    async def raw() -> None:
        for _ in range(CHECKOUTS):
            async with pool.connection():
                pass

    def on_loop(act: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        return lambda: loop.run_until_complete(act())

    try:
        race = Race(
            {
                "pgmonkey": on_loop(ours),
                "pgmonkey, every poll and leak detection": on_loop(polled),
                "psycopg_pool": on_loop(raw),
            },
            rounds=ROUNDS,
            operations=CHECKOUTS,
            clock=thread_time,
        )
    finally:
        loop.run_until_complete(handle.close())
        loop.run_until_complete(watched.close())
        loop.run_until_complete(pool.close())
        loop.close()
    print(race.table("A checkout without a query, async", "psycopg_pool"))
    return [
        race.result(
            "checkout and return, async / psycopg_pool", "pgmonkey", "psycopg_pool", bar=0.75
        ),
        race.result(
            "the same with every liveness poll and leak detection, async",
            "pgmonkey, every poll and leak detection",
            "psycopg_pool",
            bar=1.05,
        ),
    ]
