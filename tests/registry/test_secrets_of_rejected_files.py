"""Rejected files: a rotated secret still arrives, and errors say what is rejected."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pgmonkey import CheckoutTimeout, ConnectError, Registry, ReloadRejectedError, TooManyWaiting
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.pool.side import SIDES, Client
from tests.registry.load import asking

ORDERS = """
connection_type: pool
connection_settings:
  dbname: orders
  user: app
  password:
    from_file: ../secrets/password
"""
DEFAULTS = """
connection_settings:
  host: 127.0.0.1
"""


@dataclass
class Files:
    """A registry of three databases with one password, and whatever a test does to its files."""

    registry_dir: RegistryDirectory
    password: Path

    def write(self) -> None:
        self.registry_dir.path.mkdir(exist_ok=True)
        self.registry_dir.write("_defaults", DEFAULTS)
        for name in ("orders", "events", "reports"):
            self.registry_dir.write(name, ORDERS)

    def misspell(self) -> None:
        self.registry_dir.write("orders", ORDERS.replace("connection_type", "conection_type"))

    def unclose(self) -> None:
        self.registry_dir.write("orders", ORDERS + "description: [\n")

    def empty(self) -> None:
        self.registry_dir.write("orders", "")

    def refer_to_nothing(self) -> None:
        self.registry_dir.write("orders", ORDERS + "description: ${PGMONKEY_TEST_UNSET}\n")

    def name_another_secret(self) -> None:
        self.registry_dir.write("orders", ORDERS.replace("/password", "/pasword"))

    def declare_twice(self) -> None:
        self.registry_dir.write("orders.yml", ORDERS)

    def misspell_defaults(self) -> None:
        self.registry_dir.write("_defaults", DEFAULTS.replace("host", "hots"))

    def unclose_defaults(self) -> None:
        self.registry_dir.write("_defaults", DEFAULTS + "description: [\n")


@pytest.fixture
def files(registry_dir: RegistryDirectory) -> Files:
    """Three good files, their defaults, and the secret that they refer to."""
    password = registry_dir.path.parent / "secrets" / "password"
    password.parent.mkdir()
    password.write_text("first")
    files = Files(registry_dir, password)
    files.write()
    return files


def password(registry: Registry, name: str = "orders") -> Any:
    config = registry.config(name)
    assert config is not None
    return config.connect_kwargs("pool")["password"]


def states(registry: Registry) -> dict[str, Any]:
    return {one.name: one.state for one in registry.status().databases}


OF_ONE_FILE = (
    Files.misspell,
    Files.unclose,
    Files.empty,
    Files.refer_to_nothing,
    Files.name_another_secret,
    Files.declare_twice,
)
OF_ALL = (Files.misspell_defaults, Files.unclose_defaults)


@pytest.mark.parametrize("spoil", OF_ONE_FILE + OF_ALL)
def test_a_rejected_file_does_not_keep_a_rotated_secret_out(
    files: Files, spoil: Callable[[Files], None]
) -> None:
    """The last good text gets its values again and again; the rejection of the new text stays."""
    all_three = ("events", "orders", "reports")
    rejected = all_three if spoil in OF_ALL else ("orders",)
    with Registry(files.registry_dir, metrics=None, watch=False) as registry:
        spoil(files)
        before = registry.reload().rejected
        assert set(rejected) <= set(before)
        for number, secret in enumerate(("second", "third"), 2):
            files.password.write_text(secret)
            report = registry.reload()

            assert report.applied == all_three
            assert report.rejected == before
            assert [password(registry, name) for name in all_three] == [secret] * 3
            for one in registry.status().databases:
                assert one.version == number
                assert (one.state, one.stale) == (
                    ("stale", True) if one.name in rejected else ("idle", False)
                )
                assert one.last_reload == "applied"
            assert not registry.status().last_reload_successful

        files.registry_dir.file("orders.yml").unlink(missing_ok=True)
        files.write()
        assert registry.reload().rejected == {}
        assert states(registry) == dict.fromkeys(all_three, "idle")
        assert password(registry) == "third"
        assert registry.status().databases[1].version == 3, "mended to what runs: nothing to apply"


@pytest.mark.parametrize("spoil", [Files.unclose, Files.unclose_defaults])
def test_the_watch_sees_a_secret_of_a_file_that_says_nothing(
    files: Files, events: CapturedEvents, spoil: Callable[[Files], None]
) -> None:
    """The directories of the last good text stay watched: the rescan is an hour away."""
    with Registry(files.registry_dir, metrics=None, rescan_interval=3600) as registry:
        events.wait("watch.started")
        spoil(files)
        eventually(lambda: states(registry)["orders"] == "stale", 10)
        files.password.write_text("second")
        eventually(lambda: password(registry) == "second", 10, "the rotation arrives")
        assert states(registry)["orders"] == "stale"


def test_a_directory_that_vanishes_does_not_keep_a_rotated_secret_out(files: Files) -> None:
    """The secrets may be mounted from elsewhere: they are read on."""
    directory = files.registry_dir.path
    files.registry_dir.write("orders", ORDERS.replace("../secrets", str(files.password.parent)))
    with Registry(directory, metrics=None, watch=False) as registry:
        directory.rename(directory.with_name("away"))
        files.password.write_text("second")
        report = registry.reload()
        assert report.applied == ("orders",)
        assert list(report.rejected) == [str(directory)]
        assert password(registry) == "second"
        assert not registry.status().last_reload_successful
        directory.with_name("away").rename(directory)
        assert registry.reload().rejected == {}


def test_what_the_rejected_text_says_is_not_applied(files: Files) -> None:
    """Only values of references are new: another host in a file with a typo has to wait."""
    with Registry(files.registry_dir, metrics=None, watch=False) as registry:
        files.registry_dir.write(
            "orders", ORDERS.replace("dbname: orders", "dbname: others\n  hots: x")
        )
        files.password.write_text("second")
        registry.reload()
        config = registry.config("orders")
        assert config is not None
        assert config.connect_kwargs("pool")["dbname"] == "orders"
        assert password(registry) == "second"


def test_a_secret_that_cannot_be_read_changes_nothing_while_a_file_is_rejected(
    files: Files, events: CapturedEvents
) -> None:
    """The version in force keeps its values, and the problem is the one of the text, said once."""
    with Registry(files.registry_dir, metrics=None, watch=False) as registry:
        files.unclose()
        before = registry.reload().rejected["orders"]
        files.password.unlink()
        for _ in range(2):
            report = registry.reload()
            assert report.applied == ()
            assert report.rejected["orders"] == before
        assert password(registry) == "first"
        assert len(events.named("config.rejected", database="orders")) == 1
        files.password.write_text("second")
        assert "orders" in registry.reload().applied
        assert password(registry) == "second"


def test_a_removed_database_that_comes_back_rejected_stays_removed(files: Files) -> None:
    """There is no last good text any more: its secrets are not read."""
    with Registry(files.registry_dir, metrics=None, watch=False) as registry:
        files.registry_dir.remove("orders")
        registry.reload()
        files.misspell()
        files.password.write_text("second")
        report = registry.reload()
        assert "orders" not in report.applied
        assert "orders" in report.rejected
        assert states(registry)["orders"] == "failed"
        files.write()
        assert registry.reload().applied == ("orders",)
        assert password(registry) == "second"


@pytest.mark.parametrize(
    "connection_type, where", [("pool", "orders"), ("async_pool", "_defaults")]
)
def test_no_transaction_fails_while_a_typo_stays_over_two_rotations(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
    connection_type: str,
    where: str,
) -> None:
    """Each new password is applied; connections that are lost meanwhile come back with it."""
    registry_dir.declare("orders", database, connection_type, volume=volume)
    registry_dir.write("_defaults", {"drain_timeout": "10s"})
    with (
        Registry(registry_dir, metrics=None) as registry,
        closing(Client(registry)) as client,
    ):
        with asking(client) as errors:
            events.wait("watch.started")
            registry_dir.write(where, registry_dir.file(where).read_text() + "drain_timout: 9s\n")
            events.wait("config.rejected", database="orders", code="config.unknown_key")
            for version in (2, 3):
                database.rotate()
                write_credentials(volume, database)
                events.wait("config.applied", database="orders", version=version, timeout=15)
                assert states(registry)["orders"] == "stale"
        assert errors == []
        client.rest()
        database.terminate_backends()
        assert client.ask("SELECT 1") == 1
        (status,) = registry.status().databases
        assert (status.state, status.last_error) == ("stale", None)
        assert [problem.code for problem in status.problems] == ["config.unknown_key"]


@pytest.mark.parametrize("connection_type", SIDES)
def test_errors_of_a_stale_database_name_the_rejected_file_line_and_key(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    connection_type: str,
) -> None:
    """A refused login, a timeout and a forced reload say where the typo is, and no secret."""
    path = registry_dir.declare(
        "orders",
        database,
        connection_type,
        volume=volume,
        pool_settings={"max_size": 1, "max_waiting": 1},
        async_pool_settings={"max_size": 1, "max_waiting": 1},
    )
    good = path.read_text()
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        assert client.ask() == 1
        registry_dir.write("orders", good + "drain_timout: 9s\n")
        registry.reload()
        line = len(good.splitlines()) + 1
        rejected = (
            f'{path}:{line}:1: drain_timout: unknown key "drain_timout"  [config.unknown_key]'
        )
        with client.holding(), pytest.raises(CheckoutTimeout) as busy:
            client.ask(timeout=0.1)
        assert busy.value.rejected == rejected
        assert f"\n  its files are rejected: {rejected}\n  hint: " in str(busy.value)
        for twin in (copy.copy(busy.value), pickle.loads(pickle.dumps(busy.value))):
            assert str(twin) == str(busy.value)

        with client.holding():
            waits = client.ask_soon(timeout=5)
            eventually(lambda: client.handle.status().waiting == 1, 5)
            with pytest.raises(TooManyWaiting, match=re.escape(rejected)):
                client.ask()
        assert waits.result() == 1

        database.rotate()  # nothing tells the registry
        with pytest.raises(ReloadRejectedError) as forced:
            registry.get("orders", "pool", force_reload=True)
        assert forced.value.rejected == rejected
        client.rest()
        database.terminate_backends()
        with pytest.raises(ConnectError) as refused:
            client.ask()
        assert (refused.value.reason, refused.value.rejected) == ("auth", rejected)
        assert rejected in str(refused.value)

        write_credentials(volume, database)
        registry_dir.write("orders", good)
        registry.reload()
        database.rotate()
        client.rest()
        database.terminate_backends()
        with pytest.raises(ConnectError) as mended:
            client.ask()
        assert mended.value.rejected == ""
        assert "rejected" not in str(mended.value)
        write_credentials(volume, database)
        registry.reload()
