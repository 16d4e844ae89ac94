"""What a client goes through when its database is down, against the alternatives at the same time.

Every pool has four connections and one client, which asks five times a second and would wait five
seconds for a connection. All of them meet the same fault in the same moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import asyncpg
import sqlalchemy
from psycopg_pool import ConnectionPool

from benchmarks.comparison import Result
from pgmonkey import Registry
from tests.kit.proxy import ChaosProxy
from tests.kit.server import PostgresServer

SIZE: Final = 4
TIMEOUT: Final = 5.0
PAUSE: Final = 0.2
PASSWORD: Final = "bench-password"

Ask = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client: when it began and ended, and whether it was answered."""

    began: float
    ended: float
    answered: bool


class Client:
    """Ask in a thread of its own, and keep the result."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.calls: list[Call] = []
        self.began: float | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(3 * TIMEOUT)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE):
            self.began = began = monotonic()
            answered = False
            with suppress(Exception):  # which error it is does not matter here: it is counted
                self._ask()
                answered = True
            self.calls.append(Call(began, monotonic(), answered))
            self.began = None


@dataclass(frozen=True, slots=True)
class Experience:
    """What a client went through: failed calls, its longest call, and when it was served again.

    `longest` is of a call that did not end by itself if `hung` says so.
    """

    pool: str
    fault: str
    errors: int
    longest: float
    hung: bool
    again: float | None


def judge(
    pool: str, fault: str, client: Client, began: float, mended: float, end: float
) -> Experience:
    calls = [one for one in client.calls if one.ended >= began and one.began <= end]
    pending = client.began
    lasted = [min(one.ended, end) - one.began for one in calls]
    hung = pending is not None and end - pending > TIMEOUT + 1
    if pending is not None and hung:
        lasted.append(end - pending)
    again = min((one.ended for one in calls if one.answered and one.ended >= mended), default=None)
    return Experience(
        pool,
        fault,
        sum(not one.answered for one in calls),
        max(lasted, default=0.0),
        hung,
        None if again is None else again - mended,
    )


# The pools: each is opened with its four connections, and gives a function that asks.


def _arguments(name: str, proxy: ChaosProxy) -> dict[str, Any]:
    return {
        "host": proxy.host,
        "port": proxy.port,
        "dbname": "postgres",
        "user": "app",
        "password": PASSWORD,
        "application_name": name,
        "connect_timeout": 5,
    }


@contextmanager
def pgmonkey_pool(name: str, proxy: ChaosProxy, *, check: bool = False) -> Iterator[Ask]:
    with tempfile.TemporaryDirectory() as directory:
        text = json.dumps(
            {
                "connection_type": "pool",
                "timeout": TIMEOUT,
                "check_on_checkout": check,
                "connection_settings": _arguments(name, proxy),
                "pool_settings": {"min_size": SIZE, "max_size": SIZE},
            }
        )
        Path(directory, "orders.yaml").write_text(text, encoding="utf-8")
        with Registry(directory, watch=False, metrics=None) as registry:
            handle = registry.get("orders")

            def ask() -> None:
                with handle as connection:
                    connection.execute("SELECT 1")

            yield ask


@contextmanager
def pgmonkey_with_check(name: str, proxy: ChaosProxy) -> Iterator[Ask]:
    with pgmonkey_pool(name, proxy, check=True) as ask:
        yield ask


@contextmanager
def psycopg_pool(name: str, proxy: ChaosProxy, *, check: bool = False) -> Iterator[Ask]:
    pool = ConnectionPool(
        kwargs=_arguments(name, proxy),
        min_size=SIZE,
        timeout=TIMEOUT,
        check=ConnectionPool.check_connection if check else None,
        open=True,
    )

    def ask() -> None:
        with pool.connection() as connection:
            connection.execute("SELECT 1")

    yield ask
    pool.close(timeout=1)


@contextmanager
def psycopg_pool_with_check(name: str, proxy: ChaosProxy) -> Iterator[Ask]:
    with psycopg_pool(name, proxy, check=True) as ask:
        yield ask


@contextmanager
def sqlalchemy_pool(name: str, proxy: ChaosProxy) -> Iterator[Ask]:
    arguments = _arguments(name, proxy)
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        connect_args=arguments,
        pool_size=SIZE,
        max_overflow=0,
        pool_timeout=TIMEOUT,
        pool_pre_ping=True,
        pool_use_lifo=False,
    )

    def ask() -> None:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))

    with ExitStack() as warm:  # SQLAlchemy opens its connections when they are asked for
        for _ in range(SIZE):
            warm.enter_context(engine.connect())
    yield ask
    engine.dispose()


@contextmanager
def asyncpg_pool(name: str, proxy: ChaosProxy) -> Iterator[Ask]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    async def make() -> Any:
        return await asyncpg.create_pool(
            host=proxy.host,
            port=proxy.port,
            database="postgres",
            user="app",
            password=PASSWORD,
            server_settings={"application_name": name},
            timeout=5,
            min_size=SIZE,
            max_size=SIZE,
        )

    pool = run(make())

    async def query() -> None:
        async with pool.acquire(timeout=TIMEOUT) as connection:
            await connection.execute("SELECT 1")

    yield lambda: run(query())

    async def end() -> None:
        pool.terminate()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    with suppress(Exception):
        run(end())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(TIMEOUT)
    loop.close()


POOLS: Final[dict[str, Callable[[str, ChaosProxy], AbstractContextManager[Ask]]]] = {
    "pgmonkey": pgmonkey_pool,
    "pgmonkey, `check_on_checkout`": pgmonkey_with_check,
    "psycopg_pool": psycopg_pool,
    "psycopg_pool, `check`": psycopg_pool_with_check,
    "SQLAlchemy, `pool_pre_ping`": sqlalchemy_pool,
    "asyncpg": asyncpg_pool,
}


@dataclass
class Scene:
    """The server, and the network of each pool."""

    server: PostgresServer
    proxies: dict[str, ChaosProxy]

    def each(self, act: Callable[[ChaosProxy], object]) -> None:
        threads = [threading.Thread(target=act, args=(one,)) for one in self.proxies.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


# The faults: each returns when it is mended.


def restart(scene: Scene) -> None:
    scene.server.restart("fast")


def silent_network(scene: Scene) -> None:
    scene.each(lambda proxy: proxy.set("lost"))
    _rest(10)
    scene.each(lambda proxy: proxy.set("pass"))


def outage(scene: Scene) -> None:
    def cut(proxy: ChaosProxy) -> None:
        proxy.set("refuse")
        proxy.kill()

    scene.each(cut)
    _rest(40)
    scene.each(lambda proxy: proxy.set("pass"))


def stopped_backend(scene: Scene) -> None:
    """One of the four server processes of each pool is stopped for the rest of the time."""
    rows = scene.server.execute(
        "SELECT min(pid) FROM pg_stat_activity WHERE usename = 'app' GROUP BY application_name"
    )
    _stopped.extend(int(pid) for (pid,) in rows)
    for pid in _stopped:
        os.kill(pid, signal.SIGSTOP)


_stopped: list[int] = []


def _let_go() -> None:
    while _stopped:
        with suppress(ProcessLookupError):
            os.kill(_stopped.pop(), signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and for how many seconds the clients are watched after it was mended."""

    name: str
    act: Callable[[Scene], None]
    after: float


FAULTS: Final = (
    Fault("a restart", restart, 10),
    Fault("a network that is silent for 10 s and forgets its connections", silent_network, 20),
    Fault("one stopped server process of four, for 20 s", stopped_backend, 20),
    Fault("a server that refuses for 40 s", outage, 40),
)


def _rest(seconds: float) -> None:
    threading.Event().wait(seconds)


def _go_through(fault: Fault, server: PostgresServer) -> list[Experience]:
    with ExitStack() as stack:
        proxies, clients = {}, {}
        for number, (name, make) in enumerate(POOLS.items()):
            proxy = stack.enter_context(ChaosProxy(server.host, server.port))
            ask = stack.enter_context(make(f"pool-{number}", proxy))
            proxies[name], clients[name] = proxy, Client(ask)
        for client in clients.values():
            client.start()
        _rest(3)
        scene = Scene(server, proxies)
        began = monotonic()
        fault.act(scene)
        mended = monotonic()
        _rest(fault.after)
        end = monotonic()
        experiences = [
            judge(name, fault.name, client, began, mended, end) for name, client in clients.items()
        ]
        # Clients that still hang are let go.
        _let_go()
        scene.each(lambda proxy: proxy.kill())
        for client in clients.values():
            client.stop()
    return experiences


def table(experiences: list[Experience]) -> str:
    """Return what the clients went through as Markdown."""
    lines = []
    for fault in FAULTS:
        lines += [
            f"### {fault.name[0].upper()}{fault.name[1:]}",
            "",
            "| pool | failed calls | longest call | served again after |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {one.pool} | {one.errors} | {_longest(one)}"
            f" | {'not' if one.again is None else f'{one.again:.1f} s'} |"
            for one in experiences
            if one.fault == fault.name
        ]
        lines.append("")
    return "\n".join(lines)


def _longest(one: Experience) -> str:
    return f"did not end in {one.longest:.0f} s" if one.hung else f"{one.longest:.1f} s"


def run() -> list[Result]:
    """Go through every fault, print what the clients met, and return no ratios."""
    with PostgresServer() as server:
        server.create_role("app", PASSWORD)
        experiences = [one for fault in FAULTS for one in _go_through(fault, server)]
    print(table(experiences))
    return []
