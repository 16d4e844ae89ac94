"""Reloads of every kind while clients give up, are cancelled, and lose their sessions: no place is lost."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, ConnectError, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client
from tests.registry.load import Peak

SIZE = 6
WORKERS = 16
SECONDS = 8.0


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    side: str,
    *,
    max_size: int = SIZE,
    **connection: Any,
) -> None:
    sizes = {"min_size": 1, "max_size": max_size}
    registry_dir.declare(
        "orders",
        database,
        side,
        connection={"application_name": "app", **connection},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )


class Chaos:
    """Do one of the things that happen to a pool, chosen at random.

    Args:
        registry: What reloads.
        declare: Changes the file of the database.
        database: Whose sessions are ended now and then.
    """

    def __init__(
        self, registry: Registry, declare: Callable[..., None], database: TemporaryDatabase
    ) -> None:
        self._registry = registry
        self._declare = declare
        self._database = database
        self._random = random.Random(random.getrandbits(32))
        self.done: list[str] = []

    def step(self) -> None:
        """Do it, and reload."""
        name = self._random.choice(["rename", "rotate", "resize", "wrong", "terminate", "move"])
        self.done.append(name)
        change: dict[str, Any] = {"application_name": f"app-{len(self.done)}"}
        if name == "rotate":
            self._database.rotate()
        elif name == "resize":
            change["max_size"] = self._random.randint(1, SIZE)
        elif name == "wrong":
            change["password"] = self._database.canary.secret()
        elif name == "terminate":
            self._database.terminate_backends()
            return
        elif name == "move":
            change["host"] = self._random.choice(["localhost", "127.0.0.1"])
        self._declare(**change)
        report = self._registry.reload()
        assert report.applied or name == "wrong", (name, report)


def work_in_threads(handle: Any, over: threading.Event, errors: list[BaseException]) -> list[Any]:
    """Start threads that borrow with little patience."""

    def work() -> None:
        while not over.is_set():
            try:
                with handle.connection(timeout=random.choice([0.004, 0.02, 1.0])) as connection:
                    connection.execute("SELECT pg_sleep(%s)", [random.choice([0, 0.002, 0.02])])
            except (CheckoutTimeout, psycopg.OperationalError):
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    return threads


def work_in_tasks(client: Client, over: threading.Event, errors: list[BaseException]) -> list[Any]:
    """Start tasks that borrow with little patience, and are cancelled every now and then."""
    handle = client.handle

    async def borrow() -> None:
        async with handle.connection(timeout=random.choice([0.004, 0.02, 1.0])) as connection:
            await connection.execute("SELECT pg_sleep(%s)", [random.choice([0, 0.002, 0.02])])

    async def work() -> None:
        while not over.is_set():
            task = asyncio.create_task(borrow())
            if random.random() < 0.2:
                await asyncio.sleep(random.choice([0, 0.001, 0.01]))
                task.cancel()
            try:
                await task
            except (CheckoutTimeout, psycopg.OperationalError, asyncio.CancelledError):
                pass
            except BaseException as error:
                errors.append(error)

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(WORKERS)))

    thread = threading.Thread(target=lambda: client._run(main()))
    thread.start()
    return [thread]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("side", SIDES)
def test_every_place_of_a_pool_can_be_borrowed_afterwards(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """Eight seconds of renames, rotations, sizes, wrong passwords, moves, ended sessions.

    Clients give up after milliseconds meanwhile, and tasks are cancelled. The server never has more
    sessions than the pool and one, and afterwards the pool hands out exactly its size.
    """
    declare(registry_dir, database, side)
    over = threading.Event()
    errors: list[BaseException] = []

    def change(**settings: Any) -> None:
        declare(registry_dir, database, side, **settings)

    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(SIZE)
        chaos = Chaos(registry, change, database)
        with Peak(database) as peak:
            if client.is_async:
                threads = work_in_tasks(client, over, errors)
            else:
                threads = work_in_threads(client.handle, over, errors)
            try:
                until = time.monotonic() + SECONDS
                while time.monotonic() < until:
                    chaos.step()
            finally:
                over.set()
                for thread in threads:
                    thread.join()
        print(chaos.done, peak.highest)
        assert errors == []
        assert peak.highest <= SIZE + 1
        change(application_name="last")
        eventually(lambda: not registry.reload().rejected, 10, "the last one is in force")
        with suppress(ConnectError, CheckoutTimeout):
            client.ask(timeout=10)
        with client.holding(SIZE, timeout=15) as backends:
            assert len(set(backends)) == SIZE
            assert {one["pid"] for one in database.backends()} == set(backends)
            assert {one["application_name"] for one in database.backends()} == {"last"}
            with pytest.raises(CheckoutTimeout):
                client.ask(timeout=0.2)
        status = client.handle.status()
        assert (status.used, status.retired, status.waiting) == (0, 0, 0)
        assert registry.wait_drained(timeout=10)
