"""Transactions of SQLAlchemy on an engine of a registry, and on one with SQLAlchemy's own pool.

A borrow alone, which is work of this process, and a session with one INSERT and its COMMIT. With
`pool_pre_ping` SQLAlchemy's pool finds dead connections, as pgmonkey does without being told to.
`instructions` counts the same where the machine is busy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from time import process_time
from typing import Any

import sqlalchemy
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as create_theirs_async
from sqlalchemy.orm import Session

from benchmarks.comparison import Race, Result
from benchmarks.setting import setting
from pgmonkey import Registry
from pgmonkey.contrib.sqlalchemy import create_async_engine, create_engine

POOL = 4
BORROWS = 200
SESSIONS = 20
ROUNDS = 91  # short ones: what disturbs the machine lasts longer than a round
BAR = 1.05

INSERT = text("INSERT INTO requests VALUES (:number)")
OURS, THEIRS, PINGED = "pgmonkey", "QueuePool", "QueuePool with pool_pre_ping"


def run() -> list[Result]:
    """Compare engines of `pgmonkey.contrib.sqlalchemy` with those of SQLAlchemy itself."""
    logging.getLogger("pgmonkey").addHandler(logging.NullHandler())
    with setting(synchronous_commit="off") as place:
        place.server.execute("CREATE TABLE requests (number int)")
        place.server.execute("GRANT ALL ON requests TO app")
        place.declare("orders", "pool", size=POOL, min_size=POOL)
        arguments = place.arguments
        url = URL.create(
            "postgresql+psycopg",
            arguments["user"],
            arguments["password"],
            arguments["host"],
            arguments["port"],
            arguments["dbname"],
        )
        with Registry(place.directory, watch=False, metrics=None) as registry:
            results = list(_sync(registry, url))
            with asyncio.Runner() as runner:
                return [*results, *_async(registry, url, runner)]


def _sync(registry: Registry, url: URL) -> Iterator[Result]:
    engines = {
        OURS: create_engine(registry["orders"]),
        THEIRS: sqlalchemy.create_engine(url, pool_size=POOL),
        PINGED: sqlalchemy.create_engine(url, pool_size=POOL, pool_pre_ping=True),
    }

    def borrow(engine: sqlalchemy.Engine) -> None:
        for _ in range(BORROWS):
            with engine.connect():
                pass

    def transact(engine: sqlalchemy.Engine) -> None:
        for number in range(SESSIONS):
            with Session(engine) as session, session.begin():
                session.execute(INSERT, {"number": number})

    yield from _raced("SQLAlchemy", engines, borrow, transact)
    for engine in engines.values():
        engine.dispose()


def _async(registry: Registry, url: URL, runner: asyncio.Runner) -> Iterator[Result]:
    engines = {
        OURS: create_async_engine(registry.get("orders", "async_pool")),
        THEIRS: create_theirs_async(url, pool_size=POOL),
        PINGED: create_theirs_async(url, pool_size=POOL, pool_pre_ping=True),
    }

    async def borrow(engine: AsyncEngine) -> None:
        for _ in range(BORROWS):
            async with engine.connect():
                pass

    async def transact(engine: AsyncEngine) -> None:
        for number in range(SESSIONS):
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(INSERT, {"number": number})

    yield from _raced(
        "SQLAlchemy, async",
        engines,
        lambda engine: runner.run(borrow(engine)),
        lambda engine: runner.run(transact(engine)),
    )
    for engine in engines.values():
        runner.run(engine.dispose())


def _raced(title: str, engines: dict[str, Any], borrow: Any, transact: Any) -> Iterator[Result]:
    for what, work, operations, bar in (
        ("a borrow", borrow, BORROWS, None),
        ("a session with an INSERT", transact, SESSIONS, BAR),
    ):
        race = Race(
            {name: lambda work=work, one=one: work(one) for name, one in engines.items()},
            rounds=ROUNDS,
            operations=operations,
            clock=process_time,
        )
        print(race.table(f"{title}: {what}", THEIRS))
        yield race.result(f"{title}: {what} / QueuePool", OURS, THEIRS, bar=bar)
