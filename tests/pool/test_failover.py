"""Failover: several hosts in one file, of which one is the primary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from pgmonkey import Registry
from tests.kit.canary import Canary
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.server import PostgresServer
from tests.kit.standby import Standby
from tests.pool.side import SIDES, Client, takes


@dataclass
class Pair:
    """A primary, its standby, and the port of each."""

    primary: PostgresServer
    standby: Standby
    settings: dict[str, Any]


@pytest.fixture
def pair(canary: Canary) -> Iterator[Pair]:
    """Two servers of a test's own, the second one following the first."""
    password = canary.secret()
    with PostgresServer() as primary:
        primary.create_role("app", password)
        primary.create_database("orders", owner="app")
        primary.execute("CREATE TABLE public.done (id int)", dbname="orders")
        primary.execute("GRANT ALL ON public.done TO app", dbname="orders")
        with Standby(primary) as standby:
            settings = {
                "host": f"{primary.host},{standby.host}",
                "port": f"{primary.port},{standby.port}",
                "dbname": "orders",
                "user": "app",
                "password": password,
                "connect_timeout": 2,
                "target_session_attrs": "read-write",
            }
            yield Pair(primary, standby, settings)


@pytest.fixture(params=SIDES)
def client(
    request: pytest.FixtureRequest, pair: Pair, registry_dir: RegistryDirectory
) -> Iterator[Client]:
    """A client, sync or async, of whichever of the two is the primary."""
    registry_dir.write(
        "orders", {"connection_type": request.param, "connection_settings": pair.settings}
    )
    with Registry(registry_dir, metrics=None) as registry:
        client = Client(registry)
        yield client
        client.close()


def port(client: Client) -> int:
    return int(client.ask("SELECT inet_server_port()", timeout=3))


def write(client: Client) -> bool:
    with suppress(psycopg.Error):
        client.ask("INSERT INTO done VALUES (1) RETURNING id", timeout=3)
        return True
    return False


def test_a_promotion_is_followed_soon_after_the_new_primary_accepts_writes(
    client: Client, pair: Pair
) -> None:
    """The primary dies, the standby is promoted: clients write again within two seconds."""
    client.fill(3)
    assert write(client)
    assert port(client) == pair.primary.port
    pair.primary.kill9()
    assert not write(client), "there is no primary"
    pair.standby.promote()

    with takes(2):
        eventually(lambda: write(client), 15, "the new primary is found")
    assert port(client) == pair.standby.port


def test_a_primary_that_was_demoted_is_left_at_the_first_read_only_error(
    client: Client, pair: Pair
) -> None:
    """One error, 25006, retires every connection to the old primary; the next checkout leaves it."""
    client.fill(3)
    pair.standby.promote()
    pair.primary.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    pair.primary.execute("SELECT pg_reload_conf()")
    eventually(
        lambda: client.ask("SHOW default_transaction_read_only") == "on", 5, "it is read-only"
    )

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        client.ask("INSERT INTO done VALUES (1) RETURNING id")
    assert client.ask("INSERT INTO done VALUES (2) RETURNING id") == 2
    assert port(client) == pair.standby.port
    assert client.handle.status().evicted["standby"] >= 3
