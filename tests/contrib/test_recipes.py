"""The recipes for other frameworks keep what they promise, as the programs that they are."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient as AiohttpClient
from aiohttp.test_utils import TestServer
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
from litestar.testing import TestClient

from pgmonkey import Registry
from tests.docs.environment import Environment
from tests.docs.snippets import ROOT, snippets
from tests.kit import Canary
from tests.kit.process import Process
from tests.kit.server import PostgresServer
from tests.recipes.recipe import recipe

_NAME = re.compile(r"# ([\w.]+\.py)\n")


@pytest.fixture
def environment(
    tmp_path: Path, server: PostgresServer, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Environment]:
    """A directory with the registry that the pages use, and its databases."""
    environment = Environment(tmp_path, server, canary)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    for name, value in environment.variables.items():
        monkeypatch.setenv(name, value)
    with environment.databases():
        yield environment


def files(page: str) -> dict[str, str]:
    """Return the programs of a page, by the name in their first line."""
    found = {}
    for snippet in snippets(ROOT / "docs" / "recipes" / f"{page}.md"):
        if name := _NAME.match(snippet.text):
            found[name[1]] = snippet.text
    return found


def load(page: str, heading: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(compile(recipe(page, heading), page, "exec", dont_inherit=True), namespace)
    return namespace


def rows(server: PostgresServer, database: str, query: str) -> list[tuple[Any, ...]]:
    return server.execute(query, dbname=database)


ITEMS = "SELECT item FROM public.orders ORDER BY id"


def test_a_failed_commit_in_litestar_is_no_success(
    environment: Environment, server: PostgresServer
) -> None:
    """The dependency ends before the response, so a client hears of a COMMIT that fails."""
    server.execute(
        "ALTER TABLE orders ADD CONSTRAINT once UNIQUE (item) DEFERRABLE INITIALLY DEFERRED",
        dbname="orders",
    )
    app = load("litestar-aiohttp", "Litestar")["app"]
    with TestClient(app, raise_server_exceptions=False) as client:

        def post(item: str) -> int:
            return client.post("/orders", params={"item": item}).status_code

        assert [post("tea"), post("tea"), post("cake")] == [201, 500, 201]
    assert rows(server, "orders", ITEMS) == [("tea",), ("cake",)]


def test_an_exception_in_litestar_rolls_back(
    environment: Environment, server: PostgresServer
) -> None:
    """A handler that raises leaves nothing of what it did."""
    namespace = load("litestar-aiohttp", "Litestar")

    async def fail(orders: Any) -> None:
        await orders.execute("INSERT INTO orders (item) VALUES ('never')")
        raise ZeroDivisionError

    fail.__annotations__ = {"orders": namespace["Orders"], "return": None}
    app = namespace["Litestar"](
        [namespace["get"]("/fail")(fail)],
        dependencies={"orders": namespace["orders"]},
        lifespan=[namespace["registry"]],
        logging_config=None,
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/fail").status_code == 500
    assert rows(server, "orders", ITEMS) == []


async def test_aiohttp_commits_before_the_response(
    environment: Environment, server: PostgresServer
) -> None:
    """The row is there when the answer comes; a redirect that the block raises undoes it."""
    namespace = load("litestar-aiohttp", "Litestar")
    text = recipe("litestar-aiohttp", "aiohttp")
    exec(compile(text, "aiohttp", "exec", dont_inherit=True), namespace)

    async def leave(request: web.Request) -> web.Response:
        async with request.app[namespace["REGISTRY"]].get("events") as conn:
            await conn.execute("INSERT INTO events (what) VALUES ('never')")
            raise web.HTTPFound("/events")

    app = namespace["make_app"]()
    app.router.add_get("/leave", leave)
    async with AiohttpClient(TestServer(app)) as client:
        answer = await client.post("/events", params={"what": "tea"})
        assert answer.status == 201
        assert rows(server, "events", "SELECT what FROM public.events") == [("tea",)]
        answer = await client.get("/leave", allow_redirects=False)
        assert answer.status == 302
    assert rows(server, "events", "SELECT what FROM public.events") == [("tea",)]


@pytest.mark.timeout(120)
def test_celery_runs_the_tasks_of_the_recipe(
    environment: Environment,
    server: PostgresServer,
    canary: Canary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that forks confirms each order once, though a task comes twice, perhaps at once."""
    directory = environment.directory
    folder = directory / "queue"
    folder.mkdir()
    folders = {
        "data_folder_in": str(folder),
        "data_folder_out": str(folder),
        "polling_interval": 0.05,
    }
    programs = files("celery")
    text = f"{programs['tasks.py']}\napp.conf.broker_transport_options = {folders}\n"
    (directory / "tasks.py").write_text(text)
    monkeypatch.setenv("BROKER_URL", "filesystem://")
    tasks = module("tasks", text, monkeypatch)
    with tasks.registry:
        for _ in range(2):
            shop = module("shop", programs["shop.py"], monkeypatch)
        tasks.confirm.delay(shop.order)

    variables = environment.shell_variables() | {"BROKER_URL": "filesystem://"}
    variables["PYTHONPATH"] += f"{os.pathsep}{directory}"
    command = "worker --pool=prefork --concurrency=2 --without-gossip --without-mingle"
    with Process(
        [sys.executable, "-m", "celery", "--app=tasks", *command.split(), "--without-heartbeat"],
        cwd=directory,
        env=variables,
        start_new_session=True,
        canary=canary,
    ) as worker:
        query = "SELECT what FROM public.events ORDER BY 1"
        expected = [(f"order {number} is confirmed",) for number in (1, 2)]
        worker.wait_until(
            lambda: rows(server, "events", query) == expected and not list(folder.iterdir()),
            90,  # it imports for a second, on a machine that does nothing else
            "every task has run",
        )
        assert "raised" not in worker.text
        os.killpg(worker.process.pid, signal.SIGKILL)  # Celery takes six seconds to end


def module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a program of a page under a name."""
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(text, name, "exec", dont_inherit=True), made.__dict__)
    return made


def test_apscheduler_runs_a_job_in_one_of_several_processes(
    environment: Environment, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job writes its count, and does nothing while another process has the lock."""
    ended: queue.Queue[Any] = queue.Queue()
    nightly = module("nightly", files("schedulers")["nightly.py"], monkeypatch)
    nightly.scheduler.add_listener(ended.put, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)

    def run_now() -> None:
        nightly.scheduler.modify_job("count_orders", next_run_time=datetime.now(UTC))
        assert ended.get(timeout=20).exception is None

    count = "SELECT orders FROM reports.daily"
    nightly.scheduler.start()
    try:
        with Registry("registry.d", names=["reports", "orders"], metrics=None) as other:
            with other.get("orders") as conn:
                conn.execute("INSERT INTO orders (item) VALUES ('tea'), ('cake')")
            with other.get("reports") as conn:
                conn.execute("SELECT pg_advisory_xact_lock(hashtext('count_orders'))")
                run_now()
                assert rows(server, "reports", count) == []
        run_now()
        assert rows(server, "reports", count) == [(2,)]
    finally:
        nightly.scheduler.shutdown()
        nightly.registry.close()


async def test_apscheduler_runs_coroutines(
    environment: Environment, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job on the loop forgets what is old."""
    server.execute(
        "INSERT INTO events (what, at) VALUES ('old', '2020-01-01'), ('new', now())",
        dbname="events",
    )
    minutely = module("minutely", files("schedulers")["minutely.py"], monkeypatch)
    ended: asyncio.Queue[Any] = asyncio.Queue()

    class Soon(minutely.AsyncIOScheduler):
        def start(self) -> None:
            self.add_listener(ended.put_nowait, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
            super().start()
            self.modify_job("forget", next_run_time=datetime.now(UTC))

    monkeypatch.setattr(minutely, "AsyncIOScheduler", Soon)
    program = asyncio.create_task(minutely.main())
    event = await asyncio.wait_for(ended.get(), 20)
    program.cancel()
    await asyncio.wait([program])
    assert event.exception is None
    assert rows(server, "events", "SELECT what FROM public.events") == [("new",)]
