"""A machine that is busy at the worst moment: psycopg_pool is asked, and the answer is late."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.driver_log import whenever_it_logs
from tests.pool.side import SIDES, Client

#: Seconds. What asks for an idle connection, or for one more, queues for less.
LATE = 0.005


@contextmanager
def late() -> Iterator[None]:
    """Stop each request between the two looks at the clock that psycopg_pool takes."""
    with whenever_it_logs("connection requested", lambda _pool: time.sleep(LATE)):
        yield


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    side: str,
    name: str = "orders",
    number: int = 0,
) -> None:
    sizes = {"min_size": 0, "max_size": 4}
    registry_dir.declare(
        name,
        database,
        side,
        connection={"application_name": f"app-{number}"},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.timeout(60)
def test_a_client_that_waits_for_room_is_served_when_there_is_some(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """Another database closes the one connection that the process may have: it is made at once."""
    declare(registry_dir, database, side)
    declare(registry_dir, database, "pool", "audit")
    given_up = threading.Event()
    with (
        Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry,
        closing(Client(registry)) as client,
        closing(Client(registry, "audit")) as other,
        late(),
        whenever_it_logs("reconnection attempt", lambda *_: given_up.set()),
    ):
        for _ in range(20):
            other.ask()
            given_up.clear()
            answer = client.ask_soon(timeout=10)
            assert given_up.wait(5), "it waits, and no connect is under way"
            began = time.monotonic()
            other.shut()
            assert answer.result() == 1
            assert time.monotonic() - began < 5
            client.shut()


@pytest.mark.timeout(60)
def test_a_reload_replaces_every_idle_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """When `reload` returns, none of the older connections is left."""
    declare(registry_dir, database, side)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(3)
        with late():
            declare(registry_dir, database, side, number=1)
            assert registry.reload().applied == ("orders",)
            names = Counter(one["application_name"] for one in database.backends())
            assert names == {"app-1": 3}
        # The worker of psycopg_pool still adds the last of them to the pool.
        eventually(lambda: client.handle.status().idle == 3, 5, "three connections are idle")


@pytest.mark.timeout(60)
def test_room_that_comes_while_a_connect_is_given_up_is_used(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """A limit forbade the connect, and psycopg_pool counts it still: the client is served, too."""
    declare(registry_dir, database, side)
    declare(registry_dir, database, "pool", "audit")
    with (
        Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry,
        closing(Client(registry)) as client,
        closing(Client(registry, "audit")) as other,
        whenever_it_logs("reconnection attempt", lambda *_: other.shut()),
    ):
        for _ in range(20):
            other.ask()
            began = time.monotonic()
            assert client.ask(timeout=10) == 1
            assert time.monotonic() - began < 5
            client.shut()
