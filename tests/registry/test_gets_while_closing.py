"""`get` in one thread while another closes the registry or the cache: nothing stays open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgmonkey import HandleClosedError, PGConnectionManager, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.stopped import Stopped

#: Seconds after which the one is let go on though the other has not ended: it waits for a lock.
_LOCKED = 0.05


def serves(handle: Any) -> bool:
    """Tell whether a checkout works; false if it says that the handle is closed."""

    async def enter() -> None:
        async with handle.connection(timeout=5):
            pass

    try:
        if handle.connection_type.startswith("async"):
            asyncio.run(enter())
        else:
            with handle.connection(timeout=5):
                pass
    except HandleClosedError:
        return False
    return True


def close_in_the_middle(get: Callable[[], Any], close: Callable[[], None], line: int) -> Stopped:
    """Call `close` while `get` stands still before a line; return when both have ended."""
    stopped = Stopped(get, line)
    stopped.start()
    closing = threading.Thread(target=close)
    closing.start()
    closing.join(_LOCKED)
    stopped.finish()
    closing.join()
    assert stopped.error is None or isinstance(stopped.error, HandleClosedError)
    return stopped


@pytest.mark.parametrize("named", [True, False], ids=["with its type", "by name"])
@pytest.mark.parametrize("connection_type", ["pool", "normal", "async_pool", "async"])
def test_a_get_that_races_the_close_of_a_registry_returns_no_live_handle(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    named: bool,
) -> None:
    """Wherever `get` is when `close` runs: it raises, or its handle is closed with the others."""
    registry_dir.declare("orders", database, connection_type)
    line = 0
    stood_still = True
    while stood_still:
        line += 1
        registry = Registry(registry_dir, metrics=None, watch=False)
        stopped = close_in_the_middle(
            lambda registry=registry: registry.get("orders", connection_type if named else None),
            registry.close,
            line,
        )
        stood_still = stopped.stood_still
        alive = stopped.got is not None and serves(stopped.got)
        if alive:
            registry.close()  # whatever it takes: nothing is left to the next tests
        assert not alive, f"get stood still before its line {line}"
    assert line > 5


@pytest.mark.parametrize("connection_type", ["pool", "normal"])
def test_a_call_that_races_the_clearing_of_a_cache_leaves_nothing_open(
    config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """The handle of 4.0's call is closed by `clear_cache`, or is in the cache that it left behind."""
    line = 0
    stood_still = True
    while stood_still:
        line += 10  # a call connects: it is long
        with PGConnectionManager() as manager:
            stopped = close_in_the_middle(
                lambda manager=manager: manager.get_database_connection(config, connection_type),
                manager.clear_cache,
                line,
            )
            stood_still = stopped.stood_still
            if stopped.got is not None and serves(stopped.got):
                assert manager.cache_info["size"] == 1, f"it stood still before its line {line}"
        database.assert_unused()
