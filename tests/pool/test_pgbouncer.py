"""Behind a real PgBouncer: what it says has the right reason, and a full one takes a new login."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from psycopg import sql

from pgmonkey import CheckoutTimeout, ConnectError, ReloadReport
from pgmonkey.config.budget import Fleet, budget, demand_of
from pgmonkey.config.directory import DirectoryLoader
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.pgbouncer import PgBouncer, version
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import Client, Make, do, takes, wait, works

pytestmark = pytest.mark.pgbouncer

SIZE = 3
FULL = {"min_size": SIZE, "max_size": SIZE}
ONE = {"min_size": 1, "max_size": 1}
TIMEOUT = {"statement_timeout": "5s"}

Start = Callable[..., PgBouncer]
Declare = Callable[..., ReloadReport]


@pytest.fixture
def start(database: TemporaryDatabase, canary: Canary) -> Iterator[Start]:
    """Start a PgBouncer before the database, with these settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(PgBouncer(database, canary, settings))


@pytest.fixture
def declare(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> Declare:
    """Write the file of a full pool again, and reload, unless the watcher has done so."""

    def declare(client: Client, bouncer: PgBouncer, **connection: Any) -> ReloadReport:
        registry_dir.declare(
            "orders",
            database,
            connection_type,
            connection=bouncer.address | connection,
            pooler="pgbouncer",
            pool_settings=FULL,
            async_pool_settings=FULL,
        )
        return client.registry.reload()

    return declare


@pytest.mark.parametrize(
    "mistake, reason, says",
    [
        ({"dbname": "SSL of no name"}, "no_database", "no such database"),
        ({"user": "SSL of no name"}, "auth", "authentication failed"),
        ({"password": "SSL of no name"}, "auth", "authentication failed"),
        ({"sslmode": "require"}, "tls", "does not support SSL"),
    ],
)
def test_a_mistake_in_the_file_is_the_first_error(
    start: Start, make: Make, mistake: dict[str, str], reason: str, says: str
) -> None:
    """PgBouncer has texts of its own, and names without quotes: each has its reason, at once."""
    client = make(connection=start().address | mistake, pooler="pgbouncer")
    with takes(2), pytest.raises(ConnectError, match=says) as caught:
        client.ask(timeout=20)
    assert caught.value.reason == reason


def test_a_session_setting_is_the_first_error_which_says_what_to_write(
    start: Start, make: Make, database: TemporaryDatabase, registry_dir: RegistryDirectory
) -> None:
    """The hint names PgBouncer and its key; with it `check` finds the setting; the role has it then."""
    bouncer = start()
    client = make(connection=bouncer.address, sync_settings=TIMEOUT, async_settings=TIMEOUT)
    with takes(2), pytest.raises(ConnectError, match="unsupported startup parameter") as caught:
        client.ask(timeout=20)
    assert caught.value.reason == "setting"
    assert caught.value.hint.startswith("this is PgBouncer: write `pooler: pgbouncer`, and set ")

    address = bouncer.address
    registry_dir.declare(
        "orders", database, connection=address, pooler="pgbouncer", sync_settings=TIMEOUT
    )
    (problem,) = DirectoryLoader(registry_dir).scan().all_problems()
    assert (problem.code, problem.hint) == (
        "config.pgbouncer",
        "set it for the role: ALTER ROLE ... SET ...",
    )

    database.server.execute(
        sql.SQL("ALTER ROLE {} SET statement_timeout = '5s'").format(sql.Identifier(database.user))
    )
    client = make(connection=address, pooler="pgbouncer")
    assert client.ask("SHOW statement_timeout") == "5s"


def test_a_session_setting_of_the_service_file_is_named_though_the_pooler_is_declared(
    start: Start, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint says where to remove it, and what PgBouncer can do; that mends it."""
    services = tmp_path / "services.conf"
    services.write_text("[orders]\noptions=-c statement_timeout=5s\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    service = {"service": "orders"}
    client = make(connection=start().address | service, pooler="pgbouncer")
    with takes(2), pytest.raises(ConnectError) as caught:
        client.ask(timeout=20)
    assert caught.value.reason == "setting"
    assert caught.value.hint.startswith("PgBouncer does not take ")
    assert "service file" in caught.value.hint
    assert "ignore_startup_parameters" in caught.value.hint

    forgiving = start(ignore_startup_parameters="options")
    client = make(connection=forgiving.address | service, pooler="pgbouncer")
    assert works(client)


def test_a_file_that_does_not_mention_pgbouncer_is_reported_at_once(
    start: Start, make: Make, events: CapturedEvents
) -> None:
    """The first connection shows that a pooler answers; a server, or one that is declared, is fine."""
    address = start().address
    assert make(pool=ONE, watch=False).ask() == 1
    assert make(connection=address, pooler="pgbouncer", pool=ONE, watch=False).ask() == 1
    assert not events.named("database.pooler_found")
    client = make(connection=address, pool=ONE)
    assert client.ask() == 1
    event = events.wait("database.pooler_found")
    assert event["database"] == "orders"
    assert event["hint"].startswith("write `pooler: pgbouncer`")
    for _ in range(3):
        assert client.ask() == 1
    assert len(events.named("database.pooler_found")) == 1


@pytest.mark.slow
def test_a_pgbouncer_without_a_free_session_is_known_too(
    start: Start, make: Make, events: CapturedEvents
) -> None:
    """Its first answer waits for a session: it is reported as a PgBouncer, not as a use after return."""
    address = start(default_pool_size=1).address
    holder = make(connection=address, pooler="pgbouncer", pool=ONE, watch=False)
    client = make(connection=address, pool=ONE)
    with holder.holding():
        answer = client.ask_soon(timeout=20)
        events.wait("database.pooler_found")
    assert answer.result(20) == 1
    assert not events.named("checkout.used_after_return")


def test_statements_are_not_prepared_unless_the_file_says_so(start: Start, make: Make) -> None:
    """Psycopg prepares none by itself: before 1.21 PgBouncer did not know in which session they are."""
    client = make(connection=start().address, pooler="pgbouncer", pool=ONE)
    for _ in range(10):
        assert do(client, _select) == 1
    assert do(client, _prepared) == 0


def test_statements_are_prepared_with_a_pgbouncer_that_follows_them(
    start: Start, make: Make, database: TemporaryDatabase
) -> None:
    """`prepare_threshold` is allowed: PgBouncer 1.21 prepares them in each session of the server."""
    if version() < (1, 21):
        pytest.skip("needs PgBouncer 1.21 or newer: set PGBOUNCER to its path")
    bouncer = start(default_pool_size=SIZE, max_prepared_statements=100)
    connection = bouncer.address | {"prepare_threshold": "1"}
    client = make(connection=connection, pooler="pgbouncer", pool=FULL)
    client.fill(SIZE)
    for _ in range(30):
        assert do(client, _select) == 1
    assert do(client, _prepared) > 0
    database.terminate_backends()
    eventually(lambda: works(client), 10, "PgBouncer has connected again")
    for _ in range(30):
        assert do(client, _select) == 1


async def _select(connection: Any) -> int:
    rows = await wait(connection.execute("SELECT %s::int", [1]))
    (number,) = await wait(rows.fetchone())
    return int(number)


async def _prepared(connection: Any) -> int:
    rows = await wait(connection.execute("SELECT count(*) FROM pg_prepared_statements"))
    (number,) = await wait(rows.fetchone())
    return int(number)


def test_a_full_pgbouncer_serves_with_what_there_is(start: Start, make: Make) -> None:
    """`max_client_conn` is reached: the open connections serve, and the error says so."""
    client = make(connection=start(max_client_conn=2).address, pooler="pgbouncer")
    client.fill(2)
    with client.holding(2), pytest.raises(CheckoutTimeout) as caught:
        client.ask(timeout=0.5)
    assert caught.value.reason == "too_many_connections"
    assert "no more connections allowed (max_client_conn)" in caught.value.text
    assert "lower max_size" in caught.value.hint
    assert client.ask() == 1


@pytest.mark.slow
def test_a_pgbouncer_without_a_server_connection_says_so(
    start: Start, make: Make, database: TemporaryDatabase
) -> None:
    """`max_db_connections` are in use by others until `query_wait_timeout`: it is no slow network."""
    bouncer = start(pool_mode="session", max_db_connections=1, query_wait_timeout=1)
    bouncer.learn("postgres", database.server.superuser_password)
    other = database.connect(
        user="postgres", password=database.server.superuser_password, **bouncer.address
    )
    other.execute("SELECT 1")
    client = make(connection=bouncer.address, pooler="pgbouncer", pool=ONE)
    with pytest.raises(CheckoutTimeout, match="query_wait_timeout") as caught:
        client.ask(timeout=3)
    assert caught.value.reason == "too_many_connections"
    assert caught.value.hint.startswith("the pooler got no server connection")
    other.close()
    eventually(lambda: works(client), 10, "it works again")


@pytest.mark.slow
def test_a_server_that_is_down_behind_pgbouncer_is_waited_for(
    start: Start, make: Make, database: TemporaryDatabase
) -> None:
    """PgBouncer lets clients wait for a server that is down: the hint says so, and it recovers."""
    bouncer = start(server_login_retry=1)
    client = make(connection=bouncer.address | {"connect_timeout": 2}, pooler="pgbouncer", pool=ONE)
    database.server.stop()
    with takes(3), pytest.raises(CheckoutTimeout) as caught:
        client.ask(timeout=3)
    assert caught.value.reason == "timeout"
    assert "whether PgBouncer gets a connection to its server" in caught.value.hint
    database.server.start()
    eventually(lambda: works(client), 10, "it works again")


@pytest.mark.slow
def test_a_wrong_password_behind_pgbouncer_heals_by_itself(
    start: Start, make: Make, database: TemporaryDatabase, canary: Canary
) -> None:
    """The server refuses the login of PgBouncer: the first error says so."""
    bouncer = start(server_login_retry=1)
    client = make(connection=bouncer.address, pooler="pgbouncer", pool=ONE)
    database.server.set_password(database.user, canary.secret())
    with takes(2), pytest.raises(ConnectError, match="password authentication failed") as caught:
        client.ask(timeout=20)
    assert caught.value.reason == "auth"
    database.server.set_password(database.user, database.password)
    eventually(lambda: works(client), 20, "it works again")


@pytest.mark.slow
def test_a_full_pgbouncer_takes_a_new_user(
    start: Start, make: Make, database: TemporaryDatabase, declare: Declare
) -> None:
    """With session pooling the pool holds all `max_db_connections`: its login waits for one.

    Only when a connection was given up can the new user log in at all.
    """
    bouncer = start(pool_mode="session", max_db_connections=SIZE, query_wait_timeout=1)
    bouncer.learn("postgres", database.server.superuser_password)
    client = make(connection=bouncer.address, pooler="pgbouncer", pool=FULL)
    client.fill(SIZE)
    with Queries(client) as queries:
        report = declare(
            client, bouncer, user="postgres", password=database.server.superuser_password
        )
        assert report.applied == ("orders",), report.rejected
        queries.go_on()
    assert queries.errors == []
    assert client.ask("SELECT current_user") == "postgres"


def test_a_full_pgbouncer_takes_a_new_password(
    start: Start, make: Make, database: TemporaryDatabase, declare: Declare, canary: Canary
) -> None:
    """`max_client_conn` is the size of the pool: a reload gives up one connection for its probe.

    A wrong password is rejected, the right one replaces all others, and no query fails.
    """
    bouncer = start(max_client_conn=SIZE)
    client = make(connection=bouncer.address, pooler="pgbouncer", pool=FULL)
    client.fill(SIZE)
    with Queries(client) as queries:
        (problem,) = declare(client, bouncer, password=canary.secret()).rejected["orders"]
        assert "authentication failed" in problem.message
        for number in range(3):
            bouncer.learn(database.user, database.rotate())
            name = f"app-{number}"
            assert declare(client, bouncer, application_name=name).rejected == {}
            for _ in range(2 * SIZE):
                assert client.ask("SHOW application_name") == name
        queries.go_on()
    assert queries.errors == []


def test_the_budget_of_a_pgbouncer_is_enough_for_a_rotation(
    start: Start, make: Make, declare: Declare, registry_dir: RegistryDirectory
) -> None:
    """`max_client_conn` is what `pgmonkey budget` says: no connect is refused while all are replaced."""
    bouncer = start(max_client_conn=SIZE + 1)
    client = make(connection=bouncer.address, pooler="pgbouncer", pool=FULL)
    client.fill(SIZE)
    configs = DirectoryLoader(registry_dir).scan().configs.values()
    (total,) = budget([demand_of(config, loops=1) for config in configs], Fleet())
    assert (total.scope, total.rotating) == ("pgbouncer", SIZE + 1)
    with Queries(client) as queries:
        assert declare(client, bouncer, application_name="app-1").rejected == {}
        queries.go_on()
    assert queries.errors == []
    assert client.handle.status().connect_failures["too_many_connections"] == 0
    for _ in range(2 * SIZE):
        assert client.ask("SHOW application_name") == "app-1"


class Queries:
    """Clients that ask all the time, and what failed."""

    def __init__(self, client: Client) -> None:
        self.errors: list[BaseException] = []
        self.answered = 0
        self._client = client
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2 * SIZE)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self._client.ask("SELECT 1 FROM pg_sleep(0.005)", timeout=10)
                self.answered += 1
            except BaseException as error:
                self.errors.append(error)

    def go_on(self) -> None:
        """Wait for some more answers."""
        before = self.answered
        eventually(lambda: self.errors or self.answered > before + 100, 20, "they go on")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
