"""A primary that moves, as Patroni moves it: by a switchover, and because the leader died."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

import psycopg
import pytest

from pgmonkey import Registry
from tests.kit import Canary
from tests.kit.eventually import eventually
from tests.kit.patroni import PatroniCluster
from tests.kit.registry_dir import RegistryDirectory

THREADS: Final = 8
TASKS: Final = 8
#: Seconds within which the first transaction succeeds after a primary accepts writes: the
#: promise, and what a machine that does other things too may add.
RECOVERY: Final = 2.0
GRACE: Final = 1.0
#: How exactly the watcher knows when a primary accepted writes.
STEP: Final = 0.05


@dataclass
class Load:
    """What the clients did: when each transaction began and ended, and what was raised."""

    stop: threading.Event = field(default_factory=threading.Event)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    committed: list[tuple[float, float]] = field(default_factory=list)
    failed: list[tuple[float, float, BaseException]] = field(default_factory=list)


INSERT: Final = "INSERT INTO done VALUES (%s)"


def work(handle: Any, load: Load) -> None:
    while not load.stop.is_set():
        began = time.monotonic()
        try:
            with handle.connection(timeout=2) as connection:
                connection.execute(INSERT, [next(load.numbers)])
        except psycopg.Error as error:
            load.failed.append((began, time.monotonic(), error))
        else:
            load.committed.append((began, time.monotonic()))
        load.stop.wait(0.01)


async def work_async(handle: Any, load: Load) -> None:
    while not load.stop.is_set():
        began = time.monotonic()
        try:
            async with handle.connection(timeout=2) as connection:
                await connection.execute(INSERT, [next(load.numbers)])
        except psycopg.Error as error:
            load.failed.append((began, time.monotonic(), error))
        else:
            load.committed.append((began, time.monotonic()))
        await asyncio.sleep(0.01)


class Watcher:
    """Know when a primary accepted writes: ask both servers all the time, each on its own."""

    def __init__(self, places: list[dict[str, Any]]) -> None:
        self._stop = threading.Event()
        self.written: list[list[float]] = [[] for _ in places]
        self._threads = [
            threading.Thread(target=self._watch, args=(place, times))
            for place, times in zip(places, self.written, strict=True)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, place: dict[str, Any], times: list[float]) -> None:
        while not self._stop.wait(STEP):
            with suppress(psycopg.Error), psycopg.connect(**place, autocommit=True) as connection:
                while not self._stop.wait(STEP):
                    connection.execute("INSERT INTO watched VALUES (1)")
                    times.append(time.monotonic())

    def gap(self, began: float, ended: float) -> tuple[float, float]:
        """Return between which moments of this time no server accepted a write."""
        moments = sorted(itertools.chain.from_iterable(self.written))
        return max(
            (
                (earlier, later)
                for earlier, later in itertools.pairwise(moments)
                if later > began and earlier < ended
            ),
            key=lambda one: one[1] - one[0],
        )


@pytest.fixture
def cluster(canary: Canary) -> Iterator[PatroniCluster]:
    """Two nodes, of which Patroni makes one the primary."""
    with PatroniCluster(canary.secret()) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_primary_that_moves_costs_only_what_was_in_flight(
    cluster: PatroniCluster, registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """A switchover and a killed leader under load, sync and async.

    Errors come only from transactions that were in flight, or that began while no primary
    existed; and the first one succeeds within two seconds after there is one again.
    """
    password = canary.secret()
    cluster.execute(f"CREATE ROLE app LOGIN PASSWORD '{password}'")
    cluster.execute("CREATE DATABASE orders OWNER app")
    for table in ("done", "watched"):
        cluster.execute(f"CREATE TABLE {table} (id bigint)", dbname="orders")
        cluster.execute(f"GRANT ALL ON {table} TO app", dbname="orders")
    settings = {
        "host": ",".join(cluster.host for _ in cluster.nodes),
        "port": ",".join(str(node.port) for node in cluster.nodes),
        "dbname": "orders",
        "user": "app",
        "password": password,
        "connect_timeout": 2,
        "target_session_attrs": "read-write",
    }
    for name, kind in (("orders", "pool"), ("events", "async_pool")):
        registry_dir.write(name, {"connection_type": kind, "connection_settings": settings})
    loads = {"sync": Load(), "async": Load()}
    places = [cluster.parameters(node, "app", password, "orders") for node in cluster.nodes]

    with Registry(registry_dir, metrics=None) as registry, Watcher(places) as watcher:
        orders: Any = registry.get("orders")
        events: Any = registry.get("events")

        async def tasks() -> None:
            await asyncio.gather(*(work_async(events, loads["async"]) for _ in range(TASKS)))
            await events.close()

        threads = [
            threading.Thread(target=work, args=(orders, loads["sync"])) for _ in range(THREADS)
        ]
        threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
        for thread in threads:
            thread.start()
        moves: dict[str, tuple[float, float]] = {}
        try:
            for name, move in (
                ("switchover", cluster.switch_over),
                ("killed leader", cluster.kill_leader),
            ):
                eventually(cluster.is_whole, 90, f"both nodes run\n{cluster.log_text()}")
                began = time.monotonic()
                move()
                eventually(lambda: cluster.leader() is not None, 90, "there is a primary")
                back = time.monotonic()
                eventually(
                    lambda back=back: all(
                        load.committed and load.committed[-1][0] > back for load in loads.values()
                    ),
                    30,
                    "clients write again",
                )
                moves[name] = (began, time.monotonic())
        finally:
            for load in loads.values():
                load.stop.set()
            for thread in threads:
                thread.join()

    gaps = {name: watcher.gap(*moment) for name, moment in moves.items()}
    for name, (down, up) in gaps.items():
        for side, load in loads.items():
            first = min(ended for _, ended in load.committed if ended >= up - STEP)
            failed = sum(
                ended >= down - STEP and began <= up + STEP for began, ended, _ in load.failed
            )
            print(
                f"{name}, {side}: no primary for {up - down:.2f} s, {failed} transactions failed,"
                f" served {max(0.0, first - up):.2f} s after its return"
            )
            assert first - up <= RECOVERY + GRACE, (name, side)
    for load in loads.values():
        stray = [
            (began, ended, error)
            for began, ended, error in load.failed
            if not any(ended >= down - STEP and began <= up + STEP for down, up in gaps.values())
        ]
        assert stray == []
