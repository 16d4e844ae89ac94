"""Failover: several hosts in one file, of which one is the primary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from pgmonkey import ConnectError, Registry
from pgmonkey.pool._async.connection import AsyncPooledConnection
from pgmonkey.pool._sync.connection import SyncPooledConnection
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.server import PostgresServer
from tests.kit.standby import Standby
from tests.pool.reader import GAP, Reader, reading
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


def test_a_listener_follows_a_promotion(
    client: Client, pair: Pair, registry_dir: RegistryDirectory
) -> None:
    """It listens at the new primary, after a gap; at a standby it says why it cannot."""
    there = {**pair.settings, "host": pair.standby.host, "port": pair.standby.port}
    del there["target_session_attrs"]
    side = client.handle.connection_type
    registry_dir.write("standby", {"connection_type": side, "connection_settings": there})
    client.registry.reload()
    with closing(Client(client.registry, "standby")) as other:
        with pytest.raises(ConnectError, match="neither a standby nor a pooler can LISTEN"):
            Reader(other, timeout=0.1)
    with reading(client) as reader:
        pair.primary.execute("NOTIFY news, 'before'", dbname="orders")
        reader.has("before")
        pair.primary.kill9()
        pair.standby.promote()
        reader.has("before", GAP)
        pair.standby.execute("NOTIFY news, 'after'", dbname="orders")
        reader.has("before", GAP, "after")


def takes_writes(server: PostgresServer, *, does: bool) -> None:
    """Let a server take writes, or refuse them; its sessions know with their next statement."""
    setting = "off" if does else "on"
    server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {setting}")
    server.execute("SELECT pg_reload_conf()")
    eventually(
        lambda: server.execute("SHOW default_transaction_read_only") == [(setting,)], 5, setting
    )


def raises(error: psycopg.Error) -> None:
    raise error


def wraps(error: psycopg.Error) -> None:
    raise LookupError("mine") from error


def replaces(error: psycopg.Error) -> None:
    error.add_note("seen")
    raise LookupError("mine")


def groups(error: psycopg.Error) -> None:
    raise ExceptionGroup("mine", [LookupError("mine"), ExceptionGroup("inner", [error])])


def swallows(error: psycopg.Error) -> None:
    error.add_note("seen")


#: What a block does with the error of its server.
DOES = (raises, wraps, replaces, groups, swallows)


def writes(client: Client, act: Callable[[psycopg.Error], None]) -> Callable[[Any], Any]:
    """Return a block that writes, and does something with the error of that."""

    def sync(connection: Any) -> None:
        try:
            connection.execute("INSERT INTO done VALUES (1)")
        except psycopg.errors.ReadOnlySqlTransaction as error:
            act(error)

    async def async_(connection: Any) -> None:
        try:
            await connection.execute("INSERT INTO done VALUES (1)")
        except psycopg.errors.ReadOnlySqlTransaction as error:
            act(error)

    return async_ if client.is_async else sync


def test_a_primary_that_was_demoted_is_left_whatever_the_block_does_with_the_error(
    client: Client, pair: Pair
) -> None:
    """One block fails at most; then every checkout leads to the server that takes writes."""
    pair.standby.promote()
    servers = pair.primary, pair.standby
    for number, act in enumerate(DOES):
        old, new = servers[number % 2], servers[1 - number % 2]
        takes_writes(new, does=True)
        client.fill(4)
        assert port(client) == old.port
        evicted = client.handle.status().evicted["standby"]
        takes_writes(old, does=False)

        with suppress(psycopg.Error, LookupError, ExceptionGroup):
            client.run(writes(client, act))
        assert all(write(client) for _ in range(10)), act.__name__
        with client.holding(4):
            assert port_of_all(client, pair) == {new.port}
        assert client.handle.status().evicted["standby"] >= evicted + 4


def port_of_all(client: Client, pair: Pair) -> set[int]:
    """Return the ports of the servers where the client has sessions."""
    asks = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend'"
    return {
        server.port for server in (pair.primary, pair.standby) if server.execute(asks)[0][0] > 0
    }


def test_a_block_that_only_reads_notices_that_its_server_was_demoted(
    client: Client, pair: Pair
) -> None:
    """Not even one write fails after it."""
    client.fill(3)
    pair.standby.promote()
    takes_writes(pair.primary, does=False)
    assert client.ask() == 1

    assert all(write(client) for _ in range(10))
    assert port(client) == pair.standby.port


@pytest.mark.parametrize("side", SIDES)
def test_a_sign_of_life_tells_that_a_server_was_demoted(
    pair: Pair, registry_dir: RegistryDirectory, side: str
) -> None:
    """With `check_on_checkout` no write fails: the server says it with its answer to the check."""
    registry_dir.write(
        "orders",
        {
            "connection_type": side,
            "connection_settings": pair.settings,
            "check_on_checkout": True,
        },
    )
    with Registry(registry_dir, metrics=None) as registry:
        client = Client(registry)
        client.fill(3)
        pair.standby.promote()
        takes_writes(pair.primary, does=False)
        assert all(write(client) for _ in range(10))
        assert port(client) == pair.standby.port
        client.close()


def in_read_only_transaction(connection: Any) -> Any:
    def sync() -> None:
        connection.read_only = True
        try:
            connection.execute("INSERT INTO done VALUES (1)")
        finally:
            connection.rollback()
            connection.read_only = None

    async def async_() -> None:
        await connection.set_read_only(True)
        try:
            await connection.execute("INSERT INTO done VALUES (1)")
        finally:
            await connection.rollback()
            await connection.set_read_only(None)

    return async_() if isinstance(connection, psycopg.AsyncConnection) else sync()


def after(statements: str) -> Callable[[Any], Any]:
    """Return a block that writes after these statements."""
    text = f"SELECT 1; {statements}; INSERT INTO done VALUES (1)"
    return lambda connection: connection.execute(text)


@pytest.mark.parametrize("target", ["read-write", "primary"])
@pytest.mark.parametrize("connection_type", SIDES)
def test_a_block_that_wants_to_read_only_makes_no_server_a_standby(
    server: PostgresServer,
    database: TemporaryDatabase,
    registry_dir: RegistryDirectory,
    connection_type: str,
    target: str,
) -> None:
    """Its writes fail, as it wanted; all connections stay, and the next blocks write."""
    with database.connect() as owner:
        owner.execute("CREATE TABLE done (id int)")
    section = "pool_settings" if connection_type == "pool" else "async_pool_settings"
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={"target_session_attrs": target},
        **{section: {"min_size": 1, "max_size": 2}},
    )
    of_a_session = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    wishes = [in_read_only_transaction, after("SET TRANSACTION READ ONLY")]
    wishes.append(after("COMMIT; BEGIN READ ONLY"))
    if target == "read-write":  # else it is for `reset_on_return` to take back
        wishes.append(after(f"{of_a_session}; COMMIT; BEGIN"))
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        client = Client(registry)
        backends = set(client.fill(2))
        for wish in wishes:
            for _ in range(3):
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    client.run(wish)
        if target == "read-write":
            client.run(lambda one: one.execute(of_a_session))
        assert all(write(client) for _ in range(10))
        assert set(client.fill(2)) == backends
        assert client.handle.status().evicted["standby"] == 0
        client.close()


def test_behind_a_pooler_that_passes_on_nothing_the_error_tells(
    client: Client, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libpq does not know is asked of the server, once an exception hints at it."""
    for kind in (AsyncPooledConnection, SyncPooledConnection):
        monkeypatch.setattr(kind, "reported", lambda _connection, _parameter: None)
    client.fill(3)
    pair.standby.promote()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        client.run(in_read_only_transaction)
    assert client.handle.status().evicted["standby"] == 0, "the block wanted that"
    takes_writes(pair.primary, does=False)

    with pytest.raises(LookupError):
        client.run(writes(client, wraps))
    assert all(write(client) for _ in range(10))
    assert port(client) == pair.standby.port


@pytest.mark.parametrize("side", ["async_pool"])
def test_a_demotion_that_one_loop_notices_is_known_in_the_others(
    pair: Pair, registry_dir: RegistryDirectory, side: str
) -> None:
    """One block fails in all loops of a handle together."""
    registry_dir.write("orders", {"connection_type": side, "connection_settings": pair.settings})
    with Registry(registry_dir, metrics=None) as registry:
        everyone = [Client(registry) for _ in range(3)]
        for one in everyone:
            one.fill(3)
        pair.standby.promote()
        takes_writes(pair.primary, does=False)
        assert [write(one) for _ in range(5) for one in everyone].count(False) <= 1
        assert {port(one) for one in everyone} == {pair.standby.port}
        for one in everyone:
            one.close()
