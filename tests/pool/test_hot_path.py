"""What decides how fast a checkout is: round trips, locks, logs, threads. Counted, not timed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, Registry
from pgmonkey.pool.stats import FOLD_AT
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.server import PostgresServer

ROOT = Path(__file__).parents[2]

_LOCKS = (type(threading.Lock()), type(threading.RLock()))


@pytest.mark.parametrize(
    "more, settings, empty, statement",
    [
        ({}, {}, 0, 3),  # BEGIN, the statement, COMMIT
        ({}, {"autocommit": "true"}, 0, 1),
        ({"check_on_checkout": "true"}, {}, 1, 4),
        ({"reset_on_return": "true"}, {}, 1, 4),
        ({"leak_detection": "30s"}, {}, 0, 3),
    ],
    ids=["as it is", "autocommit", "check_on_checkout", "reset_on_return", "leak_detection"],
)
def test_a_checkout_costs_the_round_trips_of_its_statements_alone(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    more: dict[str, Any],
    settings: dict[str, Any],
    empty: int,
    statement: int,
) -> None:
    """Neither taking a connection nor giving it back asks the server anything that is not asked for."""
    registry_dir.declare(
        "orders",
        database,
        # Preparing a statement is a round trip of its own, once.
        connection={
            "host": proxy.host,
            "port": proxy.port,
            "prepare_threshold": "1000",
            **settings,
        },
        pool_settings={"min_size": 1, "max_size": 1},
        **more,
    )
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        with handle:
            pass
        eventually(lambda: proxy.round_trips >= 1 + empty)
        before = proxy.round_trips
        for _ in range(10):
            with handle:
                pass
        between = proxy.round_trips
        assert between - before == 10 * empty
        for _ in range(10):
            with handle as connection:
                connection.execute("SELECT 1")
        assert proxy.round_trips - between == 10 * statement


async def test_an_async_checkout_costs_no_other_round_trips(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """Three for a statement in a transaction, none for a block without one."""
    registry_dir.declare(
        "events",
        database,
        "async_pool",
        connection={"host": proxy.host, "port": proxy.port, "prepare_threshold": "1000"},
        async_pool_settings={"min_size": 1, "max_size": 1},
    )
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("events")
        async with handle:
            pass
        before = proxy.round_trips
        for _ in range(10):
            async with handle:
                pass
        assert proxy.round_trips == before
        for _ in range(10):
            async with handle as connection:
                await connection.execute("SELECT 1")
        assert proxy.round_trips - before == 30


def locks_of(root: Any) -> Iterator[Any]:
    """Yield the locks of every object of ours that can be reached from one."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set)):
            waiting += item
        elif isinstance(item, _LOCKS):
            yield item
        elif type(item).__module__.startswith("pgmonkey."):
            names = [name for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
            names += getattr(item, "__dict__", {})
            waiting += [getattr(item, name, None) for name in names]


def test_a_checkout_waits_for_no_lock_of_ours(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """While somebody else holds every lock there is, checkouts begin and end."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 1})
    done = threading.Event()
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        with handle:
            pass

        def borrow() -> None:
            for _ in range(FOLD_AT + 10):
                with registry.get("orders"):
                    pass
            done.set()

        locks = list(locks_of(registry))
        assert len(locks) > 5
        for lock in locks:
            assert lock.acquire(timeout=5)
        try:
            thread = threading.Thread(target=borrow)
            thread.start()
            assert done.wait(30)
        finally:
            for lock in locks:
                lock.release()
        thread.join()
        assert handle.status().requests == FOLD_AT + 11


def test_a_checkout_logs_nothing_and_starts_nothing(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No event is made on the way of a checkout, not even one that a filter would drop."""
    caplog.set_level("WARNING", "psycopg.pool")  # as it is by default
    registry_dir.declare(
        "orders", database, pool_settings={"min_size": 1, "max_size": 1}, leak_detection="30s"
    )
    called: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            called.add((frame.f_globals.get("__name__", ""), frame.f_code.co_name))

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        with handle:
            pass
        threads = threading.active_count()
        sys.setprofile(note)
        try:
            for _ in range(3):
                with registry.get("orders"):
                    pass
        finally:
            sys.setprofile(None)
        assert threading.active_count() == threads
    ours = {name for module, name in called if module.startswith("pgmonkey")}
    way = {"get", "__get__", "enter", "leave"}
    if sys.version_info >= (3, 14):  # `with` looks `__exit__` up before there is a checkout
        way |= {"bound", "_leave_or_loose"}
    assert ours == way, "nothing else of ours is on the way"
    assert not {
        module
        for module, _ in called
        if module.startswith(("structlog", "pgmonkey.telemetry.events"))
    }


def test_a_database_that_nobody_uses_costs_no_thread_and_no_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A hundred declared databases and their handles: nothing runs, nothing is connected."""
    for number in range(100):
        registry_dir.declare(f"db-{number}", database, "pool" if number % 2 else "async_pool")
    before = threading.active_count()
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        for name in registry:
            registry.get(name)
        assert threading.active_count() == before
        assert database.backends() == []
        with registry.get("db-1"):
            assert threading.active_count() <= before + 2


def test_the_help_of_the_command_line_loads_no_driver() -> None:
    """`pgmonkey --help` imports neither psycopg nor pydantic nor the service."""
    program = (
        "import sys\n"
        "sys.argv = ['pgmonkey', '--help']\n"
        "from pgmonkey.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'psycopg', 'psycopg_pool', 'pydantic', 'prometheus_client', 'structlog',"
        " 'watchfiles', 'starlette', 'hypercorn'}\n"
        "print('loaded:', *sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_a_full_server_is_named_and_the_other_databases_go_on(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """`max_connections` of one server is reached: its databases say so, those elsewhere work."""
    password = canary.secret()
    registry_dir.declare("audit", database)
    with PostgresServer(
        settings={"max_connections": "6", "superuser_reserved_connections": "2"}
    ) as small:
        small.create_role("app", password)
        there = {
            "host": small.host,
            "port": small.port,
            "dbname": "postgres",
            "user": "app",
            "password": password,
        }
        registry_dir.write(
            "orders", {"connection_type": "pool", "connection_settings": there, "timeout": "1s"}
        )
        others = [psycopg.connect(**there) for _ in range(4)]
        try:
            with Registry(registry_dir, metrics=None, watch=False) as registry:
                with pytest.raises(CheckoutTimeout, match="too_many_connections") as caught:
                    with registry.get("orders"):
                        pass
                assert caught.value.reason == "too_many_connections"
                orders = registry.get("orders").status()
                assert orders.last_failure_reason == "too_many_connections"
                with registry.get("audit") as connection:
                    assert connection.execute("SELECT 1").fetchone() == (1,)
                others.pop().close()
                with registry.get("orders").connection(timeout=20) as connection:
                    assert connection.execute("SELECT 1").fetchone() == (1,)
        finally:
            for one in others:
                one.close()
