"""Servers and networks that fail: a checkout gives a working connection or a clear error in time."""

from __future__ import annotations

import os
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, ConnectError, Registry
from tests.chaos.side import SIDES, Client
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory

#: What a deadline may be missed by, in seconds, on a machine that does other things too. Where
#: a deadline does not hold, it is missed by much more: by a backoff, a connect, or for ever.
GRACE = 1.5

Make = Callable[..., Client]


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


@contextmanager
def takes(at_most: float, at_least: float = 0.0) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    assert at_least <= seconds <= at_most + GRACE


def refuses(client: Client, timeout: float) -> CheckoutTimeout | ConnectError:
    """Return the error of a checkout, which must come within its timeout."""
    with takes(timeout), pytest.raises((CheckoutTimeout, ConnectError)) as caught:
        client.ask(timeout=timeout)
    return caught.value


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_dead_idle_connections_after_a_restart_cost_no_error(
    make: Make, database: TemporaryDatabase, mode: Any
) -> None:
    """Four connections die idle in a restart; all clients that come next are served, at once."""
    client = make()
    client.fill(4)
    database.server.restart(mode)

    with takes(2):
        client.fill(4)
    assert client.handle.status().evicted["dead"] >= 1
    assert client.handle.status().errors == {}


def test_thirty_dead_connections_cost_no_error_and_no_backoff(
    make: Make, database: TemporaryDatabase
) -> None:
    """Thirty dead connections are dropped one after the other without a pause between them."""
    client = make(pool={"min_size": 1, "max_size": 30})
    client.fill(30, timeout=20)
    database.terminate_backends()

    with takes(0.5):
        assert client.ask() == 1
    assert client.handle.status().errors == {}


def test_a_connection_that_died_before_anybody_used_it_is_not_handed_out(
    make: Make, database: TemporaryDatabase
) -> None:
    """A connection that the pool has just made is looked at too: only a return proves it alive."""
    client = make(pool={"min_size": 1, "max_size": 2})
    for _ in range(5):
        client.open()
        database.terminate_backends()
        assert client.ask() == 1
        client.shut()

    assert client.handle.status().errors == {}


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_the_network_has_cut_is_replaced(
    make: Make, proxy: ChaosProxy, reset: bool
) -> None:
    """An idle connection that ended with FIN or RST is seen without asking, and replaced."""
    client = make(through=proxy)
    client.fill(2)
    proxy.kill(reset=reset)

    assert [client.ask() for _ in range(3)] == [1, 1, 1]
    assert client.handle.status().errors == {}


def test_a_stopped_backend_costs_a_sign_of_life_and_no_error(
    make: Make, database: TemporaryDatabase
) -> None:
    """With `check_on_checkout`, a server process that hangs is given up and the next one taken."""
    client = make(check_on_checkout=True, pool={"min_size": 1, "max_size": 2})
    stopped = client.fill(2)[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        with takes(4):
            backends = {client.ask("SELECT pg_backend_pid()", timeout=4) for _ in range(2)}
    finally:
        os.kill(stopped, signal.SIGCONT)

    assert stopped not in backends
    assert client.handle.status().evicted["check"] >= 1


def test_a_silent_network_ends_the_checkout_in_time(make: Make, proxy: ChaosProxy) -> None:
    """With `check_on_checkout` on a network that swallows everything, the deadline holds."""
    client = make(
        through=proxy, check_on_checkout=True, connection={"connect_timeout": 2}, timeout=5
    )
    client.fill(4)
    proxy.set("blackhole")

    error = refuses(client, 1.5)
    assert "orders" in str(error)
    proxy.set("pass")
    eventually(lambda: _works(client), 10, "it recovers")


def _works(client: Client) -> bool:
    with suppress(psycopg.OperationalError):
        return bool(client.ask(timeout=2) == 1)
    return False


def test_a_sign_of_life_is_one_message_and_leaves_no_transaction(
    make: Make, proxy: ChaosProxy
) -> None:
    """The check costs one round trip, and the connection is handed out idle."""
    client = make(through=proxy, check_on_checkout=True)
    client.fill(1)
    proxy.reset_counts()
    if client.is_async:
        client.ask()
    else:
        with client.handle as connection:
            status = connection.info.transaction_status
        assert status == psycopg.pq.TransactionStatus.IDLE
        assert proxy.round_trips == 1
        assert sum(proxy.frontend.values()) == 1


def test_a_server_that_is_down_gives_its_reason_within_the_timeout(
    make: Make, proxy: ChaosProxy
) -> None:
    """The error of a checkout while the server refuses says so, and comes in time."""
    client = make(through=proxy)
    client.fill(2)
    proxy.set("refuse")
    proxy.kill()

    for _ in range(3):
        error = refuses(client, 0.5)
        assert error.reason == "refused"
        assert "refused" in str(error)
    assert client.handle.status().waiting == 0


def test_a_server_that_accepts_and_says_nothing_gives_its_reason_within_the_timeout(
    make: Make, proxy: ChaosProxy
) -> None:
    """The first connection to a silent server: the client hears of it at its own deadline."""
    proxy.set("blackhole")
    client = make(through=proxy, connection={"connect_timeout": 2})

    with takes(1), pytest.raises(CheckoutTimeout):
        client.ask(timeout=1)
    eventually(
        lambda: client.handle.status().last_failure_reason == "timeout", 10, "the reason is known"
    )
    assert refuses(client, 0.5).reason == "timeout"


@pytest.mark.slow
@pytest.mark.parametrize("outage", [5.0, 10.0])
def test_recovery_comes_within_two_seconds_of_the_servers_return(
    make: Make, proxy: ChaosProxy, events: CapturedEvents, outage: float
) -> None:
    """After an outage in which it refused, a client that waits is served soon after the return."""
    client = make(through=proxy, pool={"min_size": 2, "max_size": 4})
    client.fill(2)
    proxy.set("refuse")
    proxy.kill()
    began = time.monotonic()
    while time.monotonic() - began < outage:
        refuses(client, 0.5)
    proxy.set("pass")

    with takes(2):
        assert client.ask(timeout=10) == 1
    assert len(events.named("connect.failed")) == 1, "said once for each change of state"
    assert events.wait("connect.recovered")["outage"] >= outage - 1


@pytest.mark.slow
def test_a_client_that_waits_through_an_outage_is_served_when_it_ends(
    make: Make, proxy: ChaosProxy
) -> None:
    """One client with a long timeout is enough: attempts go on for as long as it waits."""
    client = make(through=proxy)
    client.fill(1)
    proxy.set("refuse")
    proxy.kill()
    served: list[float] = []

    def wait() -> None:
        client.ask(timeout=30)
        served.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: client.handle.status().connect_attempts >= 6, 20, "attempts go on")
    proxy.set("pass")
    back = time.monotonic()
    thread.join(10)

    assert len(served) == 1
    assert served[0] - back <= 2 + GRACE


def test_a_slow_network_is_slow_but_right(make: Make, proxy: ChaosProxy) -> None:
    """With a delay on every message checkouts work, and no connection is made twice."""
    client = make(through=proxy, pool={"min_size": 1, "max_size": 1})
    client.fill(1)
    proxy.set("delay", delay=0.1)
    assert [client.ask(timeout=10) for _ in range(2)] == [1, 1]

    assert client.handle.status().connect_attempts == 1
    proxy.set("pass")


def test_a_full_server_serves_with_what_there_is(make: Make, database: TemporaryDatabase) -> None:
    """When the role has no connection left, the pool goes on with the ones that it has."""
    database.connection_limit(2)
    client = make()
    client.fill(2)

    with pytest.raises(CheckoutTimeout) as caught:
        client.fill(3, timeout=0.5)
    assert caught.value.reason == "too_many_connections"
    assert client.ask() == 1
    database.connection_limit(-1)


def test_a_cancelled_statement_leaves_a_usable_connection(make: Make) -> None:
    """`statement_timeout` reaches the caller as it is, and its connection serves the next one."""
    settings = {"statement_timeout": "50ms"}
    client = make(
        pool={"min_size": 1, "max_size": 1}, sync_settings=settings, async_settings=settings
    )
    before = client.ask("SELECT pg_backend_pid()")
    with pytest.raises(psycopg.errors.QueryCanceled):
        client.ask("SELECT pg_sleep(10)")

    assert client.ask("SELECT pg_backend_pid()") == before


def test_a_port_that_speaks_something_else_is_an_error_and_no_hang(
    make: Make,
) -> None:
    """A port that answers in HTTP ends in an error within the timeout."""

    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1024)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        try:
            client = make(connection={"port": other.server_address[1], "connect_timeout": 2})
            refuses(client, 1)
        finally:
            other.shutdown()
            thread.join()


def test_ten_thousand_timeouts_leave_nothing_behind(make: Make, proxy: ChaosProxy) -> None:
    """Clients that poll a dead server with short timeouts do not delay its recovery."""
    client = make(through=proxy)
    client.fill(1)
    proxy.set("refuse")
    proxy.kill()
    for _ in range(300):
        with suppress(CheckoutTimeout, ConnectError):
            client.ask(timeout=0.01)
    assert client.handle.status().waiting == 0
    proxy.set("pass")

    with takes(3):
        assert client.ask(timeout=10) == 1


def test_a_connection_past_its_lifetime_is_not_handed_out(make: Make) -> None:
    """`max_lifetime` holds at checkout, also for a connection that nobody had borrowed."""
    client = make(pool={"min_size": 1, "max_size": 1, "max_lifetime": "300ms"})
    before = client.ask("SELECT pg_backend_pid()")
    born = time.monotonic()
    eventually(lambda: time.monotonic() - born > 0.4, 2, "it is too old")

    assert client.ask("SELECT pg_backend_pid()") != before
    assert client.handle.status().evicted["lifetime"] == 1


def test_reset_on_return_gives_the_next_borrower_a_clean_session(make: Make) -> None:
    """What a borrower has set is gone for the next one; the configured settings stay."""
    client = make(
        reset_on_return=True,
        pool={"min_size": 1, "max_size": 1},
        connection={"options": "-c work_mem=5MB"},
    )
    backend = client.ask("SELECT pg_backend_pid()")
    client.ask("SELECT set_config('work_mem', '9MB', false)")

    assert client.ask("SELECT current_setting('work_mem')") == "5MB"
    assert client.ask("SELECT pg_backend_pid()") == backend


def test_a_dropped_role_says_so_at_once_and_comes_back(
    make: Make, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """NOLOGIN: what is open serves; with nothing open, the error is `auth` and comes at once."""
    client = make(pool={"min_size": 1, "max_size": 1})
    client.fill(1)
    database.execute(f'ALTER ROLE "{database.user}" NOLOGIN')
    client.fill(1)
    database.terminate_backends()

    with takes(2), pytest.raises(ConnectError) as caught:
        client.ask(timeout=20)
    assert caught.value.reason == "auth"
    attempts = client.handle.status().connect_attempts
    for _ in range(20):
        with pytest.raises(ConnectError):
            client.ask(timeout=5)
    assert client.handle.status().connect_attempts <= attempts + 2, "the server is not hammered"
    assert len(events.named("connect.failed", reason="auth")) == 1

    database.execute(f'ALTER ROLE "{database.user}" LOGIN')
    eventually(lambda: _works(client), 15, "it is tried again by itself")
