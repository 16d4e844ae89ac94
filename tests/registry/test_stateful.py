"""Whatever happens in whatever order: the promises of a reload, against a model of what they mean."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgmonkey import Registry
from pgmonkey.errors import (
    CheckoutTimeout,
    ConfigError,
    DatabaseRemovedError,
    UnknownDatabaseError,
)
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.pool.side import FRESH

#: Name and connection type of each database that the machine may declare.
TYPES: Final = {"orders": "pool", "archive": "pool", "events": "async_pool"}
SIZE: Final = 2
PATIENCE: Final = 0.5
#: What a busy machine may add to a deadline, in seconds.
SLACK: Final = 1.5
#: Seconds after a restart within which a pool connects again: a connect that the restart cut is
#: repeated after a pause, which may be longer than the patience of a client.
RECOVERY: Final = 2.0

names = st.sampled_from(sorted(TYPES))


class LoopThread:
    """An event loop in a thread of its own, as a server has one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass
class Held:
    """A checkout that is out."""

    name: str
    checkout: Any
    seen: str
    killed: bool = False


class Machine(RuleBasedStateMachine):
    """Write, break, remove, rename, rotate, borrow, return, cancel, restart, in any order."""

    database: TemporaryDatabase
    events: CapturedEvents

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.place = tempfile.TemporaryDirectory()
        self.files = RegistryDirectory(Path(self.place.name, "registry.d"))
        self.volume = SecretVolume(Path(self.place.name, "secrets"))
        write_credentials(self.volume, self.database)
        self.loop = LoopThread()
        self.events.clear()
        #: What each file says: an application name, or `None` for what cannot be read.
        self.written: dict[str, str | None] = {}
        #: What is in force: the application name that a checkout must see.
        self.in_force: dict[str, str] = {}
        self.removed: set[str] = set()
        self.held: list[Held] = []
        self.versions: dict[str, int] = {}
        self.bad_contents: Counter[str] = Counter()
        self.restarts = 0
        self.restarted_at = -RECOVERY - SLACK

    @initialize()
    def begin(self) -> None:
        for name in ("orders", "events"):
            self.write_good(name)
        self.registry = Registry(self.files, metrics=None, watch=False)
        self.in_force = {name: str(text) for name, text in self.written.items()}

    # Files

    @rule(name=names)
    def write_good(self, name: str) -> None:
        application_name = f"{name}-{next(self.numbers)}"
        sizes = {"min_size": 1, "max_size": SIZE, "timeout": "500ms"}
        self.files.declare(
            name,
            self.database,
            TYPES[name],
            connection={
                "application_name": application_name,
                "user": {"from_file": str(self.volume.path("username"))},
                "password": {"from_file": str(self.volume.path("password"))},
            },
            pool_settings=sizes,
            async_pool_settings=sizes,
        )
        self.written[name] = application_name

    @rule(name=names, text=st.sampled_from(["", "x: [", "conection_type: pool\n", "a: b: c"]))
    def write_bad(self, name: str, text: str) -> None:
        self.files.write(name, f"# {next(self.numbers)}\n{text}")
        self.written[name] = None

    @rule(name=names)
    def remove(self, name: str) -> None:
        if name in self.written:
            self.files.remove(name)
            del self.written[name]

    @rule()
    def rename(self) -> None:
        if "orders" in self.written:
            self.files.file("orders").rename(self.files.file("archive"))
            self.written["archive"] = self.written.pop("orders")

    # While a file is bad, or waits for connections to come back, the last good login is the old
    # one; when the server refuses that, no new connection can be made, and that is no fault.
    @precondition(
        lambda self: not self.held and all(text is not None for text in self.written.values())
    )
    @rule()
    def swap_secret(self) -> None:
        self.database.rotate()
        write_credentials(self.volume, self.database)
        self.look()

    @rule()
    def look(self) -> None:
        """Reload, and see that the report says what the model does."""
        report = self.registry.reload()
        for name, text in self.written.items():
            if name in report.rejected:
                # A good file waits for its turn only while all connections are out.
                assert text is None or len(self.held_of(name)) >= SIZE, report.rejected[name]
                self.bad_contents[name] += 1
            else:
                assert text is not None
                self.in_force[name] = text
                self.removed.discard(name)
        for name in self.in_force.keys() - self.written.keys():
            self.removed.add(name)

    @precondition(lambda self: self.restarts < 2)
    @rule(mode=st.sampled_from(["fast", "immediate"]))
    def restart(self, mode: Any) -> None:
        self.restarts += 1
        self.database.server.restart(mode)
        self.restarted_at = time.monotonic()
        # A connection that came back a moment ago is handed out without a look at it.
        came_back = time.monotonic()
        eventually(lambda: time.monotonic() > came_back + FRESH)
        for held in self.held:
            held.killed = True

    # Clients

    def held_of(self, name: str) -> list[Held]:
        return [held for held in self.held if held.name == name]

    @rule(name=names)
    def checkout(self, name: str) -> None:
        began = time.monotonic()
        try:
            held = self.borrow(name)
        except CheckoutTimeout:
            # Counting what older versions still have out, the pool may be full.
            recovers = began < self.restarted_at + RECOVERY + SLACK
            assert len(self.held_of(name)) >= SIZE or recovers
        except DatabaseRemovedError:
            assert name in self.removed
        except UnknownDatabaseError:
            assert name not in self.in_force or name in self.removed
        except ConfigError:
            assert name not in self.in_force or name in self.removed
        else:
            assert name in self.in_force
            assert name not in self.removed
            assert held.seen == self.in_force[name], "a connection of an older version"
            self.held.append(held)
        assert time.monotonic() - began < PATIENCE + SLACK

    def borrow(self, name: str, patience: float = PATIENCE) -> Held:
        handle: Any = self.registry.get(name)
        checkout = handle.connection(timeout=patience)
        show = "SELECT current_setting('application_name')"
        if TYPES[name] == "pool":
            connection = checkout.__enter__()
            try:
                return Held(name, checkout, connection.execute(show).fetchone()[0])
            except BaseException as error:
                checkout.__exit__(type(error), error, None)
                raise

        async def enter() -> Held:
            connection = await checkout.__aenter__()
            try:
                cursor = await connection.execute(show)
                return Held(name, checkout, (await cursor.fetchone())[0])
            except BaseException as error:
                await checkout.__aexit__(type(error), error, None)
                raise

        held: Held = self.loop.run(enter())
        return held

    @precondition(lambda self: self.held)
    @rule(choose=st.integers(min_value=0, max_value=9))
    def give_back(self, choose: int) -> None:
        held = self.held.pop(choose % len(self.held))
        try:
            if TYPES[held.name] == "pool":
                held.checkout.__exit__(None, None, None)
            else:

                async def leave() -> None:
                    await held.checkout.__aexit__(None, None, None)

                self.loop.run(leave())
        except psycopg.OperationalError:
            assert held.killed, "only what was in flight on a killed session fails"

    @precondition(lambda self: "events" in self.in_force and "events" not in self.removed)
    @rule(turns=st.integers(min_value=0, max_value=8), in_a_query=st.booleans())
    def cancel(self, turns: int, in_a_query: bool) -> None:
        handle: Any = self.registry.get("events")

        async def hold(entered: asyncio.Event) -> None:
            async with handle.connection(timeout=PATIENCE) as connection:
                entered.set()
                await connection.execute("SELECT pg_sleep(0.3)")

        async def work() -> None:
            entered = asyncio.Event()
            task = asyncio.create_task(hold(entered))
            if in_a_query:
                waiting = asyncio.create_task(entered.wait())
                await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or isinstance(task.exception(), CheckoutTimeout)

        began = time.monotonic()
        self.loop.run(work())
        assert time.monotonic() - began < PATIENCE + SLACK

    # What always holds

    @invariant()
    def versions_only_grow(self) -> None:
        if not hasattr(self, "registry"):
            return
        for one in self.registry.status().databases:
            assert one.version >= self.versions.get(one.name, 0)
            self.versions[one.name] = one.version

    @invariant()
    def each_version_is_applied_once_and_each_content_rejected_at_most_once(self) -> None:
        applied = [(one["database"], one["version"]) for one in self.events.named("config.applied")]
        assert len(applied) == len(set(applied))
        rejected = Counter(one["database"] for one in self.events.named("config.rejected"))
        assert all(rejected[name] <= self.bad_contents[name] for name in rejected)

    @invariant()
    def status_says_what_is_in_force(self) -> None:
        if not hasattr(self, "registry"):
            return
        for one in self.registry.status().databases:
            if one.state in ("ready", "idle", "stale", "down"):
                shown: Any = one.config["connection_settings"]
                assert shown["application_name"] == self.in_force[one.name]

    def teardown(self) -> None:
        try:
            if hasattr(self, "registry"):
                while self.held:
                    self.give_back(0)
                assert self.registry.wait_drained(timeout=5), "the older versions are gone"
                self.each_database_is_served_after_all()
                self.loop.run(self.registry.aclose())
        finally:
            self.loop.stop()
            self.place.cleanup()

    def each_database_is_served_after_all(self) -> None:
        """All checkouts are back: every pool can give all of its connections at once."""
        self.look()
        for name in self.in_force.keys() - self.removed:
            for _ in range(SIZE):
                self.held.append(self.borrow(name, RECOVERY + SLACK))
            assert [held.seen for held in self.held_of(name)] == [self.in_force[name]] * SIZE
            while self.held:
                self.give_back(0)
            (pool,) = (
                pool
                for one in self.registry.status().databases
                for pool in one.pools
                if pool.database == name
            )
            assert (pool.used, pool.retired, pool.waiting) == (0, 0, 0)


def test_the_old_login_of_a_loop_that_could_not_move_is_not_held_against_the_new_one(
    database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """A restart right after a rotation fails the move; the old login is refused, the new one works."""
    bound: Any = type("BoundMachine", (Machine,), {"database": database, "events": events})
    for _ in range(5):
        machine = bound()
        try:
            machine.begin()
            machine.cancel(turns=1, in_a_query=False)
            machine.swap_secret()
            machine.restart(mode="fast")
        finally:
            machine.teardown()


def test_a_loop_that_could_not_move_hands_out_nothing_old_once_the_server_is_back(
    database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """A restart after a reload: the next checkout of a loop sees what is in force, not a pause."""
    bound: Any = type("BoundMachine", (Machine,), {"database": database, "events": events})
    for _ in range(5):
        machine = bound()
        try:
            machine.begin()
            machine.cancel(turns=0, in_a_query=True)
            machine.write_good("events")
            machine.look()
            machine.restart(mode="fast")
            machine.checkout("events")
        finally:
            machine.teardown()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_any_order_of_events_keeps_the_promises_of_a_reload(
    database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """A database with a last good configuration is served, whatever was done to files and server.

    A checkout gives a connection of what is in force, or fails within its deadline; versions only
    grow; each ends applied or superseded; each content is rejected at most once; and when all
    checkouts are back, no older version is left and no connection is lost.
    """
    machine: Callable[[], Machine] = type(
        "BoundMachine", (Machine,), {"database": database, "events": events}
    )
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # as Hypothesis has it
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
