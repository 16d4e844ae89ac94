"""The fixtures of the tests about failing servers and networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client, Make


@pytest.fixture(params=SIDES)
def connection_type(request: pytest.FixtureRequest) -> str:
    """Each of the two sides."""
    return str(request.param)


@pytest.fixture
def make(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> Iterator[Make]:
    """Make a client of the database, with a pool of four and these settings."""
    opened: list[tuple[Registry, Client]] = []

    def make(
        *, through: ChaosProxy | None = None, connection: Any = None, **settings: Any
    ) -> Client:
        address = {"host": through.host, "port": through.port} if through else {}
        pool = {"min_size": 1, "max_size": 4} | settings.pop("pool", {})
        registry_dir.declare(
            "orders",
            database,
            connection_type,
            connection=address | (connection or {}),
            **{"pool_settings" if connection_type == "pool" else "async_pool_settings": pool},
            **settings,
        )
        registry = Registry(registry_dir, metrics=None)
        opened.append((registry, Client(registry)))
        return opened[-1][1]

    yield make
    for registry, client in opened:
        client.close()
        registry.close()
