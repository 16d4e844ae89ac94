"""A block that ends in the middle of something: a pipeline, a COPY, a stream, two-phase."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest

from pgmonkey import LeftOpenError, PgmonkeyError
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.pool.side import Client, Make, do, entered, first, wait

TYPES = ("pool", "async_pool", "normal", "async")
TIMES = 100
#: Rows that do not fit in the buffers of a connection, sent as the server makes them.
MANY = "SELECT generate_series(1, 1000000)"
FEW = "SELECT * FROM generate_series(1, 3)"

Body = Callable[[Any], Coroutine[Any, Any, Any]]


@pytest.fixture(params=TYPES)
def connection_type(request: pytest.FixtureRequest) -> str:
    """Each of the four types."""
    return str(request.param)


async def in_a_pipeline(connection: Any, kept: list[Any]) -> None:
    kept.append(connection.pipeline())
    await entered(kept[0])
    await wait(connection.execute("INSERT INTO one VALUES (1)"))


async def in_an_idle_pipeline(connection: Any, kept: list[Any]) -> None:
    kept.append(connection.pipeline())
    await entered(kept[0])


async def in_a_copy_to_the_server(connection: Any, kept: list[Any]) -> None:
    kept.append(connection.cursor().copy("COPY one FROM STDIN"))
    copy = await entered(kept[0])
    await wait(copy.write(b"1\n"))


async def in_a_copy_from_the_server(connection: Any, kept: list[Any]) -> None:
    kept.append(connection.cursor().copy(f"COPY ({MANY}) TO STDOUT"))
    copy = await entered(kept[0])
    await wait(copy.read())


async def in_a_stream(connection: Any, kept: list[Any]) -> None:
    kept.append(connection.cursor().stream(MANY))
    await first(kept[0])


async def in_notifies(connection: Any, kept: list[Any]) -> None:
    await wait(connection.execute("LISTEN here"))
    await wait(connection.commit())
    await wait(connection.execute("NOTIFY here"))
    await wait(connection.commit())
    kept.append(connection.notifies())
    await first(kept[0])


async def in_notifies_in_a_transaction(connection: Any, kept: list[Any]) -> None:
    await in_notifies(connection, kept)
    await wait(kept[0].aclose() if hasattr(kept[0], "aclose") else kept[0].close())
    await wait(connection.execute("NOTIFY here"))
    await wait(connection.commit())
    await wait(connection.execute("INSERT INTO one VALUES (1)"))
    kept[0] = connection.notifies()
    await first(kept[0])


async def in_two_phase(connection: Any, _kept: list[Any]) -> None:
    await wait(connection.tpc_begin("left-open"))
    await wait(connection.execute("INSERT INTO one VALUES (1)"))


LEFT_OPEN: dict[str, tuple[Callable[[Any, list[Any]], Coroutine[Any, Any, None]], str]] = {
    "a pipeline": (in_a_pipeline, "pipeline()"),
    "an idle pipeline": (in_an_idle_pipeline, "pipeline()"),
    "COPY FROM": (in_a_copy_to_the_server, "copy()"),
    "COPY TO": (in_a_copy_from_the_server, "copy()"),
    "stream()": (in_a_stream, "stream()"),
    "notifies()": (in_notifies, "notifies()"),
    "notifies() in a transaction": (in_notifies_in_a_transaction, "notifies()"),
    "two-phase": (in_two_phase, "tpc_begin()"),
}


def with_table(make: Make, **settings: Any) -> Client:
    client = make(pool={"max_size": 1}, **settings)
    client.run(lambda connection: connection.execute("CREATE TABLE one (id int)"))
    return client


def let_go(client: Client, kept: list[Any]) -> None:
    """Free what a block kept, where its loop runs."""

    async def clear() -> None:
        kept.clear()
        await asyncio.sleep(0)

    if client.is_async:
        asyncio.run_coroutine_threadsafe(clear(), client.loop).result()
    else:
        kept.clear()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", LEFT_OPEN)
def test_a_block_that_ends_in_the_middle_gets_an_error(
    make: Make, database: TemporaryDatabase, case: str
) -> None:
    """It says what was left open, where, and what to write; the next block gets a fresh connection."""
    client = with_table(make)
    leave_open, name = LEFT_OPEN[case]

    for _ in range(3):
        before = client.ask("SELECT pg_backend_pid()")
        kept: list[Any] = []

        async def block(connection: Any, kept: list[Any] = kept) -> None:
            await leave_open(connection, kept)

        with pytest.raises(LeftOpenError) as caught:
            do(client, block)

        assert f"orders: the block ended inside of {name}" in str(caught.value)
        assert "side.py" in str(caught.value), "where it borrowed"
        hint = str(caught.value).partition("hint: ")[2]
        assert hint
        if "with " in hint:
            assert ("`async with " in hint) == client.is_async
        assert isinstance(caught.value, PgmonkeyError)
        assert isinstance(caught.value, psycopg.ProgrammingError)
        assert client.ask("SELECT pg_backend_pid()") != before
        assert client.ask("SELECT count(*) FROM one") == 0
        let_go(client, kept)
    assert client.ask("SELECT 1") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", LEFT_OPEN)
def test_a_block_that_fails_in_the_middle_gets_its_own_error(make: Make, case: str) -> None:
    """What it raised is what its caller sees."""
    client = with_table(make)
    leave_open, _ = LEFT_OPEN[case]
    before = client.ask("SELECT pg_backend_pid()")
    kept: list[Any] = []

    async def block(connection: Any) -> None:
        await leave_open(connection, kept)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        do(client, block)

    assert client.ask("SELECT pg_backend_pid()") != before
    assert client.ask("SELECT count(*) FROM one") == 0
    let_go(client, kept)


@pytest.mark.parametrize(
    "statement, blocks, committed", [(FEW, 20, 20), (MANY, 5, 0)], ids=["few", "many"]
)
def test_a_stream_that_is_dropped_before_its_end_is_no_error(
    make: Make, database: TemporaryDatabase, statement: str, blocks: int, committed: int
) -> None:
    """`break` in a loop over `stream()` is common. psycopg cancels the statement if it still runs."""
    client = with_table(make)

    async def block(connection: Any) -> None:
        await wait(connection.execute("INSERT INTO one VALUES (1)"))
        rows = connection.cursor().stream(statement)
        if client.is_async:
            async for _ in rows:
                break
        else:
            for _ in rows:
                break

    for _ in range(blocks):
        do(client, block)
    assert database.execute("SELECT count(*) FROM one") == [(committed,)]


def test_notifies_that_is_dropped_before_its_end_is_no_error(
    make: Make, database: TemporaryDatabase
) -> None:
    """The same for `notifies()`: the block commits, and its connection, which listens, is replaced."""
    client = with_table(make)

    async def block(connection: Any) -> Any:
        await wait(connection.execute("LISTEN here"))
        await wait(connection.execute("NOTIFY here, 'hello'"))
        await wait(connection.commit())
        await wait(connection.execute("INSERT INTO one VALUES (1)"))
        notes = connection.notifies()
        if client.is_async:
            async for note in notes:
                return connection.info.backend_pid, note.payload
        for note in notes:
            return connection.info.backend_pid, note.payload
        raise AssertionError("no notification")

    backends = set()
    for _ in range(20):
        backend, payload = do(client, block)
        backends.add(backend)
        assert payload == "hello"
    assert len(backends) == 20
    assert database.execute("SELECT count(*) FROM one") == [(20,)]


@pytest.mark.parametrize("way", ["pipeline", "copy", "stream", "notifies"])
def test_what_is_ended_in_its_block_costs_no_connection(make: Make, way: str) -> None:
    """A block that ends what it has begun keeps its connection for the next one."""
    client = with_table(make)

    async def block(connection: Any) -> int:
        if way == "pipeline":
            pipeline = connection.pipeline()
            await entered(pipeline)
            await wait(connection.execute("INSERT INTO one VALUES (1)"))
            await wait(_leave(pipeline))
        elif way == "copy":
            copying = connection.cursor().copy("COPY one FROM STDIN")
            copy = await entered(copying)
            await wait(copy.write(b"1\n"))
            await wait(_leave(copying))
        elif way == "stream":
            rows = connection.cursor().stream("SELECT 1")
            await first(rows)
            assert await first(rows) is None
        else:
            notes = connection.notifies(timeout=0)
            assert await first(notes) is None
        return int(connection.info.backend_pid)

    assert len({do(client, block) for _ in range(TIMES)}) == 1


def _leave(manager: Any) -> Any:
    leave = getattr(manager, "__aexit__", None) or manager.__exit__
    return leave(None, None, None)


def test_a_prepared_transaction_stays_at_the_server(
    make: Make, database: TemporaryDatabase
) -> None:
    """Its block ends well, its connection is closed, and another one can commit it."""
    client = with_table(make)

    for number in range(5):
        name = f"{database.name}-{number}"

        async def block(connection: Any, name: str = name) -> int:
            xid = connection.xid(1, name, "branch")
            await wait(connection.tpc_begin(xid))
            await wait(connection.execute("INSERT INTO one VALUES (1)"))
            await wait(connection.tpc_prepare())
            return int(connection.info.backend_pid)

        async def finish(connection: Any, name: str = name) -> int:
            await wait(connection.tpc_commit(connection.xid(1, name, "branch")))
            return int(connection.info.backend_pid)

        backend = do(client, block)
        assert client.ask("SELECT count(*) FROM one") == number, "it is not committed yet"
        after = do(client, finish)
        assert after != backend
        assert client.ask("SELECT count(*) FROM one") == number + 1
        assert client.ask("SELECT pg_backend_pid()") == after, "this one was finished"


@pytest.mark.parametrize("ends", ["tpc_commit", "tpc_rollback"])
@pytest.mark.parametrize("prepares", [False, True])
def test_a_two_phase_transaction_that_is_finished_costs_no_connection(
    make: Make, ends: str, prepares: bool
) -> None:
    """A block that begins and finishes it keeps its connection."""
    client = with_table(make)

    async def block(connection: Any) -> int:
        await wait(connection.tpc_begin(f"{client.handle.connection_type}-{ends}"))
        await wait(connection.execute("INSERT INTO one VALUES (1)"))
        if prepares:
            await wait(connection.tpc_prepare())
        await wait(getattr(connection, ends)())
        return int(connection.info.backend_pid)

    assert len({do(client, block) for _ in range(TIMES)}) == 1
    assert client.ask("SELECT count(*) FROM one") == (TIMES if ends == "tpc_commit" else 0)


def test_a_stream_of_another_cursor_class_ends_in_an_error_too(make: Make) -> None:
    """Such a class does not tell that it streams: the error takes some seconds."""
    client = with_table(make)
    kept: list[Any] = []

    async def block(connection: Any) -> None:
        classes = (psycopg.ClientCursor, psycopg.AsyncClientCursor)
        cursor = classes[client.is_async](connection)
        kept.append(cursor.stream(MANY))
        await first(kept[0])

    with pytest.raises(LeftOpenError, match="a statement"):
        do(client, block)
    assert client.ask("SELECT 1") == 1
    let_go(client, kept)


def test_a_statement_of_another_thread_or_task_is_waited_for(make: Make) -> None:
    """A block that ends while another thread or task runs a statement commits when that has ended."""
    client = with_table(make)
    running: list[Any] = []

    async def block(connection: Any) -> None:
        statement = "INSERT INTO one SELECT 1 FROM pg_sleep(0.3)"
        if client.is_async:
            running.append(asyncio.ensure_future(connection.execute(statement)))
            await asyncio.sleep(0)
        else:
            thread = threading.Thread(target=connection.execute, args=(statement,))
            running.append(thread)
            thread.start()
        active = psycopg.pq.TransactionStatus.ACTIVE
        while connection.info.transaction_status != active:
            if client.is_async:
                await asyncio.sleep(0.001)

    do(client, block)
    eventually(lambda: client.ask("SELECT count(*) FROM one") == 1)
    if not client.is_async:
        running[0].join()
