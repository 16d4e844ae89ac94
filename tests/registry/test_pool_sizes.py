"""Pool sizes that change while clients work: they take effect, and no query fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from pgmonkey import CheckoutTimeout, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client
from tests.registry.load import Peak, table_of_commits, working


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    side: str,
    max_size: int,
    min_size: int = 1,
) -> None:
    sizes = {"min_size": min_size, "max_size": max_size}
    registry_dir.declare("orders", database, side, pool_settings=sizes, async_pool_settings=sizes)


@pytest.mark.parametrize("milliseconds", [2, 100])
@pytest.mark.parametrize("side", SIDES)
def test_sizes_change_under_load_and_no_query_fails(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str, milliseconds: int
) -> None:
    """10, 3, 10, 1, 6: the server soon sees as many sessions, and never more than before plus one."""
    table_of_commits(database)
    declare(registry_dir, database, side, 10)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        working(registry, side, milliseconds / 1000) as load,
    ):
        eventually(lambda: len(database.backends()) == 10, 20, "the pool has grown")
        before = 10
        for size in (3, 10, 1, 6):
            with Peak(database) as peak:
                declare(registry_dir, database, side, size)
                assert registry.reload().applied == ("orders",)
                eventually(
                    lambda size=size: len(database.backends()) == size, 20, f"{size} sessions"
                )
                load.goes_on()
                assert registry.get("orders").status().max_size == size
            assert peak.highest <= max(before, size) + 1
            with Peak(database) as peak:
                load.goes_on()
            assert peak.highest <= size
            before = size
    committed = sorted(row[0] for row in database.execute("SELECT id FROM public.done"))
    assert committed == sorted(load.committed)


@contextmanager
def pool_of(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str, size: int
) -> Iterator[tuple[Client, Callable[..., None]]]:
    """Give a client, and what changes the sizes."""

    def resize(max_size: int, min_size: int = 1) -> None:
        declare(registry_dir, database, side, max_size, min_size)
        assert registry.reload().applied == ("orders",)

    declare(registry_dir, database, side, size)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        yield client, resize


def waiting(client: Client, number: int) -> list[Future[Any]]:
    """Let so many clients wait; return their answers to come."""
    answers = [client.ask_soon("SELECT pg_backend_pid()", timeout=30) for _ in range(number)]
    eventually(lambda: client.handle.status().waiting == number, 10, "they wait")
    return answers


@pytest.mark.parametrize("side", SIDES)
def test_a_smaller_pool_waits_for_what_is_out(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """All of five are out when the size becomes two: they finish; clients that wait are served by two."""
    with pool_of(registry_dir, database, side, 5) as (client, resize):
        with client.holding(5) as backends:
            answers = waiting(client, 8)
            resize(2)
            assert {one["pid"] for one in database.backends()} >= set(backends), "nothing is cut"
        assert all(answer.result(30) for answer in answers)
        assert client.errors() == {}
        eventually(lambda: len(database.backends()) <= 2, 10, "two are left")
        with client.holding(2, timeout=10):
            with pytest.raises(CheckoutTimeout):
                client.ask(timeout=0.3)
            assert len(database.backends()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_clients_that_give_up_do_not_delay_others_while_sizes_change(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """Half of the clients wait for milliseconds, the size changes all the time: the others get their turn."""
    over = threading.Event()

    def give_up(client: Client) -> None:
        while not over.is_set():
            with suppress(CheckoutTimeout):
                client.ask(timeout=0.001)

    def wait(client: Client) -> None:
        while not over.is_set():
            client.ask("SELECT pg_sleep(0.001)", timeout=8)

    with (
        pool_of(registry_dir, database, side, 4) as (client, resize),
        ThreadPoolExecutor(32) as workers,
    ):
        jobs = [workers.submit(one, client) for one in (give_up, wait) * 16]
        try:
            until = time.monotonic() + 4
            while time.monotonic() < until:
                resize(3)
                resize(4)
        finally:
            over.set()
        for job in jobs:
            job.result()
        assert client.errors().keys() <= {"timeout"}


@pytest.mark.parametrize("side", SIDES)
def test_a_larger_pool_serves_those_who_wait(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """Clients that queue for one connection get more of them as soon as the size is larger."""
    with pool_of(registry_dir, database, side, 1) as (client, resize):
        with client.holding(1) as before:
            answers = waiting(client, 4)
            resize(4)
            assert not {answer.result(30) for answer in answers} & set(before)
        assert client.ask("SELECT pg_backend_pid()") > 0
        with client.holding(4) as backends:
            assert len(set(backends)) == 4
            assert set(before) <= set(backends), "no connection was replaced"


@pytest.mark.parametrize("side", SIDES)
def test_a_larger_min_size_is_filled_and_a_smaller_one_is_allowed_to_shrink(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """`min_size` from one to four makes three more connections without a client; they may go again."""
    with pool_of(registry_dir, database, side, 4) as (client, resize):
        client.fill(1)
        resize(4, min_size=4)
        eventually(lambda: len(database.backends()) == 4, 10, "it is filled")
        resize(4, min_size=1)
        status = client.handle.status()
        assert (status.min_size, status.max_size) == (1, 4)
        assert client.ask() == 1


@pytest.mark.parametrize("side", SIDES)
def test_size_and_login_may_change_together(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """One file changes the size and the password; clients wait, and none fails."""
    with pool_of(registry_dir, database, side, 6) as (client, resize):
        client.fill(6)
        for size in (2, 6, 1, 4):
            answers = [
                client.ask_soon("SELECT 1 FROM pg_sleep(0.01)", timeout=30) for _ in range(30)
            ]
            database.rotate()
            resize(size)
            assert [answer.exception(30) for answer in answers] == [None] * 30
            eventually(lambda size=size: len(database.backends()) <= size, 10, f"{size} are left")
            with client.holding(size, timeout=10) as backends:
                assert len(set(backends)) == size
