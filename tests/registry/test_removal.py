"""A database whose file is removed, and what may come back in its place."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import prometheus_client
import pytest

from pgmonkey import Registry
from pgmonkey.errors import (
    ConfigError,
    DatabaseRemovedError,
    HandleClosedError,
    UnknownDatabaseError,
)
from pgmonkey.telemetry.status import DatabaseStatus
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.registry.steps import Pause

Spoil = Callable[[RegistryDirectory, str], object]


def _content(text: str | bytes) -> Spoil:
    def write(files: RegistryDirectory, _good: str) -> None:
        files.file("orders").write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def _with(addition: str) -> Spoil:
    return lambda files, good: files.write("orders", good + addition)


def _declared_twice(files: RegistryDirectory, good: str) -> None:
    files.write("orders", good)
    files.file("orders").with_suffix(".yml").write_text(good)


def _with_bad_defaults(files: RegistryDirectory, good: str) -> None:
    files.write("orders", good)
    files.write("_defaults", "x: [")


#: What may come back where a good file was removed, and the code of its problem.
UNUSABLE: dict[str, tuple[Spoil, str]] = {
    "empty": (_content(""), "config.empty"),
    "comments only": (_content("# nothing\n"), "config.empty"),
    "no YAML": (_content("x: [\n"), "config.syntax"),
    "not UTF-8": (_content(b"\xff\xfe"), "config.encoding"),
    "too large": (_content("#" * 300 * 1024), "config.too_large"),
    "an unknown key": (_with("conection_type: pool\n"), "config.unknown_key"),
    "a wrong type": (_with("drain_timeout: soon\n"), "config.duration"),
    "an unset variable": (_with("description: ${PGMONKEY_TEST_UNSET}\n"), "reference.unset"),
    "a missing secret": (_with("revision: {from_file: nowhere}\n"), "secret.missing"),
    "a dangling link": (
        lambda files, _good: files.file("orders").symlink_to("nowhere"),
        "config.missing",
    ),
    "a directory": (lambda files, _good: files.file("orders").mkdir(), "config.not_regular"),
    "a FIFO": (lambda files, _good: os.mkfifo(files.file("orders")), "config.not_regular"),
    "declared twice": (_declared_twice, "config.declared_twice"),
    "bad defaults": (_with_bad_defaults, "config.syntax"),
}


def clear(files: RegistryDirectory) -> None:
    for path in Path(files).iterdir():
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()


def status_of_orders(registry: Registry) -> DatabaseStatus:
    (orders,) = (one for one in registry.status().databases if one.name == "orders")
    return orders


@pytest.mark.parametrize("used", [True, False], ids=["used before", "never used"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_removed_database_stays_removed_when_what_comes_back_cannot_be_used(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    name: str,
    used: bool,
) -> None:
    """It is `failed`, with the problem in event, status, metrics and errors, until it is mended."""
    spoil, code = UNUSABLE[name]
    good = registry_dir.declare("orders", database, "pool").read_text()
    numbers = prometheus_client.CollectorRegistry()
    with Registry(registry_dir, metrics=numbers, watch=False) as registry:
        if used:
            handle = registry.get("orders")
            handle.open()
        clear(registry_dir)
        assert registry.reload().removed == ("orders",)
        assert status_of_orders(registry).state is None
        assert database.backends() == []

        spoil(registry_dir, good)
        report = registry.reload()

        assert report.rejected["orders"][0].code == code
        assert (report.applied, report.removed, report.unchanged) == ((), (), ())
        (rejected,) = events.named("config.rejected", database="orders")
        assert rejected["code"] == code
        orders = status_of_orders(registry)
        assert (orders.state, orders.stale, orders.last_reload) == ("failed", True, "rejected")
        assert orders.problems[0].code == code
        assert not registry.status().last_reload_successful
        labels = {"database": "orders"}
        assert numbers.get_sample_value("pgmonkey_config_stale", labels) == 1
        failed = labels | {"state": "failed"}
        assert numbers.get_sample_value("pgmonkey_database_state", failed) == 1
        assert numbers.get_sample_value("pgmonkey_config_last_reload_successful") == 0

        assert "orders" in registry
        if used:
            with pytest.raises(DatabaseRemovedError, match="cannot be used") as refused, handle:
                pass
            assert code in str(refused.value)
        else:
            with pytest.raises(ConfigError) as refused:
                registry.get("orders")
            assert refused.value.problems[0].code == code
        registry.reload()
        assert len(events.named("config.rejected", database="orders")) == 1, "it is reported once"
        assert registry.probe("orders").state == "failed"
        assert database.backends() == [], "nothing connects with what was removed"

        clear(registry_dir)
        assert registry.reload().removed == ("orders",), "removed again"
        assert registry.status().last_reload_successful
        assert "orders" not in registry
        with pytest.raises(UnknownDatabaseError):
            registry.probe("orders")

        registry_dir.write("orders", good)
        assert registry.reload().applied == ("orders",)
        with registry.get("orders") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        if used:
            assert registry.get("orders") is handle
        assert status_of_orders(registry).version == 2
        assert numbers.get_sample_value("pgmonkey_config_stale", labels) == 0


@pytest.mark.parametrize("name", ["empty", "an unknown key", "a missing secret"])
async def test_a_removed_async_database_stays_removed_when_what_comes_back_cannot_be_used(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, name: str
) -> None:
    """The same on an event loop: connections close, the error says why, a good file revives it."""
    spoil, code = UNUSABLE[name]
    good = registry_dir.declare("orders", database, "async_pool").read_text()
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        async with handle:
            pass
        clear(registry_dir)
        assert (await registry.areload()).removed == ("orders",)
        spoil(registry_dir, good)
        assert (await registry.areload()).rejected["orders"][0].code == code
        with pytest.raises(DatabaseRemovedError, match="cannot be used"):
            async with handle:
                pass
        await asyncio.to_thread(
            eventually, lambda: database.backends() == [], 5, "they close as the loop turns"
        )

        registry_dir.write("orders", good)
        assert (await registry.areload()).applied == ("orders",)
        async with handle as connection:
            cursor = await connection.execute("SELECT 1")
            assert await cursor.fetchone() == (1,)


def test_a_file_that_was_bad_before_it_was_removed_stays_removed_when_it_comes_back_the_same(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Good, bad, removed, the same bad one again: served while it was bad, not after."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        registry_dir.write("orders", "")
        assert "orders" in registry.reload().rejected
        with registry.get("orders"):
            pass
        registry_dir.remove("orders")
        registry.reload()
        registry_dir.write("orders", "")
        assert "orders" in registry.reload().rejected
        with pytest.raises(DatabaseRemovedError), registry.get("orders"):
            pass
        changes = [name for name in events.names if name.startswith("config.")]
        assert changes == ["config.rejected", "config.removed", "config.rejected"]


def test_a_probe_does_not_call_a_removed_database_up(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A database that was reached, removed, and came back bad is `failed`, and its probe fails."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        reached = registry.probe("orders").probe
        assert reached is not None
        assert reached.up
        registry_dir.remove("orders")
        registry.reload()
        registry_dir.write("orders", "")
        registry.reload()

        status = registry.probe("orders")
        assert status.probe is not None
        assert not status.probe.up
        assert status.state == "failed"


# A probe that is under way when the files change once more.


class Probing:
    """A registry whose reload stands still after the probe of version 2."""

    def __init__(self, registry: Registry) -> None:
        self._pause = Pause(registry.get("orders"), "prepared")
        self._reload = threading.Thread(target=registry.reload)

    def __enter__(self) -> Self:
        self._pause.__enter__()
        self._reload.start()
        self._pause.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._pause.__exit__()
        self._reload.join()


def test_a_removal_during_a_probe_is_not_undone_by_it(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """The version that was being probed is superseded: the database is removed, and stays so."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        handle.open()
        registry_dir.declare("orders", database, connection={"application_name": "v2"})
        with Probing(registry):
            registry_dir.remove("orders")
            assert registry.reload().removed == ("orders",)

        assert status_of_orders(registry).state is None
        with pytest.raises(DatabaseRemovedError), handle:
            pass
        assert events.named("config.applied") == []
        assert events.named("config.rejected") == []
        eventually(lambda: database.backends() == [], 5, "the probed connection is closed")


def test_a_file_that_goes_bad_during_a_probe_is_rejected_once_and_supersedes_what_was_probed(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """What the files do not say any more is not applied, and the problem stays visible."""
    registry_dir.declare("orders", database, connection={"application_name": "v1"})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        registry.get("orders").open()
        registry_dir.declare("orders", database, connection={"application_name": "v2"})
        with Probing(registry):
            registry_dir.write("orders", "")
            assert "orders" in registry.reload().rejected

        orders = status_of_orders(registry)
        assert (orders.state, orders.version) == ("stale", 1)
        assert "orders" in registry.reload().rejected
        assert len(events.named("config.rejected")) == 1
        assert events.named("config.applied") == []
        with registry.get("orders") as connection:
            assert connection.execute("SHOW application_name").fetchone() == ("v1",)


def test_a_version_that_several_reloads_ask_for_at_once_is_applied_once(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Five callers of `reload` during one probe share its result."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        registry.get("orders").open()
        registry_dir.declare("orders", database, connection={"application_name": "v2"})
        reports: list[Any] = []
        callers = [
            threading.Thread(target=lambda: reports.append(registry.reload())) for _ in range(5)
        ]
        with Probing(registry):
            for caller in callers:
                caller.start()
        for caller in callers:
            caller.join()

        assert [report.applied or report.unchanged for report in reports] == [("orders",)] * 5
        assert [one["version"] for one in events.named("config.applied")] == [2]
        assert len(events.named("database.rotated")) == 1


def test_a_handle_that_is_made_during_a_probe_gets_the_new_configuration(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A handle of another connection type, asked for in the middle of a reload, is not forgotten."""
    registry_dir.declare("orders", database, "pool")
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        registry.get("orders").open()
        registry_dir.declare("orders", database, "pool", connection={"application_name": "v2"})
        with Probing(registry):
            other = registry.get("orders", "normal")
        assert registry.reload().unchanged == ("orders",)

        with other as connection:
            assert connection.execute("SHOW application_name").fetchone() == ("v2",)


def test_closing_the_registry_during_a_probe_is_not_undone_by_it(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """The handle stays closed, the reload ends with nothing applied, and no connection is left."""
    registry_dir.declare("orders", database)
    registry = Registry(registry_dir, metrics=None, watch=False)
    handle = registry.get("orders")
    handle.open()
    registry_dir.declare("orders", database, connection={"application_name": "v2"})
    with Probing(registry):
        registry.close()

    with pytest.raises(HandleClosedError), handle:
        pass
    eventually(lambda: database.backends() == [], 5, "the probed connection is closed")
    assert "config.applied" not in events.names
    assert registry.status().databases[0].version == 1
