"""Errors that no reload expects: it is rejected with the reason, and tried again."""

from __future__ import annotations

import threading
from contextlib import ExitStack, closing
from typing import Any

import pytest

from pgmonkey import PgmonkeyError, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.driver_log import whenever_it_logs
from tests.pool.side import Client
from tests.registry.steps import acting


def application_name(registry: Registry) -> Any:
    with registry.get("orders").connection(timeout=5) as connection:
        row = connection.execute("SHOW application_name").fetchone()
    assert row is not None
    return row[0]


def no_thread(stack: ExitStack, _handle: Any) -> None:
    def deny(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    stack.enter_context(pytest.MonkeyPatch.context()).setattr(threading.Thread, "start", deny)


def no_descriptor(stack: ExitStack, handle: Any) -> None:
    def fail() -> None:
        raise OSError(24, "Too many open files")

    stack.enter_context(acting(handle, "prepared", fail))


@pytest.mark.parametrize(
    "spoil, says",
    [
        (no_thread, "can't start new thread"),
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
    """No thread, no descriptor: what runs goes on, an event has the reason, and it heals."""
    registry_dir.declare("orders", database, connection={"application_name": "first"})
    with Registry(registry_dir, metrics=None, watch=watched) as registry:
        assert application_name(registry) == "first"
        if watched:
            events.wait("watch.started")
        with ExitStack() as stack:
            spoil(stack, registry.get("orders"))
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

        if not watched:
            assert registry.reload().applied == ("orders",)
        eventually(lambda: application_name(registry) == "second", 10, "it is tried again")
        assert registry.status().databases[0].state == "ready"
        assert len(events.named("config.rejected")) == 1
        assert registry.wait_drained(timeout=5)
    eventually(lambda: database.backends() == [], 5, "no connection is left over")


@pytest.mark.parametrize("spoilt", ["pool", "async_pool"])
def test_a_rotation_that_fails_is_reported_and_holds_up_no_other(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    spoilt: str,
) -> None:
    """An error that nothing foresees breaks off one pool's rotation; no old connection is handed out."""

    def declare(name: str, size: int) -> None:
        sizes = {"min_size": 1, "max_size": size}
        registry_dir.declare(
            "orders",
            database,
            connection={"application_name": name},
            pool_settings=sizes,
            async_pool_settings=sizes,
        )

    def fail(pool: str, *_: object) -> None:
        if pool == f"pgmonkey/orders/{spoilt}":
            raise OSError(24, "Too many open files")

    declare("first", 2)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        closing(Client(registry)) as client,
        closing(Client(registry, connection_type="async_pool")) as other,
    ):
        clients = client, other
        assert [one.ask("SHOW application_name") for one in clients] == ["first"] * 2
        declare("second", 3)
        with whenever_it_logs("resizing", fail):
            assert registry.reload().applied == ("orders",)
        assert [one.ask("SHOW application_name") for one in clients] == ["second"] * 2
        (failed,) = events.named("database.rotation_failed")
        assert (failed["database"], failed["connection_type"]) == ("orders", spoilt)
        assert (failed["version"], failed["error"]) == (2, "[Errno 24] Too many open files")
        (rotated,) = events.named("database.rotated")
        assert rotated["connection_type"] != spoilt
        assert registry.wait_drained(timeout=5)


def test_a_registry_whose_thread_cannot_start_says_what_to_do(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The error names the directory and the reason; without a watcher, the registry works."""
    registry_dir.declare("orders", database)
    with ExitStack() as stack:
        no_thread(stack, None)
        with pytest.raises(PgmonkeyError, match="can't start new thread") as refused:
            Registry(registry_dir, metrics=None)
        assert str(registry_dir) in str(refused.value)
        assert "watch=False" in str(refused.value)
        unwatched = Registry(registry_dir, metrics=None, watch=False)
    with unwatched:
        assert application_name(unwatched) is not None
    with Registry(registry_dir, metrics=None) as registry:
        assert registry.watching
