"""The demonstration: a real PostgreSQL, three databases under load, passwords that rotate."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

import prometheus_client
import psycopg
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from pgmonkey.demo.secret_volume import SecretVolume
from pgmonkey.demo.server import EmbeddedServer
from pgmonkey.pool.database import Database
from pgmonkey.registry.registry import Registry
from pgmonkey.service.runner import Service, ServiceOptions, collector_registry, on_signals
from pgmonkey.version import __version__

#: What the demonstration makes in each database before the registry is loaded.
_TABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "orders": "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, item text,"
        " at timestamptz DEFAULT now())",
        "events": "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY, what text,"
        " at timestamptz DEFAULT now())",
        "reports": "CREATE SCHEMA reports CREATE TABLE daily (day date PRIMARY KEY, orders bigint)",
    }
)
_ITEMS: Final = ("tea", "coffee", "bananas", "a small monkey", "rope", "a tyre swing")
_WORKERS: Final = 3
_PAUSE: Final = 0.03  # seconds between two transactions of one worker
_PAUSE_AFTER_ERROR: Final = 1.0
_PATIENCE: Final = 5.0  # seconds that the workers have to end their last transaction


class Workload(Collector):
    """Write to the three databases from threads and tasks, and count what came of it.

    Args:
        registry: Where the databases are.
    """

    def __init__(self, registry: Registry) -> None:
        # The handles are asked for once and stay good over every reload: that is the point.
        self._orders = registry.get("orders", "pool")
        self._events = registry.get("events", "async_pool")
        self._reports = registry.get("reports", "normal")
        self._counts: Counter[tuple[str, str]] = Counter()
        self._last_error: dict[str, str] = {}
        # Guards the two above.
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            *(
                threading.Thread(target=self._place_orders, name=f"orders-{number}")
                for number in range(_WORKERS)
            ),
            threading.Thread(target=self._count_orders, name="reports"),
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the threads, and the tasks on the running loop."""
        for thread in self._threads:
            thread.start()
        self._tasks = [
            asyncio.create_task(self._note_events(), name=f"events-{number}")
            for number in range(_WORKERS)
        ]

    async def stop(self) -> None:
        """Let every worker end what it does."""
        self._stop.set()
        await asyncio.wait(self._tasks, timeout=_PATIENCE)
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))

    def total(self, outcome: str) -> int:
        """Return how many transactions ended so.

        Args:
            outcome: `ok` or `error`.
        """
        with self._lock:
            return sum(n for (_, ended), n in self._counts.items() if ended == outcome)

    def describe(self) -> Iterator[Metric]:
        """Name no metrics: the names are those of `collect`."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the counts."""
        family = CounterMetricFamily(
            "pgmonkey_demo_transactions",
            "Transactions of the demonstration's workload.",
            labels=["database", "outcome"],
        )
        with self._lock:
            counts = self._counts.copy()
        for name in _TABLES:
            for outcome in ("ok", "error"):
                family.add_metric([name, outcome], counts[name, outcome])
        yield family

    def _place_orders(self) -> None:
        while not self._stop.is_set():
            with self._counted(self._orders), self._orders as conn:
                conn.execute("INSERT INTO orders (item) VALUES (%s)", [random.choice(_ITEMS)])  # noqa: S311 - no secret
            self._stop.wait(self._pause(self._orders))

    def _count_orders(self) -> None:
        while not self._stop.is_set():
            with self._counted(self._reports):
                with self._orders as conn:
                    rows = conn.execute("SELECT count(*) FROM orders").fetchone()
                with self._reports as conn:
                    conn.execute(
                        "INSERT INTO daily VALUES (current_date, %s)"
                        " ON CONFLICT (day) DO UPDATE SET orders = excluded.orders",
                        rows,
                    )
            self._stop.wait(max(0.25, self._pause(self._reports)))

    async def _note_events(self) -> None:
        while not self._stop.is_set():
            with self._counted(self._events):
                async with self._events as conn:
                    await conn.execute(
                        "INSERT INTO events (what) VALUES (%s)",
                        [f"somebody looked at {random.choice(_ITEMS)}"],  # noqa: S311 - no secret
                    )
            await asyncio.sleep(self._pause(self._events))

    @contextmanager
    def _counted(self, database: Database) -> Iterator[None]:
        """Count a transaction; an error is counted, said once, and survived."""
        name = database.name
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is: the workload shows it and goes on
            text = f"{type(error).__name__}: {error}"
            with self._lock:
                self._counts[name, "error"] += 1
                news = self._last_error.get(name) != text
                self._last_error[name] = text
            if news:
                print(f"{name}: a transaction failed: {text}", flush=True)
        else:
            with self._lock:
                self._counts[name, "ok"] += 1
                self._last_error.pop(name, None)

    def _pause(self, database: Database) -> float:
        return _PAUSE_AFTER_ERROR if database.name in self._last_error else _PAUSE


class Vault:
    """Keep the passwords of the demonstration's roles: on the server, and in files.

    Args:
        server: Where the roles are.
        directory: Where the files go, a directory for each database.
    """

    def __init__(self, server: EmbeddedServer, directory: Path) -> None:
        self._server = server
        self.directory = directory
        self._volumes = {name: SecretVolume(directory / name, mode=0o600) for name in _TABLES}

    def create(self) -> None:
        """Create a role and a database for each name, with its table."""
        for name, table in _TABLES.items():
            password = secrets.token_urlsafe(24)
            user = f"{name}_app"
            self._server.create_role(user, password)
            self._server.create_database(name, owner=user)
            with self._server.connect(name) as conn:
                conn.execute(f"SET ROLE {user}")
                conn.execute(table)
            self._write(name, password)

    def rotate(self, name: str) -> None:
        """Give a role a new password: the server knows it first, then the files say it."""
        password = secrets.token_urlsafe(24)
        self._server.set_password(f"{name}_app", password)
        self._write(name, password)

    def _write(self, name: str, password: str) -> None:
        self._volumes[name].write({"username": f"{name}_app", "password": password})


def run_demo(
    directory: str | os.PathLike[str],
    listener: socket.socket,
    *,
    rotate_every: float = 20.0,
    duration: float | None = None,
) -> None:
    """Run the demonstration until SIGINT or SIGTERM, and leave nothing behind.

    Args:
        directory: The registry's directory; it declares `orders`, `events` and `reports`.
        listener: A socket that listens already, for the service.
        rotate_every: Seconds between two rotations; each time it is another database's turn.
        duration: Seconds after which it ends by itself; default: never.

    Raises:
        EmbeddedServerError: PostgreSQL does not start.
        RegistryConfigError: The directory or a file has problems.
        UnknownDatabaseError: One of the three databases is not declared.
    """
    asked = _note_signals()
    print(f"pgmonkey {__version__}: starting PostgreSQL ...", flush=True)
    with listener, EmbeddedServer() as server:
        # In the server's directory: what removes that, even after a SIGKILL, removes the secrets.
        vault = Vault(server, server.directory / "secrets")
        vault.create()
        if asked:
            raise KeyboardInterrupt
        os.environ["PGMONKEY_DEMO_HOST"] = server.host
        os.environ["PGMONKEY_DEMO_PORT"] = str(server.port)
        os.environ["PGMONKEY_DEMO_SECRETS"] = os.fspath(vault.directory)
        metrics = collector_registry()
        # Started by root, the server's own account owns the directory that the secrets lie in.
        registry = Registry(directory, metrics=metrics, trust="off")
        workload = asyncio.run(
            _run(registry, listener, metrics, server, vault, rotate_every, duration, asked)
        )
    print(
        f"stopped after {workload.total('ok'):,} transactions, {workload.total('error'):,} errors;"
        " PostgreSQL and the secrets are gone",
        flush=True,
    )


def _note_signals() -> list[int]:
    """Note SIGINT and SIGTERM until the loop takes over; the second one ends the process.

    An exception out of a signal handler could come while a process is being started, which then
    nobody would wait for. Starting takes a second or two.
    """
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        if asked:
            os._exit(128 + number)  # the server's guard cleans up
        asked.append(number)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return asked


async def _run(
    registry: Registry,
    listener: socket.socket,
    metrics: prometheus_client.CollectorRegistry,
    server: EmbeddedServer,
    vault: Vault,
    rotate_every: float,
    duration: float | None,
    asked: list[int],
) -> Workload:
    async with registry:
        workload = Workload(registry)
        metrics.register(workload)
        service = Service(registry, listener, metrics=metrics, options=ServiceOptions(grace=0.0))
        ended = asyncio.Event()

        def stop() -> None:
            service.readiness.stopping = True
            ended.set()

        on_signals(service, stop)
        if asked:
            stop()
        if duration is not None:
            asyncio.get_running_loop().call_later(duration, stop)
        print(_welcome(registry, service, server, vault), flush=True)
        serving = asyncio.create_task(service.run())
        workload.start()
        rotating = asyncio.create_task(_rotate(vault, workload, rotate_every))
        try:
            done, _ = await asyncio.wait(
                {serving, rotating, asyncio.ensure_future(ended.wait())},
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                task.result()
        finally:
            rotating.cancel()
            await workload.stop()
            service.stop()
            await serving
    return workload


async def _rotate(vault: Vault, workload: Workload, every: float) -> None:
    while True:
        for name in _TABLES:
            await asyncio.sleep(every)
            ok, failed = workload.total("ok"), workload.total("error")
            print(
                f"-- {ok:,} transactions, {failed:,} errors; now {name} gets a new password",
                flush=True,
            )
            try:
                await asyncio.to_thread(vault.rotate, name)
            except psycopg.Error as error:  # somebody tries what an outage does: go on
                print(f"-- {name} keeps its password: {error}", flush=True)


def _welcome(registry: Registry, service: Service, server: EmbeddedServer, vault: Vault) -> str:
    version = server.execute("SHOW server_version")[0][0]
    orders = registry.path / "orders.yaml"
    metrics = f"curl -s {service.url}/metrics | grep"
    return f"""
PostgreSQL {version} listens on port {server.port}; {", ".join(registry.names)} of {registry.path} are in use.

look   {metrics} demo_transactions
       {metrics} config_generation
try    edit {orders}: another max_size, and it is in force when you save
       edit it badly: the event names file, line and key; the last good one goes on
       echo wrong > {vault.directory}/orders/password && kill -HUP {os.getpid()}
         the server rejects it, so the old connections stay; the next rotation mends it
stop   Ctrl-C

The status page: {service.page_url}/
"""
