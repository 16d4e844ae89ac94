"""Functions that are called with each change of a database, as a plain value."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from pgmonkey import Change, Registry
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory


@pytest.fixture
def registry(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Registry]:
    """A registry that declares `orders`, and reads its files when it is asked to."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        yield registry


def describe(registry_dir: RegistryDirectory, database: TemporaryDatabase, text: str) -> None:
    """Change something that needs no new connection."""
    registry_dir.declare("orders", database, description=text)


def test_each_change_is_told_with_its_outcome_keys_and_problems(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
) -> None:
    """Applied, rejected, removed, and new: what a later look at the status would show, as it happens."""
    changes: list[Change] = []
    registry.subscribe(changes.append)
    began = time.time()

    secret = canary.secret()
    registry_dir.declare("orders", database, connection={"password": secret}, description="tea")
    registry.reload()
    registry_dir.write("orders", {"connection_settings": {"pasword": canary.secret()}})
    registry.reload()
    registry.reload()  # the same problems: nothing new
    registry_dir.declare("reports", database)
    registry.reload()
    registry_dir.remove("reports")
    registry.reload()

    applied, rejected, new, removed = changes
    assert applied.database == "orders"
    assert applied.outcome == "applied"
    assert applied.version == 2
    assert applied.changed == ("connection_settings.password", "description")
    assert applied.problems == ()
    assert rejected.outcome == "rejected"
    assert rejected.version == 2, "the last good one keeps serving"
    assert rejected.changed == ()
    assert "config.unknown_key" in {problem.code for problem in rejected.problems}
    assert (new.database, new.outcome, new.version) == ("reports", "applied", 1)
    assert new.changed == ("*",)
    assert (removed.database, removed.outcome) == ("reports", "removed")
    assert began <= applied.at <= rejected.at <= new.at <= removed.at <= time.time()
    canary.check(repr(changes))
    with pytest.raises(FrozenInstanceError):
        applied.outcome = "removed"  # type: ignore[misc]  # that is the test


def test_a_failed_probe_is_told_as_a_rejection(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
) -> None:
    """Once, though it is tried again."""
    changes: list[Change] = []
    registry.get("orders").open()
    registry.subscribe(changes.append)
    registry_dir.declare("orders", database, connection={"password": canary.secret()})
    registry.reload()
    registry.reload()
    (rejected,) = changes
    assert rejected.outcome == "rejected"
    assert [problem.code for problem in rejected.problems] == ["probe.auth"]
    canary.check(repr(rejected))


def test_a_function_is_called_where_the_change_is_made_and_may_use_the_registry(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """No lock is held: it borrows, asks for the status, and reloads."""
    seen: list[Any] = []

    def use(change: Change) -> None:
        with registry.get("orders") as connection:
            connection.execute("SELECT 1")
        registry.reload()
        (status,) = registry.status().databases
        seen.append((threading.get_ident(), change.version, status.version))

    registry.subscribe(use)
    describe(registry_dir, database, "tea")
    registry.reload()
    assert seen == [(threading.get_ident(), 2, 2)]


def test_the_watcher_tells_of_what_it_finds(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Without a call of anybody."""
    registry_dir.declare("orders", database)
    changes: queue.Queue[Change] = queue.Queue()
    with Registry(registry_dir, metrics=None) as registry:
        registry.subscribe(changes.put)
        describe(registry_dir, database, "tea")
        assert changes.get(timeout=10).changed == ("description",)


def test_an_exception_becomes_an_event_and_hurts_nobody(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
) -> None:
    """The reload succeeds, the others are called. The text of the exception may hold anything."""
    secret = "do not show this"
    changes: list[Change] = []

    def fails(_change: Change) -> None:
        raise ValueError(secret)

    registry.subscribe(fails)
    registry.subscribe(changes.append)
    describe(registry_dir, database, "tea")
    assert registry.reload().applied == ("orders",)
    assert len(changes) == 1
    (event,) = events.named("subscriber.failed")
    assert event["database"] == "orders"
    assert event["function"].endswith("fails")
    assert event["error"] == "ValueError"
    assert event["place"].startswith(__file__)
    assert event["place"].endswith("in fails")
    assert secret not in repr(event)


def test_an_unsubscribed_function_is_not_called_any_more(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A function that is subscribed twice is called twice, and each is ended by its own."""
    changes: list[Change] = []
    first = registry.subscribe(changes.append)
    second = registry.subscribe(changes.append)
    describe(registry_dir, database, "one")
    registry.reload()
    assert len(changes) == 2
    first()
    first()
    describe(registry_dir, database, "two")
    registry.reload()
    assert len(changes) == 3
    second()
    describe(registry_dir, database, "three")
    registry.reload()
    assert len(changes) == 3


def test_a_function_may_end_its_own_subscription(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """To wait for one change only."""
    changes: list[Change] = []

    def once(change: Change) -> None:
        changes.append(change)
        end()

    end = registry.subscribe(once)
    for text in ("one", "two"):
        describe(registry_dir, database, text)
        registry.reload()
    assert len(changes) == 1


def test_the_changes_of_a_database_are_told_in_their_order_and_delay_no_other_reload(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """While a function is still at the first change, two more are made; then it hears of these."""
    told: list[str] = []
    busy, go_on = threading.Event(), threading.Event()

    def slow(change: Change) -> None:
        if not busy.is_set():
            busy.set()
            assert go_on.wait(10)
        told.append(f"{change.outcome} {change.version}")

    registry.subscribe(slow)
    describe(registry_dir, database, "one")
    first = threading.Thread(target=registry.reload)
    first.start()
    try:
        assert busy.wait(10)
        describe(registry_dir, database, "two")
        registry.reload()
        registry_dir.write("orders", "x: [")
        registry.reload()
        assert told == []
    finally:
        go_on.set()
        first.join()
    assert told == ["applied 2", "applied 3", "rejected 3"]


def test_a_change_that_a_function_causes_is_told_after_the_first(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Not inside of it, and not before the other functions have heard of the first."""
    told: list[str] = []

    def change_again(change: Change) -> None:
        told.append(f"first, {change.version}")
        if change.version == 2:
            describe(registry_dir, database, "two")
            registry.reload()
        told.append(f"first, end of {change.version}")

    registry.subscribe(change_again)
    registry.subscribe(lambda change: told.append(f"second, {change.version}"))
    describe(registry_dir, database, "one")
    registry.reload()
    assert told == [
        "first, 2",
        "first, end of 2",
        "second, 2",
        "first, 3",
        "first, end of 3",
        "second, 3",
    ]


@pytest.mark.parametrize("watch", [True, False])
def test_a_subscription_keeps_no_registry_alive(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, watch: bool
) -> None:
    """Nor does what ends it, though the function refers to the registry."""
    registry_dir.declare("orders", database)
    registry = Registry(registry_dir, metrics=None, watch=watch)
    ends = [registry.subscribe(lambda change, this=registry: print(change, this))]
    alive = weakref.ref(registry)
    del registry
    gc.collect()
    assert alive() is None
    ends[0]()  # and this does nothing


def test_a_child_process_is_told_of_its_own_changes(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Also if it was forked while its parent was told of one."""
    told: list[str] = []
    in_child: list[Any] = []

    def child() -> list[str]:
        told.clear()
        describe(registry_dir, database, "two")
        registry.reload()
        return told

    def tell(change: Change) -> None:
        told.append(f"{change.outcome} {change.version}")
        if not in_child:
            in_child.append("forked")
            in_child.append(in_a_child(child))

    registry.subscribe(tell)
    describe(registry_dir, database, "one")
    registry.reload()
    assert in_child[1] == ["applied 3"]
    assert told == ["applied 2"]


async def _coroutine_function(_change: Change) -> None:
    raise AssertionError


@pytest.mark.parametrize("function", [_coroutine_function, None, "orders"])
def test_what_cannot_be_called_is_refused_at_once(registry: Registry, function: Any) -> None:
    """With a hint for those who have an event loop."""
    with pytest.raises(TypeError, match="call_soon_threadsafe"):
        registry.subscribe(function)
