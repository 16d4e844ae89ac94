"""What an application does to each new connection: `registry.configure`."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from enum import Enum
from itertools import cycle
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.hstore import register_hstore
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads

from pgmonkey import ConnectError, Registry, ReloadRejectedError, UnknownDatabaseError
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.process import in_a_child
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client, Make, do, plain, takes, wait, works

BORROWERS = 20


class Mood(Enum):
    """An enumeration of the application, and of the server."""

    GOOD = "GOOD"
    BAD = "BAD"


class Money:
    """A value of the application that goes into JSON."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


def dumps(value: Any) -> str:
    return json.dumps(value, default=lambda one: {"cents": one.cents})


def loads(text: str | bytes) -> Any:
    return json.loads(text, object_hook=lambda one: Money(one["cents"]) if "cents" in one else one)


@pytest.fixture
def database(shared_database: TemporaryDatabase) -> TemporaryDatabase:
    """One database for all these tests."""
    return shared_database


@pytest.fixture(scope="module")
def types(module_database: TemporaryDatabase) -> None:
    """Types that a connection must be told of."""
    for statement in (
        "CREATE TYPE public.item AS (name text, amount int)",
        "CREATE TYPE public.mood AS ENUM ('GOOD', 'BAD')",
        "CREATE EXTENSION hstore SCHEMA public",
    ):
        module_database.execute(statement)


async def adapt(connection: Any) -> None:
    """Tell a connection of all of them, as an application does."""
    register_composite(await wait(CompositeInfo.fetch(connection, "item")), connection)
    register_enum(await wait(EnumInfo.fetch(connection, "mood")), connection, Mood)
    register_hstore(await wait(psycopg.types.TypeInfo.fetch(connection, "hstore")), connection)
    set_json_dumps(dumps, connection)
    set_json_loads(loads, connection)


async def round_trip(connection: Any) -> tuple[Any, ...]:
    """Send a value of each type to the server, and return what comes back."""
    cursor = await wait(
        connection.execute(
            "SELECT ROW('tea', 2)::item, %s, 'a=>1'::hstore, %s::jsonb",
            [Mood.BAD, Jsonb([Money(3)])],
        )
    )
    item, mood, store, [money] = await wait(cursor.fetchone())
    return item.name, item.amount, mood, store, money.cents


EXPECTED = ("tea", 2, Mood.BAD, {"a": "1"}, 3)


@pytest.mark.usefixtures("types")
def test_types_survive_rotations_and_restarts_under_load(
    make: Make, database: TemporaryDatabase
) -> None:
    """Composite, enum, hstore and a JSON codec, registered once, are known to every block of 20 borrowers."""
    client = make()
    calls: list[int] = []

    async def count_and_adapt(connection: Any) -> None:
        calls.append(connection.info.backend_pid)
        await adapt(connection)

    def borrow(stop: threading.Event) -> None:
        while not stop.is_set():
            assert do(client, round_trip) == EXPECTED

    client.registry.configure("orders", plain(client, count_and_adapt))
    stop = threading.Event()
    with ThreadPoolExecutor(BORROWERS) as threads:
        borrowers = [threads.submit(borrow, stop) for _ in range(BORROWERS)]
        for _ in range(3):
            client.registry._records["orders"].force()
        stop.set()
        for borrower in borrowers:
            borrower.result()
    assert database.terminate_backends()
    eventually(lambda: works(client), 10, "it has connected again")
    assert do(client, round_trip) == EXPECTED
    eventually(
        lambda: len(calls) == len(set(calls)) == client.handle.status().connect_attempts,
        5,
        "it was called once for each connection",
    )


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize("connection_type", ["pool"])
def test_types_survive_a_fork(make: Make) -> None:
    """The connections of a child process know the types, too."""
    client = make(watch=False)
    client.registry.configure("orders", plain(client, adapt))
    assert do(client, round_trip) == EXPECTED
    assert in_a_child(lambda: do(client, round_trip)) == EXPECTED
    assert do(client, round_trip) == EXPECTED


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize("connection_type", ["async"])
def test_types_survive_a_fork_and_hold_in_each_loop(make: Make) -> None:
    """The same for the connections of an event loop of a child, and of another loop of the parent."""
    client = make(watch=False)
    client.registry.configure("orders", adapt)

    async def use() -> Any:
        async with client.handle as connection:
            answer = await round_trip(connection)
        await client.handle.close()
        return answer

    assert do(client, round_trip) == EXPECTED
    assert asyncio.run(use()) == EXPECTED
    assert in_a_child(lambda: asyncio.run(use())) == EXPECTED


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize(
    "connection_type, resets", [("pool", True), ("async_pool", False)], indirect=["connection_type"]
)
def test_a_block_that_registers_more_gives_back_what_was_configured(
    make: Make, resets: bool
) -> None:
    """What `configure` sets is what a clean checkout restores, on the same connection."""
    client = make(pool={"max_size": 1}, reset_on_return=resets)

    async def configures(connection: Any) -> None:
        await adapt(connection)
        await wait(connection.set_autocommit(True))
        connection.prepare_threshold = 2

    async def spoils(connection: Any) -> int:
        set_json_loads(json.loads, connection)
        await wait(connection.set_autocommit(False))
        connection.row_factory = dict_row
        connection.prepare_threshold = None
        return int(connection.info.backend_pid)

    async def looks(connection: Any) -> tuple[Any, ...]:
        settings = connection.info.backend_pid, connection.autocommit, connection.prepare_threshold
        return *settings, await round_trip(connection)

    client.registry.configure("orders", plain(client, configures))
    backend = do(client, spoils)
    assert do(client, looks) == (backend, True, 2, EXPECTED)


def test_the_function_of_every_database_comes_first(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """`Registry(configure=...)`: "*" is for every database, then comes the database's own; files to come, too."""
    order: list[str] = []
    registry_dir.declare("orders", database)
    functions: dict[str, Callable[[Any], object]] = {
        "orders": lambda _: order.append("own"),
        "*": lambda _: order.append("every"),
    }
    with Registry(registry_dir, metrics=None, configure=functions) as registry:
        registry.get("orders").open()
        assert order == ["every", "own"]
        registry_dir.declare("events", database)
        registry.reload()
        registry.get("events").open()
        assert order == ["every", "own", "every"]


def test_names_and_functions_are_checked(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A name that no file declares, or what cannot be called, is an error of the call."""
    registry_dir.declare("orders", database)
    with pytest.raises(UnknownDatabaseError, match='did you mean "orders"'):
        Registry(registry_dir, metrics=None, configure={"order": print})
    with Registry(registry_dir, metrics=None) as registry:
        with pytest.raises(UnknownDatabaseError, match='did you mean "orders"'):
            registry.configure("order", print)
        with pytest.raises(TypeError, match="orders: expected a function, got str"):
            registry.configure("orders", "print")  # type: ignore[arg-type]  # that is the mistake


@pytest.mark.parametrize("connection_type", ["pool", "async_pool", "normal"])
def test_functions_given_later_hold_for_every_checkout_from_then_on(make: Make) -> None:
    """Connections that were made before are handed out no more; the one that is out is finished."""
    client = make()
    assert client.handle.status().version == 1

    async def rows(connection: Any) -> Any:
        cursor = await wait(connection.execute("SELECT 1 AS one"))
        return await wait(cursor.fetchone())

    def factory(connection: Any) -> None:
        connection.row_factory = dict_row

    with client.holding():
        client.registry.configure("orders", factory)
    assert [do(client, rows) for _ in range(5)] == [{"one": 1}] * 5
    assert client.handle.status().version == 2
    if client.handle.connection_type.endswith("pool"):
        client.fill(4)
        client.registry.configure("orders", lambda _: None)
        assert [do(client, rows) for _ in range(5)] == [(1,)] * 5
        eventually(lambda: client.handle.status().idle <= 4, 5, "the older ones are closed")


def test_functions_given_during_a_reload_hold_for_what_it_has_prepared(make: Make) -> None:
    """A connection that a reload has made before is not handed out after it."""
    client = make(pool={"min_size": 1, "max_size": 2})
    client.open()
    record = client.registry._records["orders"]
    prepare = client.handle.prepare
    calls: list[int] = []

    async def count(connection: Any) -> None:
        calls.append(connection.info.backend_pid)

    def prepare_and_configure(version: Any) -> Any:
        prepared = prepare(version)
        client.handle.prepare = prepare
        client.registry.configure("orders", plain(client, count))
        return prepared

    client.handle.prepare = prepare_and_configure
    record.force()
    with client.holding(2) as backends:
        assert set(backends) <= set(calls)


# Failures

Body = Callable[[Any], Coroutine[Any, Any, None]]


async def raises(_connection: Any) -> None:
    raise ZeroDivisionError("no codec")


async def asks_for_nothing(connection: Any) -> None:
    await wait(connection.execute("SELECT 'hidden' FROM no_such_table"))


async def leaves_open(connection: Any) -> None:
    await wait(connection.execute("SELECT 1"))


async def closes(connection: Any) -> None:
    await wait(connection.close())


async def listens(connection: Any) -> None:
    await wait(connection.execute("LISTEN news"))
    await wait(connection.commit())


FAILURES: dict[str, tuple[Body, str, str]] = {
    "raises": (raises, "raised ZeroDivisionError: no codec (test_configure.py:", "correct"),
    "a statement fails": (asks_for_nothing, 'UndefinedTable: relation "no_such_table"', "correct"),
    "leaves a transaction open": (leaves_open, "left a transaction open", "commit()"),
    "closes it": (closes, "closed the connection", "correct"),
    "listens": (listens, "left the connection listening", "handle.listen"),
}


@pytest.mark.parametrize(
    "connection_type, case", list(zip(cycle(SIDES), FAILURES)), indirect=["connection_type"]
)
def test_a_function_that_fails_fails_the_connect(
    make: Make, database: TemporaryDatabase, case: str
) -> None:
    """The checkout gets the reason `configure`, the function's name, and what to do, at once."""
    body, text, hint = FAILURES[case]
    client = make(pool={"max_size": 1})
    client.registry.configure("orders", plain(client, body))
    with pytest.raises(ConnectError) as caught:
        client.ask(timeout=10)
    error = caught.value
    assert error.reason == "configure"
    assert f"test_configure.{body.__name__}" in error.text
    assert text in error.text
    assert hint in error.hint
    assert "hidden" not in str(error), "a statement may hold anything"
    status = client.handle.status()
    assert status.connect_failures["configure"] == status.connect_attempts
    assert status.last_failure_reason == "configure"
    eventually(lambda: not database.backends(), 5, "the connection is closed")
    client.registry.configure("orders", lambda _: None)
    eventually(lambda: works(client), 5, "it works when the function does")


def test_a_coroutine_function_is_refused_for_a_sync_type(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Nothing could wait for it: the error says so, and Python does not warn."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, configure={"orders": raises}) as registry:
        with pytest.raises(ConnectError, match="it is async, and the connection is a sync one"):
            registry.get("orders").open()


@pytest.mark.parametrize("connection_type", ["async_pool"])
def test_a_plain_function_may_return_an_awaitable(make: Make) -> None:
    """A `functools.partial` or a lambda of a coroutine function is waited for, and named."""
    client = make(pool={"max_size": 1})

    async def fails(secret: str, _connection: Any) -> None:
        raise LookupError

    client.registry.configure("orders", functools.partial(fails, "not shown"))
    with pytest.raises(ConnectError) as caught:
        client.ask()
    assert f"{fails.__qualname__} raised LookupError" in caught.value.text
    assert "not shown" not in str(caught.value)


@pytest.mark.parametrize("connection_type", ["async_pool"])
def test_a_function_in_which_something_is_cancelled_ends_no_worker(make: Make) -> None:
    """It is a failure like others, and the pool goes on to connect."""
    client = make(pool={"max_size": 1})
    cancelled: list[bool] = []

    async def is_cancelled(_connection: Any) -> None:
        if not cancelled:
            cancelled.append(True)
            raise asyncio.CancelledError

    client.registry.configure("orders", is_cancelled)
    with pytest.raises(ConnectError, match="raised RuntimeError: it was cancelled"):
        client.ask()
    eventually(lambda: works(client), 5, "it works when the function does")


def test_a_function_that_fails_shows_no_secret(make: Make, database: TemporaryDatabase) -> None:
    """A password in the text of its exception is masked; the canary looks at the error's frames."""
    client = make(pool={"max_size": 1})

    async def tells(_connection: Any) -> None:
        raise LookupError(f"the password is {database.password}")

    client.registry.configure("orders", plain(client, tells))
    with pytest.raises(ConnectError, match=r"the password is \*\*\*"):
        client.ask()


def test_a_function_that_fails_shows_no_password_that_was_made_on_demand(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The same for a token that no file has."""

    def tells(connection: Any) -> None:
        raise LookupError(f"the token is {connection.info.password}")

    connection = {"password": {"from_resolver": "vault", "key": "orders"}}
    registry_dir.declare("orders", database, connection=connection)
    with (
        Registry(
            registry_dir,
            metrics=None,
            resolvers={"vault": lambda _: database.password},
            configure={"orders": tells},
        ) as registry,
        pytest.raises(ConnectError, match=r"the token is \*\*\*"),
    ):
        registry.get("orders").open()


@pytest.mark.slow
def test_a_function_that_hangs_ends_with_the_time_for_a_connect(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Each statement is cancelled, also if the function tries again. No session of the server waits on."""
    for side in SIDES:
        registry_dir.declare(side, database, side, connection={"connect_timeout": 2})

    async def tries_again(connection: Any) -> None:
        for _ in range(2):
            with suppress(psycopg.errors.QueryCanceled):
                await wait(connection.execute("LOCK TABLE held"))
            await wait(connection.rollback())

    with (
        Registry(registry_dir, metrics=None) as registry,
        closing(Client(registry, SIDES[0])) as sync,
        closing(Client(registry, SIDES[1])) as not_sync,
        database.connect() as holder,
    ):
        clients = {"async_pool": not_sync, "pool": sync}
        holder.execute("CREATE TABLE held ()")
        holder.commit()
        holder.execute("LOCK TABLE held")
        for side, client in clients.items():
            registry.configure(side, plain(client, tries_again))
        answers = {side: client.ask_soon(timeout=10) for side, client in clients.items()}
        for side, answer in answers.items():
            with takes(4):
                error = answer.exception(20)
            registry.configure(side, lambda _: None)
            assert isinstance(error, ConnectError)
            assert error.reason == "configure"
            assert f"{tries_again.__qualname__} did not end within 2 s" in error.text
        for client in clients.values():
            eventually(lambda client=client: works(client), 10, "it works when the function does")
        eventually(lambda: len(database.backends()) <= 3, 5, "no session waits for the lock")


def test_a_connection_that_breaks_meanwhile_is_no_fault_of_the_function(
    make: Make, proxy: ChaosProxy
) -> None:
    """The reason is that of a server that went away, and the client waits for it to come back."""
    client = make(through=proxy, pool={"max_size": 1})
    broken: list[int] = []

    async def breaks_once(connection: Any) -> None:
        if not broken:
            broken.append(connection.info.backend_pid)
            proxy.kill()
        await wait(connection.execute("SELECT 1"))
        await wait(connection.commit())

    client.registry.configure("orders", plain(client, breaks_once))
    assert client.ask(timeout=10) == 1
    assert client.handle.status().connect_failures["refused"] == 1


def test_a_reload_whose_connection_cannot_be_configured_is_rejected(make: Make) -> None:
    """The old connections keep serving, and the error of force_reload says why."""
    client = make(pool={"max_size": 1})
    fails: list[bool] = []

    async def may_fail(connection: Any) -> None:
        if fails:
            raise ZeroDivisionError

    client.registry.configure("orders", plain(client, may_fail))
    backend = client.ask("SELECT pg_backend_pid()")
    fails.append(True)
    with pytest.raises(ReloadRejectedError) as caught:
        client.registry._records["orders"].force()
    assert caught.value.reason == "configure"
    assert client.ask("SELECT pg_backend_pid()") == backend
