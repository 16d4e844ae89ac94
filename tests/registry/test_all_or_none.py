"""A reload that one pool of a database cannot follow: none of its pools does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from pgmonkey import Registry
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import Client


def declare(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, number: int, **sections: Any
) -> None:
    sizes = {"min_size": 1, "max_size": 4}
    registry_dir.declare(
        "orders",
        database,
        **{
            "connection": {"application_name": f"app-{number}"},
            "pool_settings": sizes,
            "async_pool_settings": sizes,
            **sections,
        },
    )


@contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Give an event loop that turns in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class User:
    """Ask a database through its pool and, in two event loops, through its `async_pool`."""

    def __init__(self, registry: Registry, loops: list[asyncio.AbstractEventLoop]) -> None:
        self._sync = Client(registry)
        self._handle: Any = registry.get("orders", "async_pool")
        self._loops = loops

    def ask(self) -> set[tuple[str, int]]:
        """Return what each of them is connected with, and as which backend."""
        statement = "SELECT current_setting('application_name'), pg_backend_pid()"

        async def ask_async() -> tuple[str, int]:
            async with self._handle as connection:
                cursor = await connection.execute(statement)
                found: tuple[str, int] = await cursor.fetchone()
            return found

        found = {self._sync.run(lambda connection: connection.execute(statement).fetchone())}
        for loop in self._loops:
            found.add(asyncio.run_coroutine_threadsafe(ask_async(), loop).result(10))
        return found

    def close(self) -> None:
        """Close every pool."""
        for loop in self._loops:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(10)
        self._sync.close()

    async def _close(self) -> None:
        await self._handle.close()


def test_a_version_that_only_one_side_cannot_connect_with_is_adopted_by_neither(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A session setting of one side that the server refuses: all three pools keep their connections.

    When the file is mended, all of them move.
    """
    declare(registry_dir, database, 0)
    with (
        loop_in_a_thread() as one,
        loop_in_a_thread() as other,
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(User(registry, [one, other])) as user,
    ):
        before = user.ask()
        assert len(before) == 3
        for section in ("async_settings", "sync_settings"):
            declare(registry_dir, database, 1, **{section: {"statement_timout": "5s"}})
            (problem,) = registry.reload().rejected["orders"]
            assert "statement_timout" in problem.message
            assert registry.status().databases[0].version == 1
            assert user.ask() == before
            assert len(database.backends()) == 3, "nothing is kept of what worked"

        declare(registry_dir, database, 2)
        assert registry.reload().applied == ("orders",)
        after = user.ask()
        assert len(after) == 3
        assert {name for name, _ in after} == {"app-2"}
        assert not {backend for _, backend in after} & {backend for _, backend in before}


def test_a_size_that_comes_with_a_wrong_password_is_rejected_with_it(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """One file is one version: no part of it takes effect before all of it works."""
    declare(registry_dir, database, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(4)
        declare(
            registry_dir,
            database,
            1,
            connection={"password": canary.secret()},
            pool_settings={"min_size": 1, "max_size": 2},
            description="another one",
        )
        assert registry.reload().rejected
        assert client.handle.status().max_size == 4
        assert registry.status().databases[0].description == ""
        with client.holding(4, timeout=2) as backends:
            assert len(set(backends)) == 4
