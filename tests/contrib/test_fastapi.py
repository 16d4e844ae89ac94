"""pgmonkey.contrib.fastapi and .starlette, in the frameworks themselves, with their own test client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import psycopg
import pytest
from anyio import CancelScope
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from pgmonkey import CheckoutTimeout, Registry, RegistryConfigError
from pgmonkey.contrib.fastapi import Connection, lifespan
from tests.kit import TemporaryDatabase, eventually
from tests.kit.asgi import post
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secret_volume import SecretVolume

Orders = Annotated[psycopg.AsyncConnection, Connection("orders")]
OrdersInThreads = Annotated[psycopg.Connection, Connection("orders")]
PATHS = ("/orders", "/orders/sync")
TABLE = """
CREATE TABLE orders (
    total int NOT NULL, CONSTRAINT once UNIQUE (total) DEFERRABLE INITIALLY DEFERRED
)
"""


@pytest.fixture
def directory(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, volume: SecretVolume
) -> RegistryDirectory:
    """A registry with `orders`, whose pools have at most four connections."""
    with database.connect() as conn:
        conn.execute(TABLE)
    database.disconnect()
    sizes = {"min_size": 1, "max_size": 4}
    registry_dir.declare(
        "orders",
        database,
        "async_pool",
        volume=volume,
        pool_settings=sizes,
        async_pool_settings=sizes,
    )
    return registry_dir


def shop(directory: Any) -> FastAPI:
    """An application that adds orders in coroutines and in threads."""
    app = FastAPI(lifespan=lifespan(directory))

    @app.post("/orders")
    async def add(total: int, conn: Orders) -> dict[str, int]:
        await conn.execute("INSERT INTO orders VALUES (%s)", [total])
        return {"total": total}

    @app.post("/orders/sync")
    def add_in_a_thread(total: int, conn: OrdersInThreads) -> dict[str, int]:
        conn.execute("INSERT INTO orders VALUES (%s)", [total])
        return {"total": total}

    return app


def totals(database: TemporaryDatabase) -> list[int]:
    return [total for (total,) in database.execute("SELECT total FROM orders ORDER BY total")]


async def visible_when_answered(
    app: FastAPI, path: str, totals: range, database: TemporaryDatabase
) -> list[tuple[int, bool]]:
    """Add orders at once; return each status, and whether another session saw the row by then."""
    seen: list[tuple[int, bool]] = []
    with database.connect(autocommit=True) as other:

        def look(status: int, total: int) -> None:
            row = other.execute("SELECT 1 FROM orders WHERE total = %s", [total]).fetchone()
            seen.append((status, row is not None))

        async with app.router.lifespan_context(app) as state:
            requests = [
                post(app, path, f"total={one}", state, partial(look, total=one)) for one in totals
            ]
            await asyncio.gather(*requests)
    return seen


@pytest.mark.parametrize("path, count", [("/orders", 300), ("/orders/sync", 120)])
async def test_what_is_answered_is_committed(
    directory: RegistryDirectory, database: TemporaryDatabase, path: str, count: int
) -> None:
    """Of hundreds of requests at once, another session sees each row when the answer begins.

    Requests that wait for one of the four connections take none of FastAPI's 40 threads.
    """
    seen = await visible_when_answered(shop(directory), path, range(count), database)

    assert seen == [(200, True)] * count


async def test_a_plain_dependency_with_yield_commits_too_late(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """FastAPI answers before the COMMIT of the dependency that everybody writes."""
    app = shop(directory)

    async def transaction(request: Request) -> AsyncIterator[Any]:
        async with request.state.pgmonkey.get("orders") as conn:
            yield conn

    @app.post("/late")
    async def add(total: int, conn: Annotated[Any, Depends(transaction)]) -> None:
        await conn.execute("INSERT INTO orders VALUES (%s)", [total])

    seen = await visible_when_answered(app, "/late", range(10), database)

    assert seen == [(200, False)] * 10


@pytest.mark.parametrize("path", PATHS)
def test_a_commit_that_fails_is_an_error_500(
    directory: RegistryDirectory, database: TemporaryDatabase, path: str
) -> None:
    """A deferred constraint refuses the COMMIT, and the client gets no 200."""
    with TestClient(shop(directory), raise_server_exceptions=False) as client:
        assert client.post(path, params={"total": 1}).status_code == 200
        assert client.post(path, params={"total": 1}).status_code == 500
    assert totals(database) == [1]


@pytest.mark.parametrize("path", PATHS)
def test_exception_handlers_see_errors_of_the_commit(
    directory: RegistryDirectory, database: TemporaryDatabase, path: str
) -> None:
    """An application answers 409 to what a constraint refuses, deferred or not."""
    app = shop(directory)

    @app.exception_handler(psycopg.errors.UniqueViolation)
    def conflict(_request: Request, _error: Exception) -> PlainTextResponse:
        return PlainTextResponse("it is there already", 409)

    with TestClient(app) as client:
        codes = [client.post(path, params={"total": 1}).status_code for _ in range(2)]
    assert codes == [200, 409]


@pytest.mark.parametrize("path", PATHS)
def test_an_endpoint_that_raises_is_rolled_back(
    directory: RegistryDirectory, database: TemporaryDatabase, path: str
) -> None:
    """`HTTPException` in the endpoint rolls back, and so does an error of a dependency that ends after it."""
    app = shop(directory)

    async def refuse(conn: Orders, total: int) -> AsyncIterator[None]:
        yield
        if total == 3:
            raise ValueError(total)

    @app.post("/raises")
    async def add(total: int, conn: Orders) -> None:
        await conn.execute("INSERT INTO orders VALUES (%s)", [total])
        if total == 2:
            raise HTTPException(418)

    @app.post("/raises/sync")
    def add_in_a_thread(total: int, conn: OrdersInThreads) -> None:
        conn.execute("INSERT INTO orders VALUES (%s)", [total])
        if total == 2:
            raise HTTPException(418)

    @app.post("/raises/later", dependencies=[Depends(refuse, scope="function")])
    async def add_and_be_refused(total: int, conn: Orders) -> None:
        await conn.execute("INSERT INTO orders VALUES (%s)", [total])

    with TestClient(app, raise_server_exceptions=False) as client:

        def post(path: str, total: int) -> int:
            return client.post(path, params={"total": total}).status_code

        path = path.replace("orders", "raises")
        assert [post(path, total) for total in (1, 2)] == [200, 418]
        assert [post("/raises/later", total) for total in (3, 4)] == [500, 200]
    assert totals(database) == [1, 4]


def test_a_request_has_one_connection_and_one_transaction(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Endpoint and dependencies share it; each side has its own, whatever type the file declares."""
    app = shop(directory)

    async def audit(conn: Annotated[psycopg.AsyncConnection[Any], Connection("orders")]) -> Any:
        await conn.execute("INSERT INTO orders VALUES (7)")
        return conn

    @app.get("/same")
    async def compare(
        first: Orders, second: Annotated[Any, Depends(audit)], other: OrdersInThreads
    ) -> list[Any]:
        cursor = await first.execute("SELECT total FROM orders")
        return [first is second, await cursor.fetchall(), isinstance(other, psycopg.Connection)]

    with TestClient(app) as client:
        assert client.get("/same").json() == [True, [[7]], True]


def test_a_timeout_names_the_endpoint_that_holds_the_connections(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The status shows a checkout at the endpoint of the application, not in this package."""
    app = shop(directory)

    @app.get("/holder")
    def look(conn: OrdersInThreads, other: Orders) -> list[str]:
        (orders,) = app_registry.status().databases
        return [checkout.place for pool in orders.pools for checkout in pool.checkouts]

    with Registry(directory) as app_registry:
        app.router.lifespan_context = lifespan(app_registry)
        with TestClient(app) as client:
            places = client.get("/holder").json()
    assert len(places) == 2
    assert all(place.startswith(__file__) and place.endswith(" in look") for place in places)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("waits", [True, False], ids=["waits", "runs"])
@pytest.mark.parametrize("by", ["asyncio", "anyio"])
async def test_a_request_that_is_cancelled_gives_its_connection_back(
    directory: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    path: str,
    waits: bool,
    by: str,
) -> None:
    """A request that waits for a connection, or uses it, loses none. A thread runs to its end; a coroutine rolls back."""
    sizes = {"min_size": 1, "max_size": 1}
    directory.declare("orders", database, pool_settings=sizes, async_pool_settings=sizes)
    in_a_thread = path.endswith("sync")
    codes: list[int] = []
    app = shop(directory)
    async with app.router.lifespan_context(app) as state:
        registry = state["pgmonkey"]
        scope = CancelScope()

        async def run() -> None:
            with scope:
                await post(app, path, "total=1", state, codes.append)

        async def begin_and_cancel() -> asyncio.Task[None]:
            request = asyncio.create_task(run())
            await aeventually(lambda: pools("waiting" if waits else "used") == 1)
            scope.cancel() if by == "anyio" else request.cancel()
            return request

        def pools(what: str) -> int:
            return sum(
                getattr(pool, what) for one in registry.status().databases for pool in one.pools
            )

        with database.connect() as blocker:
            if not waits:
                blocker.execute("LOCK orders")
                request = await begin_and_cancel()
            elif in_a_thread:
                with registry.get("orders", "pool"):
                    request = await begin_and_cancel()
            else:
                async with registry.get("orders", "async_pool"):
                    request = await begin_and_cancel()
        await asyncio.wait([request])
        del (
            request
        )  # with the traceback of asyncio, where the block of a thread is that it left alone
        await aeventually(lambda: pools("used") == 0)
        await post(app, path, "total=2", state, codes.append)
    database.disconnect()
    assert codes[-1] == 200
    assert totals(database) in ([2], [1, 2] if in_a_thread else [2])
    if by == "anyio":
        assert not events.named("checkout.abandoned")


def test_other_types_are_refused_where_the_endpoint_is_declared() -> None:
    """An endpoint with a type that is no connection raises an error at import, which says what to write."""
    app = FastAPI()
    with pytest.raises(
        TypeError, match=r'Annotated\[psycopg.AsyncConnection, Connection\("orders"\)\]'
    ):

        @app.get("/")
        def endpoint(conn: Annotated[int, Connection("orders")]) -> None: ...


def test_an_application_without_a_registry_says_what_to_write() -> None:
    """A request raises an error if nothing has begun the lifespan."""
    app = shop("nowhere")
    with pytest.raises(RuntimeError, match="with TestClient"):
        TestClient(app).post("/orders", params={"total": 1})


def test_an_endpoint_that_is_a_generator_is_told_to_open_a_block(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A `Connection` raises an error there, as it ends before the stream; a block of its own streams."""
    app = shop(directory)

    @app.get("/wrong", response_class=StreamingResponse)
    async def wrong(conn: Orders) -> AsyncIterator[str]:
        yield "never"

    @app.get("/right", response_class=StreamingResponse)
    async def right(request: Request) -> AsyncIterator[str]:
        async with request.state.pgmonkey.get("orders") as conn:
            async for (number,) in conn.cursor().stream("SELECT generate_series(1, 3)"):
                yield str(number)

    with TestClient(app) as client:
        assert client.get("/right").text == "123"
        with pytest.raises(RuntimeError, match="wrong is a generator"):
            client.get("/wrong")


def test_background_tasks_run_after_the_commit(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A background task opens a block of its own, and sees what its request has done."""
    app = shop(directory)
    seen: list[Any] = []

    @app.post("/task")
    async def add(request: Request, conn: Orders, tasks: BackgroundTasks) -> None:
        async def look() -> None:
            async with request.state.pgmonkey.get("orders") as later:
                cursor = await later.execute("SELECT total FROM orders")
                seen.extend(await cursor.fetchall())

        await conn.execute("INSERT INTO orders VALUES (5)")
        tasks.add_task(look)

    with TestClient(app) as client:
        client.post("/task")
    assert seen == [(5,)]


def test_websockets_find_the_registry(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A block for each message commits before its answer; a `Connection` commits when the socket closes."""
    app = shop(directory)

    @app.websocket("/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            async with websocket.state.pgmonkey.get("orders") as conn:
                await conn.execute("INSERT INTO orders VALUES (%s)", [int(text)])
            (orders,) = websocket.state.pgmonkey.status().databases
            await websocket.send_json(sum(pool.used for pool in orders.pools))

    @app.websocket("/held")
    async def held(websocket: WebSocket, conn: Orders) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await conn.execute("INSERT INTO orders VALUES (%s)", [int(text)])
            await websocket.send_text("not saved yet")

    with TestClient(app) as client:
        with client.websocket_connect("/live") as socket:
            for number in (1, 2):
                socket.send_text(str(number))
                assert socket.receive_json() == 0
                assert totals(database) == list(range(1, number + 1))
        with client.websocket_connect("/held") as socket:
            socket.send_text("3")
            socket.receive_text()
            assert totals(database) == [1, 2]
    assert totals(database) == [1, 2, 3]


def test_a_registry_of_the_application_outlives_it(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Its connections close with the application, engines' included; then it can be started again."""
    with Registry(directory) as registry:
        app = shop(registry)
        engine = registry.get("orders", "pool").with_own_pool()
        async_engine = registry.get("orders").with_own_pool()

        @app.post("/engines")
        async def use_engines() -> None:
            with engine as conn:
                conn.execute("SELECT 1")
            async with async_engine as conn:
                await conn.execute("SELECT 1")

        for total in range(2):
            with TestClient(app) as client:
                assert client.post("/orders", params={"total": total}).status_code == 200
                assert client.post("/orders/sync", params={"total": 10 + total}).status_code == 200
                assert client.post("/engines").status_code == 200
                assert len(database.backends()) >= 4
            eventually(lambda: database.backends() == [], message="the connections are closed")
        assert not registry.closed
    assert totals(database) == [0, 1, 10, 11]


def test_a_registry_of_the_lifespan_ends_with_it(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The start makes a registry of a directory, and fails if that has problems."""
    kept: list[Registry] = []

    @asynccontextmanager
    async def start(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(directory)(app) as state:
            kept.append(state["pgmonkey"])
            yield {**state, "more": 1}

    app = FastAPI(lifespan=start)

    @app.get("/")
    async def more(request: Request, conn: Orders) -> int:
        return request.state.more

    with TestClient(app) as client:
        assert client.get("/").json() == 1
    assert kept[0].closed
    directory.write("orders", "nonsense: 1")
    with pytest.raises(RegistryConfigError, match="nonsense"), TestClient(app):
        pass


def test_starlette_and_mounted_applications_find_the_registry(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A block in an endpoint of Starlette commits before the response; a mounted FastAPI shares the registry."""

    async def add(request: Any) -> PlainTextResponse:
        async with request.state.pgmonkey.get("orders") as conn:
            await conn.execute("INSERT INTO orders VALUES (1)")
        return PlainTextResponse("saved")

    routes = [Route("/add", add, methods=["POST"]), Mount("/shop", shop("nowhere"))]
    with TestClient(Starlette(routes=routes, lifespan=lifespan(directory))) as client:
        assert client.post("/add").text == "saved"
        assert client.post("/shop/orders", params={"total": 2}).status_code == 200
    assert totals(database) == [1, 2]


def test_a_request_without_a_connection_in_time_says_who_holds_them(
    directory: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A handler of `CheckoutTimeout` makes a 503 of it, which tells clients to come back."""
    with Registry(directory) as registry:
        app = shop(registry)

        @app.exception_handler(CheckoutTimeout)
        def busy(_request: Request, error: Exception) -> PlainTextResponse:
            return PlainTextResponse(str(error), 503, {"Retry-After": "1"})

        directory.declare(
            "orders", database, "pool", pool_settings={"min_size": 1, "max_size": 1, "timeout": 0.1}
        )
        registry.reload()
        with TestClient(app) as client, registry.get("orders", "pool").connection(timeout=20):
            answer = client.post("/orders/sync", params={"total": 1})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "no connection within" in answer.text
