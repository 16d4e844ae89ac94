"""The end of connections: nothing is left of a closed handle, and who needs the room is woken, and does not poll."""

from __future__ import annotations

import contextlib
import resource
import threading

import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client, refuses

#: How often a process may sleep and wake up meanwhile. One that looks every millisecond does 500 times.
MOST_WAKE_UPS = 150


def wake_ups() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


@pytest.mark.parametrize("connection_type", SIDES)
def test_a_client_that_waits_for_a_connection_to_close_does_not_poll(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    connection_type: str,
) -> None:
    """The network swallows the farewell of the only connection: the process still sleeps."""
    sizes = {"min_size": 0, "max_size": 1}
    registry_dir.declare("audit", database, connection={"port": proxy.port}, pool_settings=sizes)
    registry_dir.declare(
        "orders", database, connection_type, pool_settings=sizes, async_pool_settings=sizes
    )
    with Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry:
        audit = registry.get("audit")
        with audit as connection:
            connection.execute("SELECT 1")
        client = Client(registry)
        proxy.set("blackhole")
        closing = threading.Thread(target=audit.close)
        closing.start()
        eventually(lambda: connection.closed, 5, "it was closed at this end")
        before = wake_ups()
        refuses(client, timeout=0.5)
        assert wake_ups() - before < MOST_WAKE_UPS
        closing.join()
        proxy.set("pass")
        assert client.ask(timeout=10) == 1
        client.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("connection_type", SIDES)
def test_a_handle_that_is_closed_while_it_connects_leaves_no_session(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    connection_type: str,
) -> None:
    """When `close()` returns, the server has no session of it: a user, a database can be dropped."""
    sizes = {"min_size": 4, "max_size": 4}
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={"port": proxy.port},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )
    proxy.set("delay", delay=0.005)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        contextlib.closing(Client(registry)) as client,
    ):
        for _ in range(20):
            assert client.ask() == 1
            client.shut()
            assert database.backends() == []
