"""Load on a registry while it reloads: workers, what they saw, and how many connections there were."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.pool.side import Client

WORKERS = 16


@dataclass
class Load:
    """Collect what the workers of a test did and saw."""

    stop: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    #: The application_name that every checkout which starts now must see.
    expected: str = ""
    outdated: list[tuple[str, str]] = field(default_factory=list)

    def goes_on(self) -> None:
        """Wait until each worker could commit once more."""
        done = len(self.committed)
        eventually(lambda: len(self.committed) > done + WORKERS, 30, "the load goes on")

    def check(self, expected: str, seen: str) -> None:
        """Note a checkout that saw an older version than was reported when it began."""
        if expected and int(seen.removeprefix("app-")) < int(expected.removeprefix("app-")):
            self.outdated.append((expected, seen))


#: Seconds between two samples: no connection is made and closed within so little.
_BETWEEN_SAMPLES = 0.002


class Peak:
    """Sample, as another role, how many server connections a database has: the most and the fewest."""

    def __init__(self, database: TemporaryDatabase) -> None:
        self._database = database
        self._stop = threading.Event()
        self.highest = 0
        self.lowest = 1_000_000
        self.samples = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._database.server.connect() as connection:
            connection.autocommit = True
            while not self._stop.wait(_BETWEEN_SAMPLES):
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE usename = %s",
                    [self._database.user],
                ).fetchone()
                assert row is not None
                self.highest = max(self.highest, row[0])
                self.lowest = min(self.lowest, row[0])
                self.samples += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()


def table_of_commits(database: TemporaryDatabase, user: str = "") -> None:
    """Make the table into which the workers write, as the database's user or another one."""
    database.execute("CREATE TABLE public.done (id int)")
    database.execute(f'GRANT ALL ON public.done TO "{user or database.user}"')


@contextmanager
def working(registry: Registry, side: str, seconds: float) -> Iterator[Load]:
    """Let workers commit one transaction after the other, until the block ends; none may fail.

    Args:
        registry: The registry.
        side: `pool` for threads, `async_pool` for tasks.
        seconds: How long a transaction takes.
    """
    load = Load()
    start, finish = (sync_workers if side == "pool" else async_workers)(registry, load, seconds)
    start()
    try:
        yield load
    finally:
        finish()
    assert load.errors == []


STATEMENT = (
    "INSERT INTO done SELECT %s FROM pg_sleep(%s)"
    " RETURNING (SELECT current_setting('application_name'))"
)


def sync_workers(
    registry: Registry, load: Load, seconds: float
) -> tuple[Callable[[], None], Callable[[], None]]:
    handle = registry.get("orders")

    def work() -> None:
        while not load.stop.is_set():
            number = next(load.numbers)
            expected = load.expected
            try:
                with handle as connection:
                    row = connection.execute(STATEMENT, [number, seconds]).fetchone()
            except BaseException as error:
                load.errors.append(error)
            else:
                load.committed.append(number)
                assert row is not None
                load.check(expected, row[0])

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]

    def start() -> None:
        for thread in threads:
            thread.start()

    def finish() -> None:
        load.stop.set()
        for thread in threads:
            thread.join()

    return start, finish


def async_workers(
    registry: Registry, load: Load, seconds: float
) -> tuple[Callable[[], None], Callable[[], None]]:
    handle: Any = registry.get("orders")

    async def work() -> None:
        while not load.stop.is_set():
            number = next(load.numbers)
            expected = load.expected
            try:
                async with handle as connection:
                    cursor = await connection.execute(STATEMENT, [number, seconds])
                    row = await cursor.fetchone()
            except BaseException as error:
                load.errors.append(error)
            else:
                load.committed.append(number)
                load.check(expected, row[0])

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(WORKERS)))
        await handle.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))

    def finish() -> None:
        load.stop.set()
        thread.join()

    return thread.start, finish


@contextmanager
def asking(client: Client) -> Iterator[list[BaseException]]:
    """Let three threads run one transaction after the other until the block ends; give the errors."""
    errors: list[BaseException] = []
    stop = threading.Event()
    done = 0

    def work() -> None:
        nonlocal done
        while not stop.is_set():
            try:
                client.ask("SELECT 1")
            except BaseException as error:
                errors.append(error)
            done += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: done > 10, 10, "the load is on")
        yield errors
        seen = done
        eventually(lambda: done > seen + 10, 10, "the load goes on")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
