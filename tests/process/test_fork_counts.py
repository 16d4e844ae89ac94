"""What a forked child counts: its own checkouts and connects, and none of its parent's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import prometheus_client
import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory
from tests.process.test_forks_and_locks import again_and_again

#: A pool makes one connection for one client.
SIZES = {"min_size": 0, "max_size": 4}
SIDES = ("pool", "normal", "async_pool", "async")
FORKS = 60


def use(registry: Registry, times: int) -> None:
    """Borrow a connection some times, on an event loop of its own if the handle is async."""
    handle: Any = registry.get("orders")
    if not handle.connection_type.startswith("async"):
        for _ in range(times):
            with handle as connection:
                connection.execute("SELECT 1")
        return

    async def main() -> None:
        for _ in range(times):
            async with handle as connection:
                await connection.execute("SELECT 1")
        await handle.close()

    asyncio.run(main())


@pytest.mark.parametrize("connection_type", SIDES)
def test_a_child_counts_what_it_did_itself(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """Its status and its metrics begin at zero: three checkouts are three, one connect is one.

    What it does changes no number of its parent.
    """
    registry_dir.declare(
        "orders", database, connection_type, pool_settings=SIZES, async_pool_settings=SIZES
    )
    numbers = prometheus_client.CollectorRegistry()

    def counted() -> tuple[int, ...]:
        status = registry.get("orders").status()
        labels = {"database": "orders", "type": connection_type}
        exported = [
            numbers.get_sample_value(name, labels)
            for name in (
                "pgmonkey_pool_requests_total",
                "pgmonkey_pool_use_seconds_count",
                "pgmonkey_pool_connect_attempts_total",
                "pgmonkey_pool_connect_seconds_count",
            )
        ]
        shown = (status.requests, status.uses.count, status.connect_attempts, status.connects.count)
        assert tuple(exported) == shown
        return shown

    with Registry(registry_dir, metrics=numbers, watch=False) as registry:
        use(registry, 5)
        before = counted()
        assert before == (5, 5, 1, 1)

        def child() -> tuple[int, ...]:
            use(registry, 3)
            return counted()

        assert in_a_child(child) == (3, 3, 1, 1)
        assert counted() == before


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    """Let the interpreter change threads as often as it can, so that a fork meets every moment."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient_threads")
def test_a_child_works_whatever_a_scrape_of_the_parent_was_doing(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A fork in the middle of another thread's scrape: the child serves, shows and counts."""
    registry_dir.declare("orders", database, pool_settings=SIZES)
    numbers = prometheus_client.CollectorRegistry()
    with Registry(registry_dir, metrics=numbers, watch=False) as registry:
        use(registry, 1)

        def scrape() -> None:
            registry.get("orders").status()

        def child() -> tuple[int, int]:
            use(registry, 2)
            prometheus_client.generate_latest(numbers)
            status = registry.get("orders").status()
            return status.requests, status.connects.count

        with again_and_again(scrape):
            for _ in range(FORKS):
                assert in_a_child(child) == (2, 1)
