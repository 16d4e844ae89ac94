"""With `probe_interval`, a changed configuration is probed before it counts, whether a pool is open or not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pgmonkey import Registry
from pgmonkey.telemetry.status import DatabaseStatus
from tests.kit import ChaosProxy, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.registry_dir import write_credentials
from tests.kit.secret_volume import SecretVolume


def probing(registry_dir: RegistryDirectory, **arguments: Any) -> Registry:
    """Open a registry that probes, but not again before a test ends unless something changes."""
    return Registry(registry_dir, metrics=None, probe_interval=600, **arguments)


def orders(registry: Registry) -> DatabaseStatus:
    (database,) = registry.status().databases
    return database


def reached(registry: Registry) -> bool:
    return orders(registry).reached


def serves(registry: Registry) -> bool:
    with registry.get("orders").connection(timeout=10) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def test_a_wrong_secret_is_rejected_though_no_pool_is_open(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, volume: SecretVolume
) -> None:
    """The database is stale, with the reason; the last good secret serves; a right one is applied."""
    registry_dir.declare("orders", database, volume=volume)
    with probing(registry_dir) as registry:
        eventually(lambda: reached(registry))
        volume.write({"username": database.user, "password": "wrong"})
        eventually(lambda: orders(registry).stale)
        status = orders(registry)
        assert (status.state, status.version, status.reason) == ("stale", 1, "auth")
        assert [problem.code for problem in status.problems] == ["probe.auth"]
        assert status.outcomes == {"rejected": 1}
        assert serves(registry)
        database.rotate()
        write_credentials(volume, database)
        eventually(lambda: orders(registry).state == "ready", 10)
        assert orders(registry).version == 2


@pytest.mark.timing
def test_a_wrong_secret_is_noticed_within_a_second(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, volume: SecretVolume
) -> None:
    """At once, and not with the next background probe."""
    registry_dir.declare("orders", database, volume=volume)
    with probing(registry_dir) as registry:
        eventually(lambda: reached(registry))
        began = time.monotonic()
        volume.write({"username": database.user, "password": "wrong"})
        eventually(lambda: orders(registry).stale)
        assert time.monotonic() - began < 1


def test_a_probe_that_failed_is_repeated_without_another_change(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """A place that could not be reached is applied once it can be; nothing of it counts before."""
    registry_dir.declare("orders", database)
    with probing(registry_dir) as registry:
        eventually(lambda: reached(registry))
        proxy.set("refuse")
        registry_dir.declare("orders", database, connection={"port": proxy.port})
        report = registry.reload()
        assert [problem.code for problem in report.rejected["orders"]] == ["probe.refused"]
        assert orders(registry).state == "stale"
        proxy.set("pass")
        eventually(lambda: orders(registry).version == 2, 15)
        assert orders(registry).state == "idle"


def test_a_secret_that_came_when_the_old_one_was_revoked_already_shows_the_database_down(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, volume: SecretVolume
) -> None:
    """The last good secret is probed again as soon as a new one is refused: both fail, so it is down."""
    registry_dir.declare("orders", database, volume=volume)
    with probing(registry_dir) as registry:
        eventually(lambda: reached(registry))
        database.rotate()
        volume.write({"username": database.user, "password": "wrong"})
        eventually(lambda: orders(registry).state == "down", 10)
        assert (orders(registry).stale, orders(registry).last_error_reason) == (True, "auth")
        write_credentials(volume, database)
        eventually(lambda: orders(registry).state == "idle", 10)


def test_what_touches_no_connection_needs_no_server(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """A changed description or pool size is applied while the server is away."""
    connection = {"port": proxy.port}
    registry_dir.declare("orders", database, connection=connection)
    proxy.set("refuse")
    with probing(registry_dir) as registry:
        eventually(lambda: orders(registry).state == "down")
        registry_dir.declare(
            "orders",
            database,
            connection=connection,
            description="tea",
            pool_settings={"max_size": 3},
        )
        assert registry.reload().applied == ("orders",)
        assert orders(registry).description == "tea"


@pytest.mark.parametrize("again", [False, True], ids=["new", "removed and back"])
def test_a_database_without_a_last_good_configuration_counts_at_once(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy, again: bool
) -> None:
    """Nothing could serve instead: it is down, not failed, and comes up with its server."""
    connection = {"port": proxy.port}
    if again:
        registry_dir.declare("orders", database, connection=connection)
    with probing(registry_dir) as registry:
        if again:
            eventually(lambda: reached(registry))
            registry_dir.remove("orders")
            assert registry.reload().removed == ("orders",)
        proxy.set("refuse")
        registry_dir.declare(
            "orders", database, connection=connection | {"application_name": "back"}
        )
        assert registry.reload().applied == ("orders",)
        eventually(lambda: orders(registry).state == "down")
        proxy.set("pass")
        eventually(lambda: orders(registry).state == "idle", 10)


def test_without_background_probes_nothing_is_asked_before_it_counts(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """A registry that does not probe connects to nothing for a database that is not in use."""
    registry_dir.declare("orders", database)
    proxy.set("refuse")
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        registry_dir.declare("orders", database, connection={"port": proxy.port})
        assert registry.reload().applied == ("orders",)
