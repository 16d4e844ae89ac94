"""Processors of the application that use the registry: no event is written while a lock is held."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import structlog

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory

Act = Callable[[dict[str, Any]], object]


@pytest.fixture
def processors() -> Iterator[list[Act]]:
    """A processor of the application: it gets each event."""
    acts: list[Act] = []

    def process(_logger: Any, _method: str, event: Any) -> Any:
        for act in acts:
            act(dict(event))
        raise structlog.DropEvent

    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(processors=[process], cache_logger_on_first_use=False)
    yield acts
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


def ends(act: Callable[[], object]) -> None:
    """Run a function in its own thread, and fail if it waits for itself."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for itself"


def declare(registry_dir: RegistryDirectory, database: TemporaryDatabase, number: int) -> None:
    registry_dir.declare("orders", database, connection={"application_name": f"app-{number}"})


@pytest.mark.parametrize("opened", [True, False])
def test_a_processor_may_use_the_database_that_its_event_is_about(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    processors: list[Act],
    opened: bool,
) -> None:
    """A processor that writes each event to the database may call `get` of the same registry."""
    declare(registry_dir, database, 0)
    written: list[tuple[str, Any]] = []
    busy = threading.local()

    def write(event: dict[str, Any]) -> None:
        if getattr(busy, "writing", False):
            return
        busy.writing = True
        try:
            for connection_type in (None, "normal"):
                database_ = registry.get("orders", connection_type)
                with database_.connection(timeout=5) as connection:
                    row = connection.execute("SHOW application_name").fetchone()
                written.append((event["event"], row))
        finally:
            busy.writing = False

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        if opened:
            registry.get("orders").open()
        processors.append(write)
        declare(registry_dir, database, 1)
        ends(registry.reload)
        assert ("config.applied", ("app-1",)) in written
        ends(lambda: registry.get("orders", force_reload=True))
        assert ("database.rotated", ("app-1",)) in written
        registry_dir.write("orders", "[")
        ends(registry.reload)
        assert ("config.rejected", ("app-1",)) in written
        processors.clear()


def test_a_processor_may_reload_and_force_and_close(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, processors: list[Act]
) -> None:
    """A processor may call any method of the registry that emits the event: no deadlock."""
    declare(registry_dir, database, 0)
    seen: list[str] = []

    def act(event: dict[str, Any]) -> None:
        name = event["event"]
        if name in seen:
            return
        seen.append(name)
        if name in ("config.applied", "config.rejected", "config.removed"):
            registry.reload()
        if name == "database.rotated":
            registry.get("orders", force_reload=True)
        if name == "database.drained":
            registry.status()

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        registry.get("orders").open()
        processors.append(act)
        declare(registry_dir, database, 1)
        ends(registry.reload)
        registry_dir.write("orders", "[")
        ends(registry.reload)
        registry_dir.remove("orders")
        ends(registry.reload)
        assert {"config.applied", "config.rejected", "config.removed", "database.rotated"} <= {
            *seen
        }

        processors[:] = [lambda event: registry.close() if event["event"] != "closed" else None]
        declare(registry_dir, database, 2)
        ends(registry.reload)
        assert registry.closed


def test_a_processor_that_stands_still_holds_up_no_checkout(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, processors: list[Act]
) -> None:
    """A blocked log blocks the reload that writes to it, and no checkout."""
    declare(registry_dir, database, 0)
    reached, go_on = threading.Event(), threading.Event()

    def stand_still(event: dict[str, Any]) -> None:
        if event["event"] in ("config.applied", "database.rotated"):
            reached.set()
            assert go_on.wait(30)

    with Registry(registry_dir, metrics=None) as registry:
        handle: Any = registry.get("orders")
        handle.open()
        processors.append(stand_still)
        declare(registry_dir, database, 1)
        try:
            assert reached.wait(10)
            for connection_type in ("pool", "normal"):
                with registry.get("orders", connection_type).connection(timeout=5) as connection:  # type: ignore[arg-type]  # one of them
                    assert connection.execute("SHOW application_name").fetchone() == ("app-1",)
            assert registry.status().databases[0].version == 2
        finally:
            go_on.set()


def test_a_processor_that_is_interrupted_leaves_no_event_behind(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, processors: list[Act]
) -> None:
    """Ctrl-C inside a processor reaches the caller, and the next events are written at once."""
    declare(registry_dir, database, 0)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        registry.get("orders").open()

        def interrupt(_event: object) -> None:
            raise KeyboardInterrupt

        processors.append(interrupt)
        declare(registry_dir, database, 1)
        with pytest.raises(KeyboardInterrupt):
            registry.get("orders", force_reload=True)
        seen: list[str] = []
        processors[:] = [lambda event: seen.append(event["event"])]
        registry.get("orders", force_reload=True)
        assert "database.rotated" in seen
        with registry.get("orders") as connection:
            assert isinstance(connection, psycopg.Connection)
        eventually(lambda: registry.wait_drained(0.1), 5, "the old connections are gone")
