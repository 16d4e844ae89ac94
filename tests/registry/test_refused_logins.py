"""Refused logins: the files are read again before clients hear of one, and not once for each."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from pgmonkey import ConnectError, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.pool.side import SIDES, Client

CLIENTS = 40
DATABASES = 60


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_a_password_that_rotated_during_an_outage_fails_no_client_that_waits(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
    proxy: ChaosProxy,
    side: str,
) -> None:
    """The new one could not be tried while the server was away; it is, when the old one is refused.

    Forty clients wait through the outage, and all of them are served.
    """
    sizes = {"min_size": 1, "max_size": 4}
    registry_dir.declare(
        "orders",
        database,
        side,
        volume=volume,
        connection={"host": proxy.host, "port": proxy.port},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )
    with Registry(registry_dir, metrics=None) as registry, closing(Client(registry)) as client:
        client.fill(4)
        proxy.set("refuse")
        proxy.kill()
        answers = [client.ask_soon(timeout=40) for _ in range(CLIENTS)]
        eventually(
            lambda: client.handle.status().connect_failures["refused"] >= 1, 10, "it is away"
        )
        database.rotate()
        write_credentials(volume, database)
        rejected = events.wait("database.probe_failed", 10)
        assert rejected["reason"] == "refused"
        proxy.set("pass")
        assert [answer.exception(50) for answer in answers] == [None] * CLIENTS
        assert client.errors() == {}
        eventually(lambda: not registry.status().databases[0].stale, 10, "it is in force")


@pytest.mark.parametrize("side", SIDES)
def test_a_password_that_rotated_unseen_fails_no_client(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    side: str,
) -> None:
    """Every session ends in the moment of a rotation: clients get connections with the new password.

    The watcher need not have seen it: the server's refusal is a reason to read the files.
    """
    sizes = {"min_size": 1, "max_size": 4}
    registry_dir.declare(
        "orders", database, side, volume=volume, pool_settings=sizes, async_pool_settings=sizes
    )
    with Registry(registry_dir, metrics=None) as registry, closing(Client(registry)) as client:
        for _ in range(5):
            client.fill(4)
            database.rotate()
            database.terminate_backends()
            write_credentials(volume, database)
            answers = [client.ask_soon(timeout=20) for _ in range(8)]
            assert [answer.exception(30) for answer in answers] == [None] * 8
            assert client.errors() == {}


_listings: list[str] = []
_listening = False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event == "os.scandir":
        _listings.append(str(arguments[0]))


@contextmanager
def listings(directory: RegistryDirectory) -> Iterator[list[str]]:
    """Give a list that gets one item whenever this process lists the directory."""
    global _listening  # an audit hook cannot be removed
    if _hear not in _hooks:
        _hooks.append(_hear)
        sys.addaudithook(_hear)
    _listings.clear()
    _listening = True
    found: list[str] = []
    try:
        yield found
    finally:
        _listening = False
        found.extend(one for one in _listings if one == str(directory))


_hooks: list[Any] = []


@pytest.mark.slow
def test_many_refused_logins_read_the_files_a_few_times(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Sixty databases with a wrong password at once: the reads of the files are shared.

    Each client has its error with the reason at once; no thread is started for each refusal.
    """
    for number in range(DATABASES):
        registry_dir.declare(
            f"db-{number}",
            database,
            connection={"password": database.canary.secret(), "application_name": f"db-{number}"},
        )
    errors: list[ConnectError] = []
    slowest = 0.0

    def ask(handle: Any) -> None:
        nonlocal slowest
        began = time.monotonic()
        try:
            with handle.connection(timeout=20):
                pass
        except ConnectError as error:
            errors.append(error)
        slowest = max(slowest, time.monotonic() - began)

    with Registry(registry_dir, metrics=None) as registry:
        events.wait("watch.started")
        handles = [registry.get(f"db-{number}") for number in range(DATABASES)]
        clients = [threading.Thread(target=ask, args=(handle,)) for handle in handles]
        others = threading.active_count()
        most = 0
        with listings(registry_dir) as found:
            for client in clients:
                client.start()
            while any(client.is_alive() for client in clients):
                ours = [one for one in threading.enumerate() if one not in clients]
                most = max(most, len(ours) - others)
                time.sleep(0.001)
        assert [error.reason for error in errors] == ["auth"] * DATABASES
        assert len(found) <= DATABASES / 3
        assert most <= 5 * DATABASES, "those of the pools, and of pools that replace others"
        assert slowest < 10
