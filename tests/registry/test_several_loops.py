"""One handle in several event loops: each has connections of its own, and none waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from pgmonkey import Registry, ReloadRejectedError
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import Client

PID = "SELECT pg_backend_pid()"


@contextmanager
def client(registry: Registry) -> Iterator[Client]:
    """Use the handle of `events` in an event loop of its own."""
    client = Client(registry, "events")
    try:
        yield client
    finally:
        client.close()


@pytest.mark.parametrize("works", [True, False])
def test_a_forced_reload_that_has_not_connected_yet_changes_nothing_in_another_loop(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy, works: bool
) -> None:
    """While the connect of `force_reload` is under way, the other loop serves what it has."""
    registry_dir.declare(
        "events",
        database,
        "async_pool",
        connection={"port": proxy.port},
        async_pool_settings={"min_size": 1, "max_size": 2},
    )

    async def reload() -> None:
        await registry.get("events", force_reload=True)

    with (
        ChaosProxy(database.host, database.port) as silent,
        Registry(registry_dir, metrics=None, watch=False) as registry,
        client(registry) as first,
        client(registry) as second,
    ):
        before = [one.ask(PID) for one in (first, second)]
        silent.set("blackhole")
        proxy.target_port = silent.port
        reloading = asyncio.run_coroutine_threadsafe(reload(), first.loop)
        eventually(lambda: silent.accepted > 0, 10, "it connects")

        assert [second.ask(PID) for _ in range(3)] == [before[1]] * 3
        assert first.handle.status().version == 1
        assert not reloading.done()

        if works:
            proxy.target_port = database.port
            silent.set("pass")
            reloading.result(10)
            assert first.handle.status().version == 2
            assert {first.ask(PID), second.ask(PID)}.isdisjoint(before)
        else:
            proxy.set("refuse")
            silent.kill(reset=True)
            with pytest.raises(ReloadRejectedError):
                reloading.result(10)
            assert first.handle.status().version == 1
            assert [first.ask(PID), second.ask(PID)] == before


class Loop(asyncio.SelectorEventLoop):
    """An event loop that counts how often it was asked whether it is closed."""

    def __init__(self) -> None:
        self.looks = 0
        super().__init__()

    def is_closed(self) -> bool:
        self.looks += 1
        return super().is_closed()


def test_loops_that_are_used_in_turn_each_keep_their_connection_and_do_not_look_at_the_others(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """What a checkout costs does not depend on how many loops use the handle."""
    registry_dir.declare(
        "events", database, "async_pool", async_pool_settings={"min_size": 1, "max_size": 1}
    )

    async def backend() -> Any:
        async with handle as connection:
            return (await (await connection.execute(PID)).fetchone())[0]

    with Registry(registry_dir, metrics=None, watch=False) as registry, ExitStack() as stack:
        handle: Any = registry.get("events")
        loops = [Loop() for _ in range(10)]
        for loop in loops:
            stack.callback(loop.close)
        stack.callback(lambda: loops[0].run_until_complete(handle.close()))
        backends = [loop.run_until_complete(backend()) for loop in loops]
        assert len(set(backends)) == len(loops)
        for loop in loops:
            loop.looks = 0
        used, unused = loops[:3], loops[3:]
        for _ in range(20):
            assert [loop.run_until_complete(backend()) for loop in used] == backends[:3]

        assert [loop.looks for loop in unused] == [0] * len(unused)
        assert [loop.run_until_complete(backend()) for loop in loops] == backends
