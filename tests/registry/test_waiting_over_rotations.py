"""Clients that wait while a reload replaces connections: they keep their place and their deadline."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import pytest

from pgmonkey import CheckoutTimeout, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import GRACE, SIDES, Client

#: The types with which the server sees one connection of a pool whose size is one.
TYPES = (*SIDES, "normal", "async")


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    side: str,
    *,
    max_size: int = 1,
    **connection: Any,
) -> None:
    sizes = {"min_size": 1, "max_size": max_size}
    registry_dir.declare(
        "orders",
        database,
        side,
        connection={"application_name": "app"} | connection,
        description=f"{connection}",
        pool_settings=sizes,
        async_pool_settings=sizes,
    )


@pytest.mark.parametrize("how", ["reload", "force_reload"])
@pytest.mark.parametrize("side", TYPES)
def test_waiting_clients_are_served_in_the_order_in_which_they_came(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str, how: str
) -> None:
    """Twelve clients queue before and between three rotations; the first to come is the first served."""
    order: list[int] = []
    answers: list[Future[Any]] = []
    declare(registry_dir, database, side)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        with client.holding(1):
            for number in range(3):
                for _ in range(4):
                    came, waiting = len(answers), client.handle.status().waiting
                    answer = client.ask_soon("SELECT 1 FROM pg_sleep(0.02)", timeout=40)
                    answer.add_done_callback(lambda _, came=came: order.append(came))
                    answers.append(answer)
                    eventually(
                        lambda before=waiting: client.handle.status().waiting > before,
                        10,
                        "it waits",
                    )
                if how == "reload":
                    declare(registry_dir, database, side, application_name=f"app-{number}")
                    assert registry.reload().applied == ("orders",)
                else:
                    replace_all(registry, client)
        for answer in answers:
            assert answer.exception(40) is None
        assert order == sorted(order)
        assert client.errors() == {}


def replace_all(registry: Registry, client: Client) -> None:
    """Force a reload; of an async handle on its loop."""
    if not client.is_async:
        registry.get("orders", force_reload=True)
        return

    async def force() -> None:
        await registry.get("orders", force_reload=True)

    client._run(force())


@pytest.mark.parametrize("side", TYPES)
def test_waiting_clients_keep_their_deadline_over_rotations(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """Clients that began to wait before three rotations give up when their own time is over."""
    timeout = 3.0
    declare(registry_dir, database, side)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        ended: list[float] = []
        with client.holding(1):
            began = time.monotonic()
            # One may get the connection that replaces the one that is out, and keeps it.
            answers = [client.ask_soon("SELECT pg_sleep(5)", timeout=timeout) for _ in range(5)]
            for answer in answers:
                answer.add_done_callback(lambda _: ended.append(time.monotonic() - began))
            eventually(lambda: client.handle.status().waiting == 5, 10, "they wait")
            for number in range(3):
                declare(registry_dir, database, side, application_name=f"app-{number}")
                registry.reload()
            gave_up = [isinstance(answer.exception(30), CheckoutTimeout) for answer in answers]
            assert sum(gave_up) >= 4
            assert timeout <= sorted(ended)[3] <= timeout + GRACE
        eventually(lambda: not registry.reload().rejected, 10, "the last one is in force")
        assert client.ask("SHOW application_name") == "app-2"


@pytest.mark.parametrize("side", SIDES)
def test_a_rotation_ends_though_every_connection_is_out_for_long(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """`reload()` does not wait for checkouts: they finish and commit, and what they held is replaced."""
    declare(registry_dir, database, side, max_size=3)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        with client.holding(3) as old:
            declare(registry_dir, database, side, max_size=3, application_name="new")
            began = time.monotonic()
            assert registry.reload().applied == ("orders",)
            assert time.monotonic() - began < 10
            assert not registry.wait_drained(timeout=0)
            assert {one["pid"] for one in database.backends()} >= set(old)
            assert len(database.backends()) <= 3 + 1
        assert registry.wait_drained(timeout=10)
        with client.holding(3) as new:
            assert not set(new) & set(old)
        assert {one["application_name"] for one in database.backends()} == {"new"}


@pytest.mark.parametrize("side", SIDES)
def test_reloads_in_a_storm_of_clients_that_give_up_lose_no_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """Clients whose time ends while connections change hands: afterwards the pool is whole."""
    size = 4
    declare(registry_dir, database, side, max_size=size)
    over = threading.Event()
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):

        def storm() -> None:
            while not over.is_set():
                answers = [
                    client.ask_soon("SELECT 1 FROM pg_sleep(0.002)", timeout=0.004)
                    for _ in range(12)
                ]
                for answer in answers:
                    error = answer.exception(20)
                    assert error is None or isinstance(error, CheckoutTimeout), error

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            for number in range(15):
                declare(
                    registry_dir,
                    database,
                    side,
                    max_size=size,
                    application_name=f"app-{number}",
                )
                assert registry.reload().applied == ("orders",)
        finally:
            over.set()
            thread.join()
        with client.holding(size, timeout=10) as backends:
            assert len(set(backends)) == size
        status = client.handle.status()
        assert (status.used, status.waiting) == (0, 0)
        assert len(database.backends()) <= size
