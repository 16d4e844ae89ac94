"""The bars of a rotation: no failed query, one connection more than the pool, and who waits how long."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.comparison import Result
from benchmarks.rotation_peak import Peak
from pgmonkey import Registry
from tests.kit.server import PostgresServer

WORKERS = 16
SIZE = 10
SHORT, LONG = 0.002, 0.5
#: Rotations one right after the other, with short and with long transactions.
SWAPS = {SHORT: 1000, LONG: 40}
#: Rotations with a pause before each, and seconds around a swap that count as its own.
CALM_SWAPS = 60
CALM = 0.6
NEAR = 0.15

FILE = """\
connection_type: {type}
connection_settings:
  host: {host}
  port: '{port}'
  dbname: postgres
  user: app
  password: {{from_file: {directory}/password}}
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

    def threads(self, handle: Any, connection_type: str) -> list[threading.Thread]:
        """Return the threads that put the load on: one for each worker, or one with a loop."""
        if connection_type == "pool":
            return [threading.Thread(target=self.work, args=(handle,)) for _ in range(WORKERS)]

        async def main() -> None:
            await asyncio.gather(*(self.work_async(handle) for _ in range(WORKERS)))
            await handle.close()

        return [threading.Thread(target=lambda: asyncio.run(main()))]


@dataclass(frozen=True)
class Run:
    """What came of one run of rotations under load."""

    load: Load
    peak: int
    swaps: list[float]
    took: list[float]


def run(server: PostgresServer) -> list[Result]:
    """Rotate the password of a role `app`, which exists, and return a row for each bar."""
    rows = []
    for connection_type, bar in (("pool", 2.0), ("async_pool", 3.5)):
        for seconds, swaps in SWAPS.items():
            done = _rotate(server, connection_type, seconds, swaps, lambda: None)
            what = f"{connection_type}, {swaps} swaps, {seconds * 1e3:.0f} ms transactions"
            took = statistics.median(done.took)
            rows.append(_count(f"failed queries: {what}", done.load.failed, 0, took))
            rows.append(
                _count(f"peak connections: {what}, pool of {SIZE}", done.peak, SIZE + 1, took)
            )
        calm = _rotate(server, connection_type, SHORT, CALM_SWAPS, lambda: sleep(CALM))
        rows.append(_near_to_far(connection_type, calm, bar))
    return rows


def _rotate(
    server: PostgresServer,
    connection_type: str,
    seconds: float,
    swaps: int,
    pause: Callable[[], None],
) -> Run:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary, "registry.d")
        directory.mkdir()
        password = Path(temporary, "password")

        def change() -> None:
            new = secrets.token_hex(8)
            server.set_password("app", new)
            written = password.with_suffix(".new")
            written.write_text(new)
            written.replace(password)

        change()
        text = FILE.format(
            type=connection_type,
            host=server.host,
            port=server.port,
            directory=temporary,
            size=SIZE,
        )
        (directory / "orders.yaml").write_text(text)
        load = Load(seconds)
        moments, took = [], []
        with Registry(directory, watch=False, metrics=None, trust="off") as registry:
            handle: Any = registry.get("orders")
            threads = load.threads(handle, connection_type)
            with Peak(server, "app") as peak:
                for thread in threads:
                    thread.start()
                while len(load.waits) < 4 * WORKERS:
                    sleep(0.01)
                for _ in range(swaps):
                    pause()
                    change()
                    began = perf_counter()
                    report = registry.reload()
                    moments.append(perf_counter())
                    took.append(moments[-1] - began)
                    assert report.applied == ("orders",), report
                    # A loop swaps at its next turn; the next rotation is another swap.
                    while handle.status().version and _old(handle, len(moments) + 1):
                        sleep(0.001)
                pause()
                load.stop.set()
                for thread in threads:
                    thread.join()
        return Run(load, peak.highest, moments, took)


def _old(handle: Any, version: int) -> bool:
    """Tell whether a loop has not swapped to this version yet."""
    return any(
        side.generation is not None and side.generation.version < version for side in handle.sides()
    )


def _near_to_far(connection_type: str, done: Run, bar: float) -> Result:
    """Return the p99 of the waits near a swap, by the p99 of all the others."""
    near, far = [], []
    for began, waited in done.load.waits:
        place = bisect_left(done.swaps, began)
        distance = min(
            (abs(one - began) for one in done.swaps[max(0, place - 1) : place + 1]), default=1.0
        )
        (near if distance <= NEAR else far).append(waited)
    base = _p99(far)
    # The same for each quarter of the swaps, to tell how sure the ratio is.
    return Result(
        f"p99 of a checkout within {NEAR * 1e3:.0f} ms of a swap / outside: {connection_type},"
        f" {WORKERS} on {SIZE}",
        _p99(near) / base,
        _quartiles(done, base),
        bar,
        base,
    )


def _quartiles(done: Run, base: float) -> tuple[float, float]:
    ratios = []
    for swap in done.swaps:
        near = [waited for began, waited in done.load.waits if abs(began - swap) <= NEAR]
        with suppress(statistics.StatisticsError):
            ratios.append(_p99(near) / base)
    first, _, third = statistics.quantiles(ratios, n=4)
    return first, third


def _p99(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=100)[98]


def _count(what: str, number: int, bar: int, took: float) -> Result:
    return Result(what, float(number), (float(number), float(number)), float(bar), took)
