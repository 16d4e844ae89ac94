"""Servers and networks that come back: how soon clients are served, and how gently it is asked."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import psutil
import psycopg
import psycopg_pool.pool
import psycopg_pool.pool_async
import pytest

from pgmonkey import CheckoutTimeout, ConnectError, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import GRACE, SIDES, Client, Make, refuses, takes

#: Seconds within which the first client is served after a server's return, by the promise.
RECOVERY = 2.0
OUTAGES = (5, 10, 20, 40)


@contextmanager
def clients_of(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> Iterator[dict[tuple[str, int], tuple[Client, ChaosProxy]]]:
    """Give a client for each side and outage, each behind a network of its own."""
    with ExitStack() as stack:
        proxies = {}
        for side in SIDES:
            for outage in OUTAGES:
                proxy = stack.enter_context(ChaosProxy(database.host, database.server.port))
                pool = {"min_size": 2, "max_size": 4}
                registry_dir.declare(
                    f"{side}-{outage}",
                    database,
                    side,
                    connection={"host": proxy.host, "port": proxy.port},
                    pool_settings=pool,
                    async_pool_settings=pool,
                )
                proxies[side, outage] = proxy
        registry = stack.enter_context(Registry(registry_dir, metrics=None))
        clients = {}
        for (side, outage), proxy in proxies.items():
            client = Client(registry, f"{side}-{outage}")
            stack.callback(client.close)
            client.fill(2)
            clients[side, outage] = (client, proxy)
        yield clients


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_recovery_comes_within_two_seconds_of_the_servers_return(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Outages of 5, 10, 20 and 40 seconds in which the server refuses, all at the same time.

    Clients ask all the time, with short timeouts; the errors come in time and say `refused`.
    """
    lags: dict[tuple[str, int], float] = {}
    reasons: set[str | None] = set()
    slowest: dict[tuple[str, int], float] = {}

    def ask(key: tuple[str, int], client: Client) -> None:
        began = time.monotonic()
        try:
            client.ask(timeout=0.5)
            reasons.add("none: it was answered")
        except (CheckoutTimeout, ConnectError) as error:
            reasons.add(error.reason)
        slowest[key] = max(slowest.get(key, 0.0), time.monotonic() - began)

    def go_through(key: tuple[str, int], client: Client, proxy: ChaosProxy) -> None:
        proxy.set("refuse")
        proxy.kill()
        began = time.monotonic()
        while time.monotonic() - began < key[1]:
            ask(key, client)
        proxy.set("pass")
        back = time.monotonic()
        for _ in range(2):
            client.ask(timeout=30)
        lags[key] = time.monotonic() - back

    with clients_of(registry_dir, database) as clients:
        threads = [
            threading.Thread(target=go_through, args=(key, *one)) for key, one in clients.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert lags.keys() == clients.keys()
        assert max(slowest.values()) <= 0.5 + GRACE, slowest
        assert max(lags.values()) <= RECOVERY + GRACE, lags
        assert reasons == {"refused"}
        for (side, outage), (client, _) in clients.items():
            name = f"{side}-{outage}"
            assert len(events.named("connect.failed", database=name)) == 1, "once for each state"
            recovered = events.wait("connect.recovered", database=name)
            assert recovered["outage"] >= outage - 1
            # No storm: about one attempt for each connection that was lost, each second.
            assert client.handle.status().connect_failures["refused"] <= 4 * outage


@pytest.mark.slow
def test_recovery_from_a_silent_network_comes_within_connect_timeout_and_two_seconds(
    make: Make, proxy: ChaosProxy
) -> None:
    """Attempts that were begun in the silence never end by themselves: the next one succeeds."""
    client = make(through=proxy, check_on_checkout=True, connection={"connect_timeout": 2})
    client.fill(4)
    proxy.set("lost")
    began = time.monotonic()
    while time.monotonic() - began < 6:
        refuses(client, 0.5)
    proxy.set("pass")

    with takes(2 + RECOVERY):
        assert client.ask(timeout=20) == 1


@pytest.mark.slow
def test_a_client_that_waits_through_an_outage_is_served_when_it_ends(
    make: Make, proxy: ChaosProxy
) -> None:
    """One client with a long timeout is enough: attempts go on for as long as it waits."""
    client = make(through=proxy)
    client.fill(1)
    proxy.set("refuse")
    proxy.kill()
    answer = client.ask_soon(timeout=30)
    eventually(lambda: client.handle.status().connect_attempts >= 6, 20, "attempts go on")
    proxy.set("pass")

    with takes(RECOVERY):
        assert answer.result(20) == 1


@pytest.mark.slow
def test_the_first_connection_is_tried_for_as_long_as_anybody_waits(
    make: Make, proxy: ChaosProxy
) -> None:
    """A client that comes when another one is about to give up has all of its own time."""
    proxy.set("refuse")
    client = make(through=proxy, timeout=1)
    first = client.ask_soon(timeout=1)
    eventually(lambda: client.handle.status().connect_attempts >= 2, 10, "it is being tried")
    second = client.ask_soon(timeout=20)
    assert isinstance(first.exception(20), CheckoutTimeout | ConnectError)
    attempts = client.handle.status().connect_attempts
    eventually(
        lambda: client.handle.status().connect_attempts >= attempts + 2, 10, "attempts go on"
    )
    proxy.set("pass")

    with takes(RECOVERY):
        assert second.result(20) == 1


def test_a_server_that_is_killed_gives_its_reason_and_is_back_soon(
    make: Make, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """`kill -9`: the statement in flight fails as the driver says; clients are served on restart."""
    client = make()
    backends = client.fill(2)
    in_flight = client.ask_soon("SELECT pg_sleep(30)", timeout=5)
    eventually(
        lambda: any(one["state"] == "active" for one in database.backends()), 5, "it is running"
    )
    database.server.kill9()
    assert type(in_flight.exception(20)) in (
        psycopg.OperationalError,
        psycopg.errors.AdminShutdown,
    )
    eventually(lambda: not any(map(psutil.pid_exists, backends)), 20, "all backends have noticed")
    for _ in range(2):
        assert refuses(client, 0.5).reason == "refused"
    database.server.start()

    with takes(RECOVERY):
        assert client.ask(timeout=20) == 1
    events.wait("connect.recovered")


def test_a_server_that_is_stopped_ends_a_connect_at_its_timeout(
    make: Make, database: TemporaryDatabase
) -> None:
    """A main process that hangs lets clients connect and never answers: the reason is `timeout`."""
    client = make(connection={"connect_timeout": 2})
    client.fill(1)
    database.terminate_backends()
    assert database.server.pid is not None
    os.kill(database.server.pid, signal.SIGSTOP)
    try:
        refuses(client, 0.5)
        eventually(
            lambda: client.handle.status().last_failure_reason == "timeout", 10, "it gave up"
        )
        assert refuses(client, 0.5).reason == "timeout"
    finally:
        os.kill(database.server.pid, signal.SIGCONT)

    with takes(2 + RECOVERY):
        assert client.ask(timeout=20) == 1


@pytest.mark.parametrize("workers", [1, 6])
def test_a_server_that_comes_back_is_not_stormed(
    make: Make, proxy: ChaosProxy, workers: int
) -> None:
    """Twelve clients want twelve connections: no more than two are being opened at a time."""
    client = make(
        through=proxy, pool={"min_size": 1, "max_size": 12, "num_workers": workers}, timeout=30
    )
    proxy.set("delay", delay=0.01)
    for _ in range(2):
        answers = [client.ask_soon("SELECT pg_sleep(0.3)", timeout=30) for _ in range(12)]
        assert [answer.result(60) for answer in answers] == [""] * 12
        client.rest()
        proxy.set("refuse")
        proxy.kill()
        refuses(client, 0.2)
        proxy.set("delay", delay=0.01)

    assert client.ask(timeout=10) == 1
    assert 1 <= proxy.most_opening <= 2
    assert client.handle.status().connect_attempts >= 12


def test_twenty_databases_that_lose_their_server_ask_it_gently(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """After a restart each makes what its clients need: the server's log has no storm."""
    for number in range(20):
        registry_dir.declare(f"db-{number}", database, pool_settings={"min_size": 2, "max_size": 4})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        clients = [Client(registry, f"db-{number}") for number in range(20)]
        for client in clients:
            client.fill(2)
        before = sum(client.handle.status().connect_attempts for client in clients)
        earlier = len(database.server.log_text())
        database.server.restart("fast")
        for client in clients:
            assert client.ask(timeout=20) == 1
            client.close()
        log = database.server.log_text()[earlier:]
        attempts = sum(client.handle.status().connect_attempts for client in clients) - before

    assert 20 <= log.count(f"connection authorized: user={database.user} ") <= 20 * 4
    assert attempts <= 20 * 4, "none was refused: the server was asked once for each connection"


def places_in_queues() -> int:
    """Count what psycopg_pool keeps for clients that wait, or have waited."""
    gc.collect()
    places = (psycopg_pool.pool.WaitingClient, psycopg_pool.pool_async.WaitingClient)
    # The type, as `isinstance` would ask lazy objects of other libraries for their class.
    return sum(type(one) in places for one in gc.get_objects())


def test_clients_that_poll_a_dead_server_leave_nothing_behind(
    make: Make, proxy: ChaosProxy, events: CapturedEvents
) -> None:
    """Thousands of timeouts: no client is counted as waiting, memory is bounded, recovery is prompt."""
    before = places_in_queues()
    client = make(through=proxy)
    client.fill(1)
    proxy.set("refuse")
    proxy.kill()
    for _ in range(1500):
        with suppress(CheckoutTimeout, ConnectError):
            client.ask(timeout=0.0005)
    assert client.handle.status().waiting == 0
    assert places_in_queues() < before + 1200
    proxy.set("pass")

    with takes(RECOVERY):
        assert client.ask(timeout=20) == 1


@pytest.mark.parametrize("connection_type", SIDES)
def test_a_pool_is_filled_again_after_an_outage_though_nobody_asks(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    connection_type: str,
) -> None:
    """`min_size` connections are open again, as before the outage in which all of them died."""
    pool = {"min_size": 3, "max_size": 3}
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={"host": proxy.host, "port": proxy.port},
        pool_settings=pool,
        async_pool_settings=pool,
    )
    with Registry(registry_dir, metrics=None) as registry:
        client = Client(registry)
        try:
            client.fill(3)
            proxy.set("refuse")
            proxy.kill()
            refuses(client, 0.5)
            assert client.handle.status().idle == 0

            proxy.set("pass")

            eventually(lambda: client.handle.status().idle == 3, 20, "it is filled again")
        finally:
            client.close()
