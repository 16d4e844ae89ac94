"""The workload of the demonstration: threads and tasks that write to three databases."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from pgmonkey.pool.handle import Database
from pgmonkey.registry.registry import Registry

#: The databases, and the statement that makes the table of each.
TABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "orders": "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, item text,"
        " at timestamptz DEFAULT now())",
        "events": "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY, what text,"
        " at timestamptz DEFAULT now())",
        "reports": "CREATE SCHEMA reports CREATE TABLE daily (day date PRIMARY KEY, orders bigint)",
    }
)
_ITEMS: Final = ("tea", "coffee", "bananas", "a small monkey", "rope", "a tyre swing")
_WORKERS: Final = 3
_PAUSE: Final = 0.03  # seconds between two transactions of one worker
_PAUSE_AFTER_ERROR: Final = 1.0
_PATIENCE: Final = 5.0  # seconds that the workers have to end their last transaction


class Workload(Collector):
    """Write to the three databases, and count the transactions by outcome.

    Args:
        registry: It declares the three databases.
    """

    def __init__(self, registry: Registry) -> None:
        # The program asks for each handle once. It stays valid over every reload.
        self._orders = registry.get("orders", "pool")
        self._events = registry.get("events", "async_pool")
        self._reports = registry.get("reports", "normal")
        self._counts: Counter[tuple[str, str]] = Counter()
        self._last_error: dict[str, str] = {}
        # Guards the two above.
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._place_orders, name=f"orders-{number}")
            for number in range(_WORKERS)
        ]
        self._threads.append(threading.Thread(target=self._count_orders, name="reports"))
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the threads, and the tasks on the running loop."""
        for thread in self._threads:
            thread.start()
        self._tasks = [
            asyncio.create_task(self._note_events(), name=f"events-{number}")
            for number in range(_WORKERS)
        ]

    async def stop(self) -> None:
        """Let every worker end its transaction."""
        self._stop.set()
        await asyncio.wait(self._tasks, timeout=_PATIENCE)
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))

    def total(self, outcome: str) -> int:
        """Return the number of transactions with an outcome, `ok` or `error`."""
        with self._lock:
            return sum(n for (_, ended), n in self._counts.items() if ended == outcome)

    def done(self, name: str) -> int:
        """Return the number of transactions of one database that committed."""
        with self._lock:
            return self._counts[name, "ok"]

    def collect(self) -> Iterator[Metric]:
        """Yield the counts."""
        family = CounterMetricFamily(
            "pgmonkey_demo_transactions",
            "Transactions of the demonstration's workload.",
            labels=["database", "outcome"],
        )
        with self._lock:
            counts = self._counts.copy()
        for name in TABLES:
            for outcome in ("ok", "error"):
                family.add_metric([name, outcome], counts[name, outcome])
        yield family

    def _place_orders(self) -> None:
        while not self._stop.is_set():
            with self._counted(self._orders), self._orders as conn:
                conn.execute("INSERT INTO orders (item) VALUES (%s)", [_item()])
            self._stop.wait(self._pause(self._orders))

    def _count_orders(self) -> None:
        while not self._stop.is_set():
            with self._counted(self._reports):
                with self._orders as conn:
                    rows = conn.execute("SELECT count(*) FROM orders").fetchone()
                with self._reports as conn:
                    conn.execute(
                        "INSERT INTO daily VALUES (current_date, %s)"
                        " ON CONFLICT (day) DO UPDATE SET orders = excluded.orders",
                        rows,
                    )
            self._stop.wait(max(0.25, self._pause(self._reports)))

    async def _note_events(self) -> None:
        while not self._stop.is_set():
            with self._counted(self._events):
                async with self._events as conn:
                    await conn.execute(
                        "INSERT INTO events (what) VALUES (%s)", [f"somebody looked at {_item()}"]
                    )
            await asyncio.sleep(self._pause(self._events))

    @contextmanager
    def _counted(self, database: Database) -> Iterator[None]:
        """Count a transaction. Print an error, once if it repeats, and go on."""
        name = database.name
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the workload shows any error and goes on
            text = f"{type(error).__name__}: {error}"
            with self._lock:
                self._counts[name, "error"] += 1
                is_new = self._last_error.get(name) != text
                self._last_error[name] = text
            if is_new:
                print(f"{name}: a transaction failed: {text}", flush=True)
        else:
            with self._lock:
                self._counts[name, "ok"] += 1
                self._last_error.pop(name, None)

    def _pause(self, database: Database) -> float:
        return _PAUSE_AFTER_ERROR if database.name in self._last_error else _PAUSE


def _item() -> str:
    return random.choice(_ITEMS)  # noqa: S311 - no secret
