"""The soak: rotations without end under load, while backends and the server itself are killed."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Self

import psycopg
import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume

ROTATIONS: Final = int(os.environ.get("SOAK_ROTATIONS", "100"))
WORKERS: Final = 16
POOL_SIZE: Final = 6
#: One backend of ours is terminated after so many rotations.
TERMINATE_EVERY: Final = 10

INSERT: Final = "INSERT INTO done VALUES (%s)"


@dataclass
class Load:
    """What the clients did and met."""

    stop: threading.Event = field(default_factory=threading.Event)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    committed: list[int] = field(default_factory=list)
    #: How many of them came through the async pool.
    through_async: int = 0
    #: Transactions that were cut, by what was raised. Whether their commit arrived is not known.
    cut: list[tuple[int, str]] = field(default_factory=list)
    #: Everything else that was raised.
    errors: list[BaseException] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def failed(self, number: int, error: BaseException, connection: Any) -> None:
        """Note an error: of a transaction on a connection that was killed, or any other."""
        if connection is not None and isinstance(error, psycopg.OperationalError):
            self.cut.append((number, error.sqlstate or "connection lost"))
        else:
            self.errors.append(error)


def work(handle: Any, load: Load) -> None:
    while not load.stop.is_set():
        number, connection = next(load.numbers), None
        began = time.perf_counter()
        try:
            with handle as connection:
                load.waits.append(time.perf_counter() - began)
                connection.execute(INSERT, [number])
                connection.execute("SELECT pg_sleep(0.002)")
        except BaseException as error:
            load.failed(number, error, connection)
        else:
            load.committed.append(number)


async def work_async(handle: Any, load: Load) -> None:
    while not load.stop.is_set():
        number, connection = next(load.numbers), None
        began = time.perf_counter()
        try:
            async with handle as connection:
                load.waits.append(time.perf_counter() - began)
                await connection.execute(INSERT, [number])
                await connection.execute("SELECT pg_sleep(0.002)")
        except BaseException as error:
            load.failed(number, error, connection)
        else:
            load.committed.append(number)
            load.through_async += 1


class Clients:
    """16 threads on a pool and 16 tasks on an async pool, until the block ends."""

    def __init__(self, registry: Registry, load: Load) -> None:
        self._load = load
        orders: Any = registry.get("orders")
        events: Any = registry.get("events")

        async def main() -> None:
            await asyncio.gather(*(work_async(events, load) for _ in range(WORKERS)))
            await events.close()

        self._threads = [threading.Thread(target=work, args=(orders, load)) for _ in range(WORKERS)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(main())))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._load.stop.set()
        for thread in self._threads:
            thread.join()


class Peak:
    """Count our sessions all the time, as another role; a restart of the server is no reason to stop."""

    def __init__(self, database: TemporaryDatabase) -> None:
        self._database = database
        self._stop = threading.Event()
        self.highest: Counter[str] = Counter()
        self.samples = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._database.server.connect() as connection:
                    connection.autocommit = True
                    while not self._stop.wait(0.002):
                        self._sample(connection)
            except psycopg.OperationalError:
                self._stop.wait(0.01)  # the server is being restarted

    def _sample(self, connection: psycopg.Connection[Any]) -> None:
        rows = connection.execute(
            "SELECT application_name, count(*) FROM pg_stat_activity WHERE usename = %s GROUP BY 1",
            [self._database.user],
        ).fetchall()
        self.samples += 1
        for name, number in rows:
            self.highest[name] = max(self.highest[name], number)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()


def wait_for_commits(load: Load) -> None:
    """Wait until both pools have committed since: what was killed is made good."""
    through_async = load.through_async
    through_sync = len(load.committed) - through_async
    eventually(
        lambda: (
            load.through_async > through_async
            and len(load.committed) - load.through_async > through_sync
        ),
        15,
        "both pools go on",
    )


def settled(registry: Registry, version: int) -> bool:
    """Tell whether both databases run at least this version of their files."""
    return all(
        one.version >= version and not one.stale and one.last_reload == "applied"
        for one in registry.status().databases
    )


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@pytest.mark.slow
@pytest.mark.timeout(120 + 2 * ROTATIONS)
def test_rotations_under_load_lose_no_commit_while_backends_and_the_server_are_killed(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each rotation revokes the old password at once; only what was in flight on a killed session fails.

    `make soak` does 1,000 of them, `make test` 100; SOAK_ROTATIONS sets another number.
    """
    database.execute("CREATE TABLE public.done (id int PRIMARY KEY)")
    database.execute(f'GRANT ALL ON public.done TO "{database.user}"')
    sizes = {"min_size": 1, "max_size": POOL_SIZE}
    for name, kind in (("orders", "pool"), ("events", "async_pool")):
        registry_dir.declare(
            name,
            database,
            kind,
            volume=volume,
            connection={"application_name": name},
            **{f"{kind}_settings": sizes},
        )
    choose = random.Random(4)
    load, in_force = Load(), []
    killed = 0
    with Registry(registry_dir, metrics=None) as registry, Peak(database) as peak:
        with Clients(registry, load):
            eventually(lambda: len(load.committed) > 4 * WORKERS, 30, "the load is on")
            for number in range(1, ROTATIONS + 1):
                database.rotate()
                began = time.perf_counter()
                write_credentials(volume, database)
                eventually(lambda number=number: settled(registry, number + 1), 30, "in force")
                in_force.append(time.perf_counter() - began)
                if number % TERMINATE_EVERY == 0:
                    backends = [one["pid"] for one in database.backends()]
                    if backends:
                        killed += 1
                        database.execute("SELECT pg_terminate_backend(%s)", choose.choice(backends))
                        wait_for_commits(load)
                if number == ROTATIONS // 2:
                    killed += len(database.backends()) + 2
                    database.server.restart("immediate")
                    wait_for_commits(load)
            wait_for_commits(load)
        assert registry.wait_drained(timeout=10)
        statuses = [pool for one in registry.status().databases for pool in one.pools]

    rows = {row[0] for row in database.execute("SELECT id FROM public.done")}
    lost = set(load.committed) - rows
    unknown = {number for number, _ in load.cut}
    kinds = Counter(kind for _, kind in load.cut)
    swaps = [event["duration"] for event in events.named("database.swapped")]
    figures = (
        f"\nrotations                {ROTATIONS}"
        f"\ncommits                  {len(load.committed)}, lost {len(lost)}"
        f"\nkilled in flight         {dict(kinds)}"
        f"\nother errors             {dict(Counter(type(one).__name__ for one in load.errors))}"
        f"\npeak connections         {dict(peak.highest)}, each pool has {POOL_SIZE}"
        f"\ncheckout p50, p99        {quantile(load.waits, 0.5) * 1e3:.1f}, "
        f"{quantile(load.waits, 0.99) * 1e3:.1f} ms"
        f"\nfile to force p50, p99   {quantile(in_force, 0.5) * 1e3:.0f}, "
        f"{quantile(in_force, 0.99) * 1e3:.0f} ms"
        f"\nswaps                    {len(swaps)}, median {statistics.median(swaps) * 1e3:.2f} ms, "
        f"longest {max(swaps) * 1e3:.0f} ms"
    )
    if "SOAK_ROTATIONS" in os.environ:
        with capsys.disabled():
            print(figures)

    assert load.errors == [], figures
    assert lost == set(), figures
    assert rows - set(load.committed) <= unknown, "nothing was written twice, or by nobody"
    assert len(load.cut) <= killed, figures
    assert peak.samples > ROTATIONS
    assert all(number <= POOL_SIZE + 1 for number in peak.highest.values()), figures
    assert len(swaps) >= ROTATIONS
    assert all(pool.used == pool.waiting == pool.retired == 0 for pool in statuses)
    assert "config.rejected" not in events.names
