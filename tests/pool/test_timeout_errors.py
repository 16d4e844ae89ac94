"""The error of a checkout that got no connection in time says who has the connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgmonkey import CheckoutTimeout, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client

SIZES = {"min_size": 1, "max_size": 3}


@pytest.fixture(params=SIDES)
def client(
    request: pytest.FixtureRequest, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> Iterator[Client]:
    """A client of a pool of three."""
    declare(registry_dir, database, request.param, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        client = Client(registry)
        yield client
        client.close()


def declare(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str, number: int
) -> None:
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={"application_name": f"app-{number}"},
        pool_settings=SIZES,
        async_pool_settings=SIZES,
    )


def test_connections_of_an_older_version_that_hold_the_room_are_counted(
    client: Client, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """After a rotation three retired connections leave no room: the error says so."""
    with client.holding(3):
        declare(registry_dir, database, client.handle.connection_type, 1)
        assert client.registry.reload().applied == ("orders",)
        with pytest.raises(CheckoutTimeout) as caught:
            client.ask(timeout=0.2)

    message = str(caught.value)
    assert "(open 0, in use 0, retired 3, waiting 0, max_size 3)" in message
    assert message.count("borrowed at") == 3, "the three that hold longest"
    assert client.ask() == 1
