"""A fleet of gunicorn workers that want twice the connections of their server, and rotate together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.leaks import session_servers_key
from tests.kit.prometheus import Prometheus, configuration
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.kit.server import PostgresServer
from tests.soak.fleet import LOGS_CONNECTIONS, Fleet, connects, most_per_second

#: How long to compare what the processes do, before each rotation; 0 for a small fleet and one rotation.
SECONDS: Final = float(os.environ.get("SOAK_FLEET_SECONDS", "0"))
PROCESSES: Final = 12 if SECONDS else 3
SIZE: Final = 10 if SECONDS else 4
ROTATIONS: Final = 3 if SECONDS else 1
#: How many connections the server has for all: half of what they want.
SLOTS: Final = PROCESSES * SIZE // 2
#: How many transactions show that a process does not starve.
SOME: Final = 5


@pytest.fixture
def database(pytestconfig: pytest.Config, canary: Canary) -> Iterator[TemporaryDatabase]:
    """A database of a server that has half of the connections that all want."""
    settings = {
        "max_connections": str(SLOTS + 3),
        "superuser_reserved_connections": "3",
        **LOGS_CONNECTIONS,
    }
    with PostgresServer(settings=settings) as server:
        pytestconfig.stash[session_servers_key].append(server)
        yield TemporaryDatabase.create(server, canary)


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS + 180)
def test_a_fleet_shares_a_server_that_is_too_small(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    canary: Canary,
    tmp_path: Path,
) -> None:
    """Nobody starves before, while and after all rotate, and no second sees a storm of connects."""
    sizes = {"min_size": SIZE, "max_size": SIZE}
    registry_dir.declare("orders", database, volume=volume, pool_settings=sizes)
    with ExitStack() as stack:
        fleet = stack.enter_context(
            Fleet(registry_dir, canary, workers=PROCESSES, threads=2 * SIZE, seconds=0.1)
        )
        began = time.time()
        go_on(fleet)
        print(f"each has done something after {time.time() - began:.1f} s")
        if SECONDS:
            config = configuration(tmp_path, [fleet.port], minute="1s")
            prometheus = stack.enter_context(Prometheus(tmp_path, config))
        for version in range(2, 2 + ROTATIONS):
            if SECONDS:
                print(shares(fleet, database, SECONDS))
            rotate(fleet, database, volume, version)
            if SECONDS:
                go_on(fleet)
        assert not fleet.errors()
        if SECONDS:
            check(prometheus)


def rotate(fleet: Fleet, database: TemporaryDatabase, volume: SecretVolume, version: int) -> None:
    """Rotate the password of all at once, and say how long that takes and how many connects."""
    began = time.time()
    database.rotate()
    write_credentials(volume, database)
    fleet.wait_until(partial(is_on, fleet, version), 60, f"all are on version {version}")
    ended = time.time()
    shown = [version], [0]
    fleet.wait_until(
        lambda: (fleet.metrics("version"), fleet.metrics("stale")) == shown,
        10,
        "the metrics show it",
    )
    attempts = connects(database.server, began, ended + 1)
    most = most_per_second(attempts)
    print(
        f"version {version}: {ended - began:.1f} s, {len(attempts)} connects,"
        f" {most} in one second, held {held(fleet)}"
    )
    assert most < SLOTS + 8 * PROCESSES


def check(prometheus: Prometheus) -> None:
    """Ask what Prometheus has seen of all processes: only that the server is too small."""
    prometheus.check_rules()
    assert prometheus.value("sum(pgmonkey_pool_connections_max)") == PROCESSES * SIZE
    assert prometheus.value("max(pgmonkey_config_version)") == 1 + ROTATIONS
    assert prometheus.firing() == {"PgmonkeyServerFull"}


def go_on(fleet: Fleet) -> None:
    """Wait until each process has done something more."""
    before = fleet.transactions()
    fleet.wait_until(
        lambda: all(done > before[name] + SOME for name, done in fleet.transactions().items()),
        40,
        "each process goes on",
    )


def is_on(fleet: Fleet, version: int) -> bool:
    """Tell whether each process has put this version in force."""
    return all(one.version == version and not one.stale for one in fleet.reports().values())


def shares(fleet: Fleet, database: TemporaryDatabase, seconds: float) -> str:
    """Let the fleet run for some seconds, and say what its processes did; none may have starved."""
    before, began = fleet.transactions(), time.time()
    time.sleep(seconds)
    done = sorted(count - before[name] for name, count in fleet.transactions().items())
    attempts = connects(database.server, began, time.time())
    assert done[0] > 0
    return (
        f"transactions in {seconds:g} s: {done}, held {held(fleet)},"
        f" {len(attempts) / seconds:.1f} connects/s, {most_per_second(attempts)} in one second"
    )


def held(fleet: Fleet) -> list[int]:
    """Return how many connections each process has."""
    return sorted(one.held for one in fleet.reports().values())
