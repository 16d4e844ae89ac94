"""The soak: rotations without end under load, while backends, the server and forked children come and go."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psycopg
import pytest

from pgmonkey import Registry
from tests.kit import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume

ROTATIONS: Final = int(os.environ.get("SOAK_ROTATIONS", "20"))
WORKERS: Final = 16
POOL_SIZE: Final = 6
#: What each database is: its connection type, and the seconds of a transaction.
DATABASES: Final = {
    "orders": ("pool", 0.002),
    "reports": ("pool", 0.5),
    "events": ("async_pool", 0.002),
    "exports": ("async_pool", 0.5),
}
#: After so many rotations a backend is terminated, and a process forks in the middle of one.
TERMINATE_EVERY: Final = 10
FORK_EVERY: Final = 5

INSERT: Final = "INSERT INTO done VALUES (%s)"
SLEEP: Final = "SELECT pg_sleep(%s)"

_numbers: Final = itertools.count()


@dataclass
class Load:
    """What the clients of one database do, and what they met.

    Args:
        seconds: How long a transaction takes.
    """

    seconds: float
    stop: threading.Event
    committed: list[int] = field(default_factory=list)
    #: Transactions that were cut, by what was raised. Whether their commit arrived is not known.
    cut: list[tuple[int, str]] = field(default_factory=list)
    #: Everything else that was raised.
    errors: list[BaseException] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def work(self, handle: Any) -> None:
        """Commit one transaction after the other, in a thread."""
        while not self.stop.is_set():
            number, connection = next(_numbers), None
            began = time.perf_counter()
            try:
                with handle as connection:
                    self.waits.append(time.perf_counter() - began)
                    connection.execute(INSERT, [number])
                    connection.execute(SLEEP, [self.seconds])
            except BaseException as error:
                self._failed(number, error, connection)
            else:
                self.committed.append(number)

    async def work_async(self, handle: Any) -> None:
        """Commit one transaction after the other, in a task."""
        while not self.stop.is_set():
            number, connection = next(_numbers), None
            began = time.perf_counter()
            try:
                async with handle as connection:
                    self.waits.append(time.perf_counter() - began)
                    await connection.execute(INSERT, [number])
                    await connection.execute(SLEEP, [self.seconds])
            except BaseException as error:
                self._failed(number, error, connection)
            else:
                self.committed.append(number)

    def _failed(self, number: int, error: BaseException, connection: Any) -> None:
        """Note an error: of a transaction on a connection that was killed, or any other."""
        if connection is not None and isinstance(error, psycopg.OperationalError):
            self.cut.append((number, error.sqlstate or "connection lost"))
        else:
            self.errors.append(error)


@contextmanager
def clients(registry: Registry) -> Iterator[dict[str, Load]]:
    """Put 16 threads on each pool and 16 tasks on each async pool, until the block ends."""
    stop = threading.Event()
    loads = {name: Load(seconds, stop) for name, (_, seconds) in DATABASES.items()}
    handles: dict[str, Any] = {name: registry.get(name) for name in DATABASES}
    of_tasks = [name for name, (kind, _) in DATABASES.items() if kind == "async_pool"]

    async def tasks() -> None:
        await asyncio.gather(
            *(loads[name].work_async(handles[name]) for name in of_tasks for _ in range(WORKERS))
        )
        for name in of_tasks:
            await handles[name].close()

    threads = [
        threading.Thread(target=loads[name].work, args=(handles[name],))
        for name, (kind, _) in DATABASES.items()
        if kind == "pool"
        for _ in range(WORKERS)
    ]
    threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
    for thread in threads:
        thread.start()
    try:
        yield loads
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Peak:
    """Count our sessions all the time, as another role; a restart of the server is no reason to stop."""

    def __init__(self, database: TemporaryDatabase) -> None:
        self._database = database
        self._stop = threading.Event()
        self.highest: Counter[str] = Counter()
        #: The sessions of each look that saw more than there may be.
        self.excess: list[str] = []
        self.samples = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._database.server.connect() as connection:
                    connection.autocommit = True
                    while not self._stop.wait(0.002):
                        self._sample(connection)
            except psycopg.OperationalError:
                self._stop.wait(0.01)  # the server is being restarted

    def _sample(self, connection: psycopg.Connection[Any]) -> None:
        rows = connection.execute(
            """
            SELECT application_name, count(*), clock_timestamp(), array_agg(concat_ws(
                ' ', pid, 'since', backend_start, state, 'since', state_change, wait_event))
            FROM pg_stat_activity WHERE usename = %s GROUP BY 1
            """,
            [self._database.user],
        ).fetchall()
        self.samples += 1
        for name, number, at, sessions in rows:
            self.highest[name] = max(self.highest[name], number)
            if name in DATABASES and number > POOL_SIZE + 1:
                self.excess.append("\n  ".join([f"{name} at {at}", *sessions]))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()


FORKER: Final = """
    import asyncio, json, threading, warnings
    import psycopg
    from pgmonkey import Registry

    warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is what is tested
    INSERT = "INSERT INTO done VALUES (%s)"
    FIRST = 1_000_000_000
    registry = Registry(argv[0], metrics=None)
    handle, events = registry.get("forker"), registry.get("forker-events")
    stop, errors = threading.Event(), []

    def work():
        while not stop.is_set():
            connection = None
            try:
                with handle as connection:
                    connection.execute("SELECT pg_sleep(0.002)")
            except Exception as error:
                if connection is None or not isinstance(error, psycopg.OperationalError):
                    errors.append(repr(error))  # the others are of a session that was killed

    def child(number):
        with handle as connection:
            connection.execute(INSERT, [number])

        async def main():
            async with events as connection:
                await connection.execute(INSERT, [number + 1])

        asyncio.run(main())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    say("ready")
    for count, _ in enumerate(sys.stdin, 1):
        number = FIRST + 2 * count
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)  # a child that hangs ends
            try:
                child(number)
            except BaseException as error:
                say("failed", count, repr(error))
                os._exit(1)
            os._exit(0)
        say("child", count, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    registry.close()
    say("end", json.dumps(errors))
"""


class Forker:
    """A process with threads and a registry of its own, whose forked children use that registry."""

    def __init__(
        self, directory: Path, database: TemporaryDatabase, volume: SecretVolume, canary: Canary
    ) -> None:
        place = RegistryDirectory(directory)
        for name, kind in (("forker", "pool"), ("forker-events", "async_pool")):
            place.declare(
                name,
                database,
                kind,
                volume=volume,
                connection={"application_name": name},
                **{f"{kind}_settings": {"min_size": 1, "max_size": 2}},
            )
        self._program = Program(FORKER, place, canary=canary)
        self.children = 0

    def __enter__(self) -> Self:
        self._program.__enter__()
        self._program.wait_for("ready")
        return self

    def __exit__(self, *exception: object) -> None:
        self._program.__exit__(*exception)

    def fork(self) -> None:
        """Let it fork; the child commits two rows, through a pool and an async pool."""
        self.children += 1
        self._program.tell()

    def wait(self) -> None:
        """Wait until the child has ended, and fail if it could not commit."""
        start = f"child {self.children} "
        said = self._program.wait_until(
            lambda: [line for line in self._program.said if line.startswith(start)], 40, "a child"
        )
        assert said == [f"{start}0"], self._program.said[-3:]

    def end(self) -> list[str]:
        """End it; return what its own threads met, but for transactions that were cut."""
        stdin = self._program.process.stdin
        assert stdin is not None
        stdin.close()
        assert self._program.code() == 0
        errors: list[str] = json.loads(self._program.said[-1].removeprefix("end "))
        return errors


def wait_for_commits(loads: dict[str, Load]) -> None:
    """Wait until each database has committed since: what was killed is replaced."""
    before = {name: len(load.committed) for name, load in loads.items()}
    eventually(
        lambda: all(len(load.committed) > before[name] for name, load in loads.items()),
        15,
        "all databases go on",
    )


def settled(registry: Registry, version: int) -> bool:
    """Tell whether all databases run at least this version of their files."""
    return all(
        one.version >= version and not one.stale and one.last_reload == "applied"
        for one in registry.status().databases
    )


def terminate_one(database: TemporaryDatabase, choose: random.Random) -> int:
    """Terminate a backend of the databases under load, and return how many that were."""
    ours = [one["pid"] for one in database.backends() if one["application_name"] in DATABASES]
    if ours:
        database.execute("SELECT pg_terminate_backend(%s)", choose.choice(ours))
    return len(ours[:1])


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * ROTATIONS)
def test_rotations_under_load_lose_no_commit_while_backends_and_the_server_are_killed(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
    canary: Canary,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each rotation revokes the old password at once; only what was in flight on a killed session fails.

    Threads and tasks, with transactions of 2 and of 500 ms, on four databases. A backend is
    terminated now and then, after a rotation or in the middle of one, the server is restarted
    once, and another process forks in the middle of rotations.

    `make soak` does 1,000 of them, `make test` 20; SOAK_ROTATIONS sets another number.
    """
    database.execute("CREATE TABLE public.done (id int PRIMARY KEY)")
    database.execute(f'GRANT ALL ON public.done TO "{database.user}"')
    for name, (kind, _) in DATABASES.items():
        registry_dir.declare(
            name,
            database,
            kind,
            volume=volume,
            connection={"application_name": name},
            **{f"{kind}_settings": {"min_size": 1, "max_size": POOL_SIZE}},
        )
    choose = random.Random(4)
    in_force = []
    killed = 0
    with (
        Registry(registry_dir, metrics=None) as registry,
        Forker(tmp_path / "forker.d", database, volume, canary) as forker,
        Peak(database) as peak,
    ):
        with clients(registry) as loads:
            wait_for_commits(loads)
            for number in range(1, ROTATIONS + 1):
                database.rotate()
                began = time.perf_counter()
                write_credentials(volume, database)
                terminates, forks = number % TERMINATE_EVERY == 0, number % FORK_EVERY == 0
                at_once = terminates and choose.random() < 0.5
                if forks:
                    forker.fork()
                if at_once:
                    killed += terminate_one(database, choose)
                eventually(lambda number=number: settled(registry, number + 1), 30, "in force")
                in_force.append(time.perf_counter() - began)
                if forks:
                    forker.wait()
                if terminates:
                    killed += 0 if at_once else terminate_one(database, choose)
                    wait_for_commits(loads)
                if number == ROTATIONS // 2:
                    killed += len(database.backends()) + len(DATABASES)
                    database.server.restart("immediate")
                    wait_for_commits(loads)
            wait_for_commits(loads)
        assert registry.wait_drained(timeout=10)
        statuses = [pool for one in registry.status().databases for pool in one.pools]
        errors = forker.end()

    rows = {row[0] for row in database.execute("SELECT id FROM public.done WHERE id < 1000000000")}
    of_children = len(database.execute("SELECT id FROM public.done WHERE id >= 1000000000"))
    committed = {one for load in loads.values() for one in load.committed}
    cut = [one for load in loads.values() for one in load.cut]
    errors += [repr(error) for load in loads.values() for error in load.errors]
    rejected = events.named("config.rejected")
    p50, p99 = (quantile(in_force, share) * 1e3 for share in (0.5, 0.99))
    figures = [
        f"rotations                {ROTATIONS}",
        f"commits                  {len(committed)}, lost {len(committed - rows)}",
        f"killed in flight         {dict(Counter(kind for _, kind in cut))}",
        f"other errors             {len(errors)}",
        f"rejected                 {len(rejected)}",
        f"forked children          {forker.children}, {of_children} commits",
        f"peak sessions            {dict(peak.highest)}, each pool has {POOL_SIZE}",
        f"file to force p50, p99   {p50:.0f}, {p99:.0f} ms",
    ]
    for name, load in loads.items():
        p50, p99 = (quantile(load.waits, share) * 1e3 for share in (0.5, 0.99))
        figures.append(f"{name + ' p50, p99':24} {p50:.1f}, {p99:.1f} ms for a connection")
    if "SOAK_ROTATIONS" in os.environ:
        with capsys.disabled():
            print("", *figures, sep="\n")

    assert errors == [], figures
    assert committed <= rows, figures
    assert rows - committed <= {number for number, _ in cut}, "nothing was written twice, or lost"
    assert len(cut) <= killed, figures
    assert of_children == 2 * forker.children
    assert peak.samples > ROTATIONS
    # A session counts until the server has ended it, however late: a pool that connects waits for
    # that, 0.8 s at most. What is older than the reload, and idle, was closed by its pool.
    assert not peak.excess, "\n".join([*figures, *peak.excess])
    assert all(pool.used == pool.waiting == pool.retired == 0 for pool in statuses)
    # A probe may be the one that is killed: the next one works.
    assert len(rejected) <= killed, figures
