"""Forks at any moment of another thread's call: the child inherits no lock and no half of a change."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import prometheus_client
import pytest

from pgmonkey import HandleClosedError, PGConnectionManager, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.stopped import Stopped

#: Of so many lines of a call, about one is tried in each run, from a random one on.
STRIDE = 25
SIZES = {"min_size": 1, "max_size": 3}


pytestmark = pytest.mark.usefixtures("no_log")


def moments() -> Iterator[int]:
    """Give line numbers, without an end."""
    return itertools.count(random.randint(1, STRIDE), STRIDE)


def ask(registry: Registry) -> str:
    """Return what a checkout says its connection was made with."""
    with registry.get("orders").connection(timeout=10) as connection:
        row = connection.execute("SHOW application_name").fetchone()
    assert row is not None
    return str(row[0])


ACTS: dict[str, Callable[[Registry], object]] = {
    "first checkout": ask,
    "later checkout": ask,
    "reload": lambda registry: registry.reload(),
    "forced reload": lambda registry: registry.get("orders", force_reload=True),
    "status": lambda registry: registry.status(),
    "scrape": lambda _registry: prometheus_client.generate_latest(),
    "close of the handle": lambda registry: registry.get("orders").close(),
    "close": lambda registry: registry.close(),
}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("act", ACTS)
def test_a_child_works_whatever_another_thread_was_doing(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, act: str
) -> None:
    """The child serves, shows its numbers, reloads and closes; the parent's call ends well, too."""
    registry_dir.declare("orders", database, pool_settings=SIZES)
    for number in moments():
        registry_dir.declare(
            "orders", database, pool_settings=SIZES, connection={"application_name": "before"}
        )
        with Registry(registry_dir, watch=False) as registry:
            if act != "first checkout":
                ask(registry)
            registry_dir.declare(
                "orders", database, pool_settings=SIZES, connection={"application_name": "after"}
            )

            def child(registry: Registry = registry) -> list[str]:
                threading.settrace(None)
                seen = []
                if not registry.closed:
                    seen.append(ask(registry))
                    registry.reload()
                    seen.append(ask(registry))
                    registry.get("orders", force_reload=True)
                    seen.append(ask(registry))
                    registry.status()
                    prometheus_client.generate_latest()
                registry.close()
                return seen

            stopped = Stopped(lambda registry=registry: ACTS[act](registry), number)
            stopped.start()
            try:
                seen = in_a_child(child)
            finally:
                stopped.finish()
            assert stopped.error is None or isinstance(stopped.error, HandleClosedError)
            assert seen in (["before", "after", "after"], ["after"] * 3, []), f"line {number}"
            if not registry.closed:
                registry.reload()
                assert ask(registry) == "after"
        if not stopped.stood_still:
            break


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_child_works_whatever_another_thread_was_doing_with_a_manager(
    config: Path, database: TemporaryDatabase
) -> None:
    """The same for the calls of 4.0."""

    def call(manager: PGConnectionManager) -> None:
        for force_reload in (False, True):
            with manager.get_database_connection(
                config, "pool", force_reload=force_reload
            ) as connection:
                connection.execute("SELECT 1")

    for number in moments():
        with PGConnectionManager() as manager:

            def child(manager: PGConnectionManager = manager) -> str:
                threading.settrace(None)
                call(manager)
                manager.clear_cache()
                return "worked"

            stopped = Stopped(lambda manager=manager: call(manager), number)
            stopped.start()
            try:
                assert in_a_child(child) == "worked", f"line {number}"
            finally:
                stopped.finish()
            assert stopped.error is None
        if not stopped.stood_still:
            break
