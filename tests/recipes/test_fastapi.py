"""The recipes of docs/from-4.0/fastapi.md, in FastAPI, with its own test client."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.kit import TemporaryDatabase, eventually
from tests.kit.manager import declare
from tests.recipes.recipe import ENDS_WITHIN, recipe, run

# The application's half as 4.0 documents it.
ON_EVENT = """
from fastapi import FastAPI

app = FastAPI()
db = AsyncDatabase('/path/to/config.yaml')

@app.on_event("startup")
async def startup():
    await db.connect()

@app.on_event("shutdown")
async def shutdown():
    await db.disconnect()

@app.get("/orders")
async def list_orders():
    rows = await db.fetch_all('SELECT id, total FROM orders ORDER BY id;')
    return {"orders": [{"id": r[0], "total": r[1]} for r in rows]}
"""


@pytest.fixture
def config(tmp_path: Path, database: TemporaryDatabase) -> Path:
    """A configuration whose pools have at most four connections, and a table of orders."""
    with database.connect() as conn:
        conn.execute("CREATE TABLE orders (id serial PRIMARY KEY, total int NOT NULL UNIQUE)")
        conn.execute("INSERT INTO orders (total) VALUES (10), (20)")
    database.disconnect()
    sizes = {"min_size": 1, "max_size": 4}
    return declare(tmp_path, database, pool_settings=sizes, async_pool_settings=sizes)


def load(config: Path, *texts: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "app"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[\\s\\S]*on_event is deprecated", DeprecationWarning)
        exec("".join(texts).replace("/path/to/config.yaml", str(config)), namespace)
    return namespace


@pytest.fixture
def program(config: Path) -> Iterator[dict[str, Any]]:
    """The page's program, with its dependencies."""
    dependencies = [
        recipe("from-4.0/fastapi", "A connection as a dependency", number=n) for n in (0, 1)
    ]
    namespace = load(
        config,
        recipe("from-4.0/fastapi", "AsyncDatabase Class for FastAPI"),
        recipe("from-4.0/fastapi", "AsyncDatabase Class for FastAPI", number=1),
        *dependencies,
    )
    yield namespace
    namespace["pool"].close()


def totals(database: TemporaryDatabase) -> list[int]:
    return [total for (total,) in database.execute("SELECT total FROM orders ORDER BY id")]


def ask_concurrently(client: TestClient) -> list[Any]:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda _number: client.get("/orders").json(), range(40)))


EXPECTED = {"orders": [{"id": 1, "total": 10}, {"id": 2, "total": 20}]}


def test_the_page_answers_concurrent_requests(
    program: dict[str, Any], database: TemporaryDatabase
) -> None:
    """Forty concurrent requests share one pool of four; the lifespan closes it."""
    with TestClient(program["app"]) as client:
        assert ask_concurrently(client) == [EXPECTED] * 40
        assert program["db"].pool.status().max_size == 4
        assert len(database.backends()) <= 4 + 1, "the sync pool has its first one"
    program["pool"].close()
    eventually(lambda: database.backends() == [], message="the lifespan has closed the pool")


def test_the_form_of_4_0_with_on_event_works(config: Path, database: TemporaryDatabase) -> None:
    """Applications that connect in `on_event("startup")` still work."""
    program = load(config, recipe("from-4.0/fastapi", "AsyncDatabase Class for FastAPI"), ON_EVENT)

    with TestClient(program["app"]) as client:
        assert ask_concurrently(client) == [EXPECTED] * 40
        assert len(database.backends()) <= 4
    eventually(lambda: database.backends() == [], message="the shutdown has closed the pool")


def test_an_application_starts_a_second_time(config: Path, database: TemporaryDatabase) -> None:
    """A second lifespan on another event loop makes new connections, as test suites do."""
    program = load(
        config,
        recipe("from-4.0/fastapi", "AsyncDatabase Class for FastAPI"),
        recipe("from-4.0/fastapi", "AsyncDatabase Class for FastAPI", number=1),
    )
    for _ in range(3):
        with TestClient(program["app"]) as client:
            assert client.get("/orders").json() == EXPECTED


def test_the_methods_of_the_class_commit_and_roll_back(
    program: dict[str, Any], database: TemporaryDatabase
) -> None:
    """`execute` commits, an error rolls back and arrives, the other two return rows."""
    db = program["db"]

    async def work() -> None:
        await db.execute("INSERT INTO orders (total) VALUES (%s)", [30])
        assert await db.fetch_one("SELECT total FROM orders WHERE id = 3") == (30,)
        assert await db.fetch_all("SELECT total FROM orders WHERE id = 3") == [(30,)]
        with pytest.raises(Exception, match="null value"):
            await db.execute("INSERT INTO orders (total) VALUES (%s)", [None])

    with TestClient(program["app"]) as client:
        assert client.portal is not None
        client.portal.call(work)
    assert totals(database) == [10, 20, 30]


@pytest.mark.parametrize("path", ["/orders", "/orders/sync"])
def test_a_dependency_commits_or_rolls_back_with_its_request(
    program: dict[str, Any], database: TemporaryDatabase, path: str
) -> None:
    """With concurrent requests, those that succeed are committed, those that fail are not."""
    numbers = [*range(100, 130), *range(100, 110)]  # the last ten are refused as duplicates
    with TestClient(program["app"], raise_server_exceptions=False) as client:

        def add(total: int) -> int:
            return client.post(path, params={"total": total}).status_code

        with ThreadPoolExecutor(8) as threads:
            codes = list(threads.map(add, numbers))
        assert sorted(codes) == [200] * 30 + [500] * 10
        assert sorted(totals(database)) == [10, 20, *range(100, 130)]
        handle = program["pool"] if path.endswith("sync") else program["db"].pool
        assert handle.status().used == 0


def test_a_sync_dependency_is_entered_used_and_left_in_different_threads(
    program: dict[str, Any], database: TemporaryDatabase
) -> None:
    """The connection goes with the request, whichever threads serve it."""
    seen: list[set[int]] = []
    inside = program["sync_transaction"]

    def watched() -> Iterator[Any]:
        threads: set[int] = set()
        for connection in inside():
            threads.add(threading.get_ident())
            connection.threads = threads
            yield connection
            threads.add(threading.get_ident())
        seen.append(threads)

    app = program["app"]
    app.dependency_overrides[inside] = watched
    with TestClient(app) as client:

        def post(total: int) -> int:
            return client.post("/orders/sync", params={"total": total}).status_code

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(post, range(200, 260))) == {200}
    assert sorted(totals(database)) == [10, 20, *range(200, 260)]
    assert any(len(threads) > 1 for threads in seen), "no request changed its thread"


AS_A_PROGRAM = """
import asyncio

async def serve():
    async with app.router.lifespan_context(app):
        print(await list_orders())

asyncio.run(serve())
"""


def test_the_page_as_a_program(config: Path) -> None:
    """As a program it ends by itself, without a warning."""
    text = (
        recipe("from-4.0/fastapi", "AsyncDatabase Class for FastAPI")
        + recipe("from-4.0/fastapi", "AsyncDatabase Class for FastAPI", number=1)
        + AS_A_PROGRAM
    )
    ended = run(text.replace("/path/to/config.yaml", str(config)), config.parent)

    assert (ended.code, ended.errors, ended.output) == (0, "", [str(EXPECTED)])
    assert ended.lingered < ENDS_WITHIN
