"""Pool sizes that change while clients work: they take effect, and no query fails."""

from __future__ import annotations

from contextlib import closing

import pytest

from pgmonkey import CheckoutTimeout, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client
from tests.registry.load import WORKERS, Load, Peak, async_workers, sync_workers


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    side: str,
    max_size: int,
    min_size: int = 1,
    **pool: str,
) -> None:
    sizes = {"min_size": min_size, "max_size": max_size, **pool}
    registry_dir.declare("orders", database, side, pool_settings=sizes, async_pool_settings=sizes)


@pytest.mark.parametrize("milliseconds", [2, 100])
@pytest.mark.parametrize("side", SIDES)
def test_sizes_change_under_load_and_no_query_fails(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str, milliseconds: int
) -> None:
    """10, 3, 10, 1, 6: the server soon sees as many sessions, and never more than before plus one."""
    database.execute("CREATE TABLE public.done (id int)")
    database.execute(f'GRANT ALL ON public.done TO "{database.user}"')
    declare(registry_dir, database, side, 10)
    load = Load()
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        workers = sync_workers if side == "pool" else async_workers
        start, finish = workers(registry, load, milliseconds / 1000)
        start()
        try:
            eventually(lambda: len(database.backends()) == 10, 20, "the pool has grown")
            before = 10
            for size in (3, 10, 1, 6):
                with Peak(database) as peak:
                    declare(registry_dir, database, side, size)
                    assert registry.reload().applied == ("orders",)
                    eventually(
                        lambda size=size: len(database.backends()) == size, 20, f"{size} sessions"
                    )
                    done = len(load.committed)
                    eventually(
                        lambda done=done: len(load.committed) > done + WORKERS, 20, "it goes on"
                    )
                    assert registry.get("orders").status().max_size == size
                assert peak.highest <= max(before, size) + 1
                with Peak(database) as peak:
                    done = len(load.committed)
                    eventually(
                        lambda done=done: len(load.committed) > done + WORKERS, 20, "it goes on"
                    )
                assert peak.highest <= size
                before = size
        finally:
            finish()
        assert load.errors == []
        committed = sorted(row[0] for row in database.execute("SELECT id FROM public.done"))
        assert committed == sorted(load.committed)


@pytest.mark.parametrize("side", SIDES)
def test_a_smaller_pool_waits_for_what_is_out(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """All of five are out when the size becomes two: they finish; clients that wait are served by two."""
    declare(registry_dir, database, side, 5)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        with client.holding(5) as backends:
            answers = [client.ask_soon("SELECT 1", timeout=30) for _ in range(8)]
            eventually(lambda: client.handle.status().waiting == 8, 10, "they wait")
            declare(registry_dir, database, side, 2)
            assert registry.reload().applied == ("orders",)
            assert {one["pid"] for one in database.backends()} >= set(backends), "nothing is cut"
        assert [answer.result(30) for answer in answers] == [1] * 8
        assert client.errors() == {}
        eventually(lambda: len(database.backends()) <= 2, 10, "two are left")
        with client.holding(2, timeout=10):
            with pytest.raises(CheckoutTimeout):
                client.ask(timeout=0.3)
            assert len(database.backends()) == 2


@pytest.mark.parametrize("side", SIDES)
def test_a_larger_pool_serves_those_who_wait(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """Clients that queue for one connection get more of them as soon as the size is larger."""
    declare(registry_dir, database, side, 1)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        with client.holding(1) as before:
            answers = [client.ask_soon("SELECT pg_backend_pid()", timeout=30) for _ in range(4)]
            eventually(lambda: client.handle.status().waiting == 4, 10, "they wait")
            declare(registry_dir, database, side, 4)
            assert registry.reload().applied == ("orders",)
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
    declare(registry_dir, database, side, 4)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(1)
        declare(registry_dir, database, side, 4, min_size=4)
        assert registry.reload().applied == ("orders",)
        eventually(lambda: len(database.backends()) == 4, 10, "it is filled")
        declare(registry_dir, database, side, 4, min_size=1)
        assert registry.reload().applied == ("orders",)
        status = client.handle.status()
        assert (status.min_size, status.max_size) == (1, 4)
        assert client.ask() == 1


@pytest.mark.parametrize("side", SIDES)
def test_size_and_login_may_change_together(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """One file changes the size and the password; clients wait, and none fails."""
    declare(registry_dir, database, side, 6)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(6)
        for size in (2, 6, 1, 4):
            answers = [
                client.ask_soon("SELECT 1 FROM pg_sleep(0.01)", timeout=30) for _ in range(30)
            ]
            database.rotate()
            declare(registry_dir, database, side, size)
            assert registry.reload().applied == ("orders",)
            assert [answer.exception(30) for answer in answers] == [None] * 30
            eventually(lambda size=size: len(database.backends()) <= size, 10, f"{size} are left")
            with client.holding(size, timeout=10) as backends:
                assert len(set(backends)) == size
