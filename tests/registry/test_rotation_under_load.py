"""Rotations under load: nothing fails, nothing is lost, and the server never sees too many of us."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.registry.load import Peak, table_of_commits, working

ROTATIONS = 50
POOL_SIZE = 8


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    connection_type: str,
    number: int,
) -> None:
    sizes = {"min_size": 1, "max_size": POOL_SIZE}
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        volume=volume if number == 0 else None,
        connection={
            "application_name": f"app-{number}",
            "user": {"from_file": str(volume.path("username"))},
            "password": {"from_file": str(volume.path("password"))},
        },
        **{"pool_settings" if connection_type == "pool" else "async_pool_settings": sizes},
    )


def rotate(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    connection_type: str,
    number: int,
) -> None:
    """Change the password on the server first, then the file, then the secret."""
    database.rotate()
    declare(registry_dir, database, volume, connection_type, number)
    write_credentials(volume, database)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("milliseconds", [2, 500])
@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_fifty_rotations_lose_nothing_and_never_need_more_than_one_connection_over_the_pool(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
    connection_type: str,
    milliseconds: int,
) -> None:
    """16 workers write while the password is rotated 50 times: no error, every commit is there.

    Another role counts at most pool size + 1 connections all the time, and every checkout that
    starts after a rotation was reported sees the new application_name, by asking the server.
    """
    table_of_commits(database)
    declare(registry_dir, database, volume, connection_type, 0)
    with Registry(registry_dir, metrics=None) as registry:
        with Peak(database) as peak:
            with working(registry, connection_type, milliseconds / 1000) as load:
                load.goes_on()
                version = 1
                for number in range(1, ROTATIONS + 1):
                    rotate(registry_dir, database, volume, connection_type, number)
                    wanted = f"app-{number}"
                    # The files change in two steps, so one rotation may make one version or
                    # two; it is complete when the newest file is in force.
                    eventually(
                        lambda wanted=wanted: _in_force(registry, wanted), 30, f"{wanted} in force"
                    )
                    rotated = events.named("database.rotated")
                    version = registry.status().databases[0].version
                    if rotated and rotated[-1]["new"] == version:
                        load.expected = wanted
                load.goes_on()
            drained = registry.wait_drained(timeout=10)

        committed = sorted(row[0] for row in database.execute("SELECT id FROM public.done"))
        assert load.outdated == []
        assert committed == sorted(load.committed)
        assert peak.highest <= POOL_SIZE + 1
        assert peak.samples > ROTATIONS
        assert drained
        assert version > ROTATIONS
        assert len(events.named("config.rejected")) <= ROTATIONS  # a file before its secret


def _in_force(registry: Registry, application_name: str) -> bool:
    status = registry.status().databases[0]
    settings: Any = status.config["connection_settings"]
    return not status.stale and settings["application_name"] == application_name


def test_every_checkout_after_a_reported_rotation_is_of_the_new_version(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
) -> None:
    """When `reload()` has returned, no checkout gets a connection made before it."""
    declare(registry_dir, database, volume, "pool", 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        table_of_commits(database)
        with working(registry, "pool", 0.001):
            for number in range(1, 11):
                rotate(registry_dir, database, volume, "pool", number)
                began = time.monotonic()
                assert registry.reload().applied == ("orders",)
                with handle as connection:
                    row = connection.execute(
                        "SELECT current_setting('application_name')"
                    ).fetchone()
                assert row == (f"app-{number}",)
                assert time.monotonic() - began < 10
