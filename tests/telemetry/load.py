"""Clients that count what the metrics must show."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

import psycopg

from pgmonkey import Database, PgmonkeyError

# What clients meet in an outage: no connection in time, or one that breaks under a query.
_OUTAGE = (PgmonkeyError, psycopg.Error)


@dataclass
class Count:
    """Count what clients of one database experienced.

    Attributes:
        got: Blocks that got a connection, also if a query in them failed.
        failed: Blocks that were not.
        held: Seconds of the first, measured within them.
        spent: Seconds of the first, with their wait, measured around them.
    """

    got: int = 0
    failed: int = 0
    held: float = 0.0
    spent: float = 0.0

    def add(self, began: float, entered: float | None, left: float) -> None:
        """Count one block that has ended."""
        if entered is None:
            self.failed += 1
            return
        self.got += 1
        self.held += left - entered
        self.spent += time.monotonic() - began


class Load:
    """Let clients work on a sync handle in threads, and on an async one in a loop's tasks.

    Each client keeps a count of its own; `orders` and `events` are their sums at the end.

    Args:
        orders: A sync handle.
        events: An async handle.
        clients: How many on each.
        pause: Seconds that a client rests between two blocks.
    """

    def __init__(self, orders: Database, events: Database, *, clients: int, pause: float) -> None:
        self.stop = threading.Event()
        self._pause = pause
        self._orders = [Count() for _ in range(clients)]
        self._events = [Count() for _ in range(clients)]
        self._threads = [
            threading.Thread(target=self._work, args=(orders, count)) for count in self._orders
        ]
        self._threads.append(threading.Thread(target=asyncio.run, args=(self._loop(events),)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def orders(self) -> Count:
        """Return the counts of the threads."""
        return _sum(self._orders)

    @property
    def events(self) -> Count:
        """Return the counts of the tasks."""
        return _sum(self._events)

    def _work(self, handle: Any, count: Count) -> None:
        while not self.stop.is_set():
            began, entered = time.monotonic(), None
            left = began
            try:
                with handle as connection:
                    entered = time.monotonic()
                    try:
                        connection.execute("SELECT pg_sleep(0.02)")
                    finally:
                        left = time.monotonic()
            except _OUTAGE:
                pass
            count.add(began, entered, left)
            self.stop.wait(self._pause)

    async def _loop(self, handle: Any) -> None:
        await asyncio.gather(*(self._work_async(handle, count) for count in self._events))
        await handle.close()

    async def _work_async(self, handle: Any, count: Count) -> None:
        while not self.stop.is_set():
            began, entered = time.monotonic(), None
            left = began
            try:
                async with handle as connection:
                    entered = time.monotonic()
                    try:
                        await connection.execute("SELECT pg_sleep(0.02)")
                    finally:
                        left = time.monotonic()
            except _OUTAGE:
                pass
            count.add(began, entered, left)
            await asyncio.sleep(self._pause)


def _sum(counts: list[Count]) -> Count:
    return Count(
        sum(one.got for one in counts),
        sum(one.failed for one in counts),
        sum(one.held for one in counts),
        sum(one.spent for one in counts),
    )
