"""Errors that no reload expects: it is rejected with the reason, and tried again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg_pool
import pytest

from pgmonkey import Registry
from pgmonkey.pool import fault_points
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory


@pytest.fixture(autouse=True)
def no_actions_left() -> Iterator[None]:
    """Forget what a test has put at the fault points."""
    yield
    fault_points.actions.clear()


def application_name(registry: Registry) -> Any:
    with registry.get("orders").connection(timeout=5) as connection:
        row = connection.execute("SHOW application_name").fetchone()
    assert row is not None
    return row[0]


def no_thread_for_the_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def deny(thread: threading.Thread) -> None:
        if thread.name.startswith("pgmonkey-reload-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", deny)


def no_thread_for_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(_pool: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(psycopg_pool.ConnectionPool, "open", deny)


def no_descriptor(_monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(24, "Too many open files")

    fault_points.actions["after_probe"] = fail


@pytest.mark.parametrize(
    "spoil, says",
    [
        (no_thread_for_the_reload, "can't start new thread"),
        (no_thread_for_the_pool, "can't start new thread"),
        (no_descriptor, "Too many open files"),
    ],
)
@pytest.mark.parametrize("watched", [True, False])
def test_a_reload_that_the_system_refuses_is_rejected_and_tried_again_by_itself(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    spoil: Any,
    says: str,
    watched: bool,
) -> None:
    """No thread, no descriptor: what runs goes on, the reason is said, and it heals."""
    registry_dir.declare("orders", database, connection={"application_name": "first"})
    with Registry(registry_dir, metrics=None, watch=watched) as registry:
        assert application_name(registry) == "first"
        if watched:
            events.wait("watch.started")
        with pytest.MonkeyPatch.context() as monkeypatch:
            spoil(monkeypatch)
            registry_dir.declare("orders", database, connection={"application_name": "second"})
            report = None if watched else registry.reload()
            rejected = events.wait("config.rejected", database="orders", timeout=10)
            assert rejected["code"] == "probe.other"
            assert says in rejected["problems"][0]
            if report is not None:
                assert report.applied == ()
                assert says in str(report.rejected["orders"][0])
            assert registry.status().databases[0].state == "stale"
            assert application_name(registry) == "first"
        fault_points.actions.clear()

        if not watched:
            assert registry.reload().applied == ("orders",)
        eventually(lambda: application_name(registry) == "second", 10, "it is tried again")
        assert registry.status().databases[0].state == "ready"
        assert len(events.named("config.rejected")) == 1
        assert registry.wait_drained(timeout=5)
    eventually(lambda: database.backends() == [], 5, "no connection is left over")
