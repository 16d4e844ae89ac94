"""Reloads on a server, or for a role, that has no connection left: the new login is still tried."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, ConnectError, Registry
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.leaks import session_servers_key
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.server import PostgresServer
from tests.pool.side import SIDES, Client

SIZE = 3
FULL = {"min_size": SIZE, "max_size": SIZE}


@pytest.fixture(scope="module")
def small_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """A server of a few connections, none of them reserved."""
    settings = {"max_connections": "12", "superuser_reserved_connections": "0"}
    with PostgresServer(settings=settings) as server:
        pytestconfig.stash[session_servers_key].append(server)
        yield server


@pytest.fixture
def database(small_server: PostgresServer, canary: Canary) -> Iterator[TemporaryDatabase]:
    """A database on it."""
    database = TemporaryDatabase.create(small_server, canary)
    yield database
    database.disconnect()
    try:
        database.assert_unused()
    finally:
        database.drop()


@contextmanager
def no_slot_left(database: TemporaryDatabase) -> Iterator[psycopg.Connection]:
    """Take every connection that the server has left, those of superusers too.

    Gives one of them, to ask the server something while no other can connect.
    """
    with ExitStack() as stack:
        others = []
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            while True:
                others.append(stack.enter_context(closing(database.server.connect())))
        others[0].autocommit = True
        yield others[0]


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    side: str,
    number: int,
    sizes: dict[str, int] = FULL,
    **more: str,
) -> None:
    registry_dir.declare(
        "orders",
        database,
        side,
        connection={"application_name": f"app-{number}", **more},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )


@pytest.mark.parametrize("side", SIDES)
def test_a_wrong_password_is_rejected_though_the_server_has_no_slot_left(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, side: str
) -> None:
    """A full server refuses before it looks at the password, so its refusal says nothing of it.

    A reload with a wrong password is rejected with the reason, the old connections keep serving,
    and the right password is taken on, with never more connections than the pool has.
    """
    declare(registry_dir, database, side, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(SIZE)
        with no_slot_left(database) as superuser:
            wrong = canary.secret()
            declare(registry_dir, database, side, 1, password=wrong)
            report = registry.reload()
            status = registry.status().databases[0]
            assert report.applied == ()
            (problem,) = report.rejected["orders"]
            assert "password authentication failed" in problem.message
            assert (status.version, status.stale) == (1, True)
            for _ in range(2 * SIZE):
                assert client.ask("SHOW application_name") == "app-0"

            declare(registry_dir, database, side, 2)
            assert registry.reload().applied == ("orders",)
            assert not registry.status().databases[0].stale
            for _ in range(2 * SIZE):
                assert client.ask("SHOW application_name") == "app-2"
            ((sessions,),) = superuser.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [database.user]
            ).fetchall()
            assert sessions <= SIZE


@pytest.mark.parametrize("side", [*SIDES, "normal", "async"])
def test_a_wrong_password_is_rejected_though_the_role_has_no_connection_left(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, side: str
) -> None:
    """A role whose limit is the pool's size: each new login takes the place of an old connection."""
    size = SIZE if side in SIDES else 1
    database.connection_limit(size)
    declare(registry_dir, database, side, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(size)
        declare(registry_dir, database, side, 1, password=canary.secret())
        report = registry.reload()
        (problem,) = report.rejected["orders"]
        assert "password authentication failed" in problem.message
        assert registry.status().databases[0].stale
        assert client.ask("SHOW application_name") == "app-0"

        database.rotate()
        declare(registry_dir, database, side, 2)
        assert registry.reload().applied == ("orders",)
        with client.holding(size) as backends:
            assert len(set(backends)) == size
            assert {one["application_name"] for one in database.backends()} == {"app-2"}


@pytest.mark.parametrize("side", SIDES)
def test_a_pool_without_a_connection_takes_a_new_password_on_a_full_server(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """The old password is refused, and no slot is left to try the new one: there is nothing to lose.

    Its clients wait for a slot with the new password, and do not fail with the old one.
    """
    declare(registry_dir, database, side, 0)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(SIZE)
        database.rotate()
        database.terminate_backends()
        with pytest.raises(ConnectError, match="password authentication failed"):
            client.ask(timeout=20)
        with no_slot_left(database):
            eventually(lambda: finds_it_full(client), 20, "the server is full for it, too")
            declare(registry_dir, database, side, 1)
            assert registry.reload().applied == ("orders",)
            answer = client.ask_soon("SHOW application_name", timeout=20)
            before = refusals(client)
            eventually(lambda: refusals(client) > before, 10, "asks")
        assert answer.result(20) == "app-1"


@pytest.mark.parametrize("side", SIDES)
def test_a_pool_whose_last_place_others_take_moves_to_a_new_password(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """The old password is refused, and another process takes the place that was made for the new one.

    No client fails: neither while the new one is tried, nor until the server has room again.
    """
    with ChaosProxy(database.host, database.port) as proxy:
        address = {"host": proxy.host, "port": str(proxy.port)}
        sizes = {"min_size": 1, "max_size": 2}
        declare(registry_dir, database, side, 0, sizes, **address)
        with (
            Registry(registry_dir, metrics=None, watch=False) as registry,
            closing(Client(registry)) as client,
            ThreadPoolExecutor() as threads,
        ):
            with client.holding():
                database.rotate()
                waits = client.ask_soon(timeout=20)
                eventually(lambda: client.handle.status().connect_failures["auth"], 10, "refused")
                proxy.set("full", says="sorry, too many clients already")
                declare(registry_dir, database, side, 1, sizes, **address)
                report = threads.submit(registry.reload)
            assert waits.result() == 1
            eventually(lambda: not proxy.connections, 10, "the last connection is given up")
            answer = client.ask_soon("SHOW application_name", timeout=20)
            assert report.result().applied == ("orders",)
            proxy.set("pass")
            assert answer.result() == "app-1"
            assert client.errors() == {}


@pytest.mark.parametrize("side", SIDES)
def test_a_pool_without_a_connection_keeps_its_password_while_the_server_is_full(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, side: str
) -> None:
    """Nothing says that the old password is refused: a wrong new one is not taken on untried."""
    with ChaosProxy(database.host, database.port) as proxy:
        address = {"host": proxy.host, "port": str(proxy.port)}
        declare(registry_dir, database, side, 0, **address)
        with (
            Registry(registry_dir, metrics=None, watch=False) as registry,
            closing(Client(registry)) as client,
        ):
            client.fill(SIZE)
            proxy.set("full", says="sorry, too many clients already")
            proxy.kill()
            answer = client.ask_soon("SHOW application_name", timeout=20)
            declare(registry_dir, database, side, 1, **address, password=canary.secret())
            (problem,) = registry.reload().rejected["orders"]
            assert problem.code == "probe.too_many_connections"
            proxy.set("pass")
            assert answer.result() == "app-0"


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_a_rotation_goes_on_when_others_take_the_place_of_a_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """A client of another process asks for each place that becomes free, as fast as it can.

    The reload is applied in the end, and the pool has what it had.
    """
    declare(registry_dir, database, side, 0)
    with (
        Registry(registry_dir, metrics=None) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(SIZE)
        with no_slot_left(database), thief(database) as stolen:
            declare(registry_dir, database, side, 1)
            eventually(lambda: stolen, 20, "a place was taken")
            eventually(lambda: client.ask("SHOW application_name") == "app-1", 30, "it has rotated")
            assert not registry.status().databases[0].stale
        eventually(lambda: has_all(client), 20, "it has all connections again")


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_a_pool_gives_connections_up_while_the_server_is_full(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """A process that has none gets one, and no client of the pool fails; then it takes them back."""
    declare(registry_dir, database, side, 0)
    with (
        Registry(registry_dir, metrics=None) as registry,
        closing(Client(registry)) as client,
    ):
        client.fill(SIZE)
        with no_slot_left(database), thief(database) as stolen:
            eventually(lambda: has_given_way(client), 20, "it gives way")
            assert client.ask() == 1
            eventually(lambda: stolen, 20, "another process has one")
        eventually(lambda: has_all(client), 20, "it has all again")
        assert client.errors() == {}


def finds_it_full(client: Client) -> bool:
    """Ask in vain, and tell whether the server was ever full for that."""
    with pytest.raises((CheckoutTimeout, ConnectError)):
        client.ask(timeout=0.5)
    return refusals(client) > 0


def refusals(client: Client) -> int:
    """Return how many connects were refused because there are too many connections."""
    return int(client.handle.status().connect_failures["too_many_connections"])


def has_given_way(client: Client) -> bool:
    """Tell whether the pool has given a connection up because the server is full."""
    return bool(client.handle.status().evicted["full"])


def has_all(client: Client) -> bool:
    """Tell whether the pool can lend all its connections at once."""
    return len(set(client.fill(SIZE))) == SIZE


@contextmanager
def thief(database: TemporaryDatabase) -> Iterator[list[object]]:
    """Take a free place of the server as soon as there is one, keep it for a moment, and go on."""
    stop = threading.Event()
    taken: list[object] = []

    def steal() -> None:
        while not stop.is_set():
            with suppress(psycopg.OperationalError), closing(database.server.connect()):
                taken.append(None)
                stop.wait(0.3)

    thread = threading.Thread(target=steal)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "says",
    [
        "no more connections allowed (max_client_conn)",
        (
            "(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to"
            " pool_size: 3"
        ),
        "The maximum number of client connections to the proxy exceeded 3.",
        "Too many connections to this endpoint. Please try again later.",
        "too many client tcp connections (global client_max 3)",
        "Sorry, too many clients already",
    ],
    ids=["PgBouncer", "Supavisor", "RDS Proxy", "Neon", "Odyssey", "pgpool"],
)
def test_a_full_pooler_takes_a_new_password(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
    says: str,
    side: str,
) -> None:
    """Each pooler says in its own words that it is full: the pool gives up a connection for its probe.

    A wrong password is rejected with the server's reason, the right one replaces all connections.
    """
    with ChaosProxy(database.host, database.port) as pooler:
        address = {"host": pooler.host, "port": str(pooler.port)}
        declare(registry_dir, database, side, 0, **address)
        with (
            Registry(registry_dir, metrics=None, watch=False) as registry,
            closing(Client(registry)) as client,
        ):
            client.fill(SIZE)
            pooler.set("full", most=SIZE, says=says)
            declare(registry_dir, database, side, 1, **address, password=canary.secret())
            (problem,) = registry.reload().rejected["orders"]
            assert "password authentication failed" in problem.message
            assert client.ask("SHOW application_name") == "app-0"

            database.rotate()
            declare(registry_dir, database, side, 2, **address)
            assert registry.reload().applied == ("orders",)
            for _ in range(2 * SIZE):
                assert client.ask("SHOW application_name") == "app-2"
            assert client.errors() == {}
