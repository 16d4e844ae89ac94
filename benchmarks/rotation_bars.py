"""The bars of a rotation: no failed query, one connection more than the pool, and who waits how long."""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.comparison import Result, number
from benchmarks.rotation_peak import Peak
from pgmonkey import Registry
from tests.kit.server import PostgresServer

WORKERS = 16
SIZE = 10
SHORT, LONG = 0.002, 0.5
#: Rotations one right after the other, with short and with long transactions. `make soak` does more.
SWAPS = {
    SHORT: int(os.environ.get("BENCH_ROTATIONS", "200")),
    LONG: int(os.environ.get("BENCH_ROTATIONS", "200")) // 10,
}
#: Runs of rotations with seconds of rest before each; sync and async take turns.
CALM_RUNS, CALM_SWAPS, CALM = 5, 12, 0.8
#: Seconds before and after a rotation that count as near it.
NEAR = 0.15
#: The p99 of a wait near a rotation may be so many times that of the others, or seconds more.
TIMES, MORE = 1.5, 0.0035
#: Seconds that the rotation of a pool may take.
LONGEST = 1.0

FILE = """\
connection_type: {type}
connection_settings:
  host: {host}
  port: '{port}'
  dbname: postgres
  user: app
  password: {{from_file: {directory}/password}}
  application_name: version-{version}
{type}_settings: {{min_size: 1, max_size: {size}}}
"""


@dataclass
class Load:
    """What the workers have done: when each checkout began, and how long it waited."""

    seconds: float
    stop: threading.Event = field(default_factory=threading.Event)
    waits: list[tuple[float, float]] = field(default_factory=list)
    failed: int = 0

    def work(self, handle: Any) -> None:
        """Borrow and query in a thread, until it is enough."""
        while not self.stop.is_set():
            began = perf_counter()
            try:
                with handle as connection:
                    self.waits.append((began, perf_counter() - began))
                    connection.execute("SELECT pg_sleep(%s)", [self.seconds])
            except Exception:  # noqa: BLE001 - every failed query counts
                self.failed += 1

    async def work_async(self, handle: Any) -> None:
        """Borrow and query in a task, until it is enough."""
        while not self.stop.is_set():
            began = perf_counter()
            try:
                async with handle as connection:
                    self.waits.append((began, perf_counter() - began))
                    await connection.execute("SELECT pg_sleep(%s)", [self.seconds])
            except Exception:  # noqa: BLE001 - every failed query counts
                self.failed += 1

    @contextmanager
    def on(self, handle: Any, connection_type: str) -> Iterator[None]:
        """Put the load on a handle while the block runs: 16 threads, or a loop with 16 tasks."""
        if connection_type == "pool":
            threads = [threading.Thread(target=self.work, args=(handle,)) for _ in range(WORKERS)]
        else:

            async def main() -> None:
                await asyncio.gather(*(self.work_async(handle) for _ in range(WORKERS)))
                await handle.close()

            threads = [threading.Thread(target=lambda: asyncio.run(main()))]
        for thread in threads:
            thread.start()
        try:
            while len(self.waits) < 4 * WORKERS:
                sleep(0.01)
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


@dataclass(frozen=True)
class Run:
    """What was seen in one run of rotations under load.

    Args:
        load: What the workers met.
        peak: The most sessions at one moment, as another role counts them.
        moments: When each rotation began, and when no older connection was left.
    """

    load: Load
    peak: int
    moments: list[tuple[float, float]]

    @property
    def took(self) -> list[float]:
        """The seconds that each rotation took."""
        return [ended - began for began, ended in self.moments]


class Rotations:
    """A registry of one database `orders`, whose file or password changes."""

    def __init__(self, server: PostgresServer, connection_type: str, directory: Path) -> None:
        self._server = server
        self._type = connection_type
        self._place = directory
        self._version = 0
        self.registry_d = directory / "registry.d"
        self.registry_d.mkdir()
        self.change_password()
        self.change_name()

    def change_password(self) -> None:
        """Revoke the password and write the new one."""
        new = secrets.token_hex(8)
        self._server.set_password("app", new)
        _replace(self._place / "password", new)

    def change_name(self) -> None:
        """Write another `application_name`: a rotation that costs the server nothing but itself."""
        self._version += 1
        text = FILE.format(
            type=self._type,
            host=self._server.host,
            port=self._server.port,
            directory=self._place,
            version=self._version,
            size=SIZE,
        )
        _replace(self.registry_d / "orders.yaml", text)


def run(server: PostgresServer) -> list[Result]:
    """Rotate the connections of a role `app`, which exists, and return a row for each bar."""
    rows = []
    for connection_type in ("pool", "async_pool"):
        for seconds, swaps in SWAPS.items():
            done = _back_to_back(server, connection_type, seconds, swaps)
            what = f"{connection_type}, {swaps} rotations, {seconds * 1e3:.0f} ms transactions"
            rows.append(number(f"failed queries: {what}", done.load.failed, "", bar=0))
            rows.append(
                number(f"peak sessions: {what}, pool of {SIZE}", done.peak, "", bar=SIZE + 1)
            )
    calm: dict[str, list[Run]] = {"pool": [], "async_pool": []}
    for _ in range(CALM_RUNS):
        for connection_type, runs in calm.items():
            runs.append(_calm(server, connection_type))
    for connection_type, runs in calm.items():
        rows += _waits(connection_type, runs)
    return rows


def _back_to_back(server: PostgresServer, connection_type: str, seconds: float, swaps: int) -> Run:
    """Revoke one password after the other, without a pause."""

    def change(rotations: Rotations, registry: Registry) -> None:
        rotations.change_password()
        report = registry.reload()
        assert report.applied == ("orders",), report

    return _rotate(server, connection_type, seconds, swaps, change)


def _calm(server: PostgresServer, connection_type: str) -> Run:
    """Rotate now and then, with time between two rotations to see what a checkout costs then."""

    def change(rotations: Rotations, registry: Registry) -> None:
        rotations.change_name()
        report = registry.reload()
        assert report.applied == ("orders",), report
        assert registry.wait_drained(10)

    return _rotate(server, connection_type, SHORT, CALM_SWAPS, change, pause=CALM)


def _rotate(
    server: PostgresServer,
    connection_type: str,
    seconds: float,
    swaps: int,
    change: Callable[[Rotations, Registry], None],
    *,
    pause: float = 0.0,
) -> Run:
    with tempfile.TemporaryDirectory() as temporary:
        rotations = Rotations(server, connection_type, Path(temporary))
        load = Load(seconds)
        moments = []
        with Registry(rotations.registry_d, watch=False, metrics=None, trust="off") as registry:
            handle = registry.get("orders")
            with Peak(server, "app") as peak, load.on(handle, connection_type):
                for _ in range(swaps):
                    sleep(pause)
                    began = perf_counter()
                    change(rotations, registry)
                    moments.append((began, perf_counter()))
                sleep(pause)
        return Run(load, peak.highest, moments)


def _waits(connection_type: str, runs: list[Run]) -> list[Result]:
    """Return the p99 of the waits near a rotation by that of all others, and how long it takes."""
    each = [_near_and_far(one) for one in runs]
    near = _p99([wait for one, _ in each for wait in one])
    far = _p99([wait for _, one in each for wait in one])
    took = [seconds for one in runs for seconds in one.took]
    print(
        f"\n{connection_type}, {WORKERS} on {SIZE}, {SHORT * 1e3:.0f} ms: the 99th percentile of a"
        f" wait is {near * 1e3:.1f} ms near a rotation, {far * 1e3:.1f} ms outside;"
        f" a rotation takes {statistics.median(took) * 1e3:.0f} ms, {max(took) * 1e3:.0f} at most"
    )
    ratios = [_p99(one) / _p99(other) for one, other in each]
    first, _, third = statistics.quantiles(ratios, n=4)
    return [
        Result(
            f"p99 of a checkout within {NEAR * 1e3:.0f} ms of a rotation / outside:"
            f" {connection_type}; at most {TIMES:g}, or {MORE * 1e3:g} ms more",
            near / far,
            (first, third),
            max(TIMES, 1 + MORE / far),
            far,
        ),
        number(f"rotation of {SIZE} connections: {connection_type}", took, "s", bar=LONGEST),
    ]


def _near_and_far(run: Run) -> tuple[list[float], list[float]]:
    """Return the waits that began near a rotation, and all others."""
    near, far = [], []
    ends = [ended for _, ended in run.moments]
    for began, waited in run.load.waits:
        place = bisect_left(ends, began - NEAR)
        is_near = place < len(ends) and began >= run.moments[place][0] - NEAR
        (near if is_near else far).append(waited)
    return near, far


def _p99(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=100)[98]


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
