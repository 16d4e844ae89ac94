"""Tests of applications: `registry.override` leads a handle somewhere else for a block."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pgmonkey import (
    CheckoutTimeout,
    ConnectError,
    DatabaseRemovedError,
    HandleClosedError,
    LeftOpenError,
    NestedCheckoutError,
    OverrideError,
    Registry,
)
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.reader import GAP, reading
from tests.pool.side import SIDES, Client, do, entered, wait

WHERE = "SELECT current_database()"
KEPT = {"min_size": 2, "max_size": 4}
Make = Callable[..., Client]


@pytest.fixture
def registry(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Registry]:
    """A registry that declares `orders`, and reads its files when it is asked to."""
    registry_dir.declare("orders", database, pool_settings=KEPT, async_pool_settings=KEPT)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        yield registry


@pytest.fixture(params=SIDES)
def client(request: pytest.FixtureRequest, registry: Registry) -> Iterator[Client]:
    """A user of `orders`, sync or async."""
    client = Client(registry, "orders", request.param)
    yield client
    client.close()


def place(database: TemporaryDatabase) -> dict[str, Any]:
    """Return the settings that lead to a database."""
    return {"dbname": database.name, "user": database.user, "password": database.password}


def url(database: TemporaryDatabase) -> str:
    host = database.host.replace("/", "%2F")
    return (
        f"postgresql://{database.user}:{database.password}@{host}:{database.port}/{database.name}"
    )


# Another place


def test_a_handle_leads_somewhere_else_within_a_block(
    client: Client, registry: Registry, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """The same object, so a name that a module has got works; afterwards it leads back."""
    handle = registry.get("orders", client.handle.connection_type)
    assert client.ask(WHERE) == database.name
    with registry.override("orders", **place(other)):
        assert registry.get("orders", client.handle.connection_type) is handle
        assert client.ask(WHERE) == other.name
    assert client.ask(WHERE) == database.name


def test_it_gives_the_handle_of_the_declared_type(registry: Registry) -> None:
    """What `get` returns; it prints keys, and no values."""
    override = registry.override("orders", user="tea", rollback=True)
    assert repr(override) == "<Override of orders: user, rollback>"
    with override as handle:
        assert handle is registry.get("orders")
        with pytest.raises(RuntimeError, match="entered already"):
            override.__enter__()
    with override:  # again
        pass


def test_handles_and_types_of_the_block_are_overridden_too(
    registry: Registry, other: TemporaryDatabase
) -> None:
    """Also a handle that is asked for in the block for the first time, and `connect`."""
    with registry.override("orders", **place(other)):
        for connection_type in ("normal", *SIDES):
            client = Client(registry, "orders", connection_type)
            assert client.ask(WHERE) == other.name
            client.close()
        with registry.connect("orders") as connection:
            row = connection.execute(WHERE).fetchone()
        assert row == (other.name,)


def test_nothing_connects_before_the_first_block(
    client: Client, registry: Registry, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """Not on entering and not on leaving: a machine for tests may have only one of the servers."""
    client.fill(2)
    with registry.override("orders", **place(other)):
        eventually(lambda: not database.backends(), 5, "the idle connections are closed")
        assert not other.backends()
        assert client.handle.status().opened is False
        client.ask()
        eventually(lambda: len(other.backends()) == 2, 5, "min_size")
    assert not other.backends()
    assert not database.backends()
    assert client.handle.status().opened is False


def test_a_place_that_is_not_there_does_not_matter_until_a_block_begins(
    client: Client, registry: Registry, database: TemporaryDatabase
) -> None:
    """A test that asks for nothing needs no server."""
    with registry.override("orders", host="127.0.0.1", port=1), registry.override("orders"):
        pass
    assert client.ask(WHERE) == database.name
    with registry.override("orders", dbname="is_not_there"):
        with pytest.raises(ConnectError) as caught:
            client.ask()
        assert caught.value.reason == "no_database"


def test_blocks_in_progress_finish_on_their_connection(
    client: Client,
    registry: Registry,
    database: TemporaryDatabase,
    other: TemporaryDatabase,
    rows: Callable[[], list[int]],
) -> None:
    """Their work is committed where it was begun; the next block is in the other place."""
    connection = client.getconn()
    client.on(lambda: connection.execute("INSERT INTO rows VALUES (1)"))
    with registry.override("orders", **place(other)):
        assert client.ask(WHERE) == other.name
        client.on(connection.commit)
        client.putconn(connection)
    assert rows() == [1]


def test_clients_that_wait_go_on_in_the_other_place(
    registry_dir: RegistryDirectory,
    registry: Registry,
    client: Client,
    database: TemporaryDatabase,
    other: TemporaryDatabase,
) -> None:
    """They keep their turn and their deadline."""
    one = {"min_size": 1, "max_size": 1}
    registry_dir.declare("orders", database, pool_settings=one, async_pool_settings=one)
    registry.reload()
    with client.holding():
        answer = client.ask_soon(WHERE, timeout=20)
        eventually(lambda: client.handle.status().waiting, 5, "it waits")
        with registry.override("orders", **place(other)):
            assert answer.result(20) == other.name


def test_overrides_are_nested_and_end_in_any_order(
    client: Client, registry: Registry, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """Each over those before it: what it does not say is as they say."""
    name = "SHOW application_name"
    outer = registry.override("orders", application_name="outer", **place(other))
    inner = registry.override("orders", application_name="inner")
    with outer:
        assert client.ask(name) == "outer"
        with inner:
            assert (client.ask(name), client.ask(WHERE)) == ("inner", other.name)
        assert (client.ask(name), client.ask(WHERE)) == ("outer", other.name)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert (client.ask(name), client.ask(WHERE)) == ("inner", database.name)
    inner.__exit__(None, None, None)
    assert (client.ask(name), client.ask(WHERE)) == ("", database.name)


def test_async_with_leaves_no_connection_to_the_database_of_a_test(
    registry: Registry, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """The test can drop its database right after the block."""

    async def use() -> None:
        handle: Any = registry.get("orders", "async_pool")
        async with registry.override("orders", **place(other)):
            async with handle as connection:
                cursor = await connection.execute(WHERE)
                assert await cursor.fetchone() == (other.name,)
        assert not other.backends()
        async with handle as connection:
            cursor = await connection.execute(WHERE)
            assert await cursor.fetchone() == (database.name,)
        await handle.close()

    asyncio.run(use())


def test_listeners_move_with_a_gap(
    client: Client, registry: Registry, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """Their readers are told that notifications may be missing, there and back."""
    with reading(client) as reader:
        with registry.override("orders", **place(other)):
            reader.has(GAP)
            client.ask("SELECT pg_notify('news', 'there')")
            reader.has(GAP, "there")
        reader.has(GAP, "there", GAP)
        client.ask("SELECT pg_notify('news', 'back')")
        reader.has(GAP, "there", GAP, "back")


# A url


def test_a_url_says_the_whole_place(
    client: Client, registry: Registry, other: TemporaryDatabase
) -> None:
    """Other keys override its parts; what it does not say is not taken from the file."""
    with registry.override("orders", url=url(other)):
        assert client.ask(WHERE) == other.name
        assert client.ask("SELECT current_user") == other.user
    with registry.override("orders", url=url(other), dbname="postgres", application_name="tea"):
        assert client.ask(WHERE) == "postgres"
        assert client.ask("SHOW application_name") == "tea"
    with registry.override("orders", url="postgresql://127.0.0.1/tea"):
        settings: Any = registry.status().databases[0].config["connection_settings"]
        assert settings["host"] == "127.0.0.1"
        assert settings.keys().isdisjoint({"port", "user", "password"})
    with registry.connect("orders", url=url(other)) as connection:
        assert connection.info.dbname == other.name


def test_a_url_does_not_get_the_password_that_a_file_has_made_on_demand(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """Neither that nor the one of the file goes to another server."""
    asked = []

    def token(key: str) -> str:
        asked.append(key)
        return database.password

    source = {"from_resolver": "token", "key": "orders"}
    registry_dir.declare("orders", database, connection={"password": source})
    with Registry(registry_dir, metrics=None, watch=False, resolvers={"token": token}) as registry:
        with registry.override("orders", url=url(other)) as handle:
            with handle as connection:
                assert connection.info.dbname == other.name
            assert not asked
        with registry.get("orders"):
            pass
        assert asked == ["orders"]


# Meanwhile


def test_a_reload_changes_what_is_not_overridden(
    client: Client,
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    other: TemporaryDatabase,
) -> None:
    """The rest of the file is applied at once, and all of it after the block."""
    name = "SHOW application_name"
    with registry.override("orders", **place(other)):
        assert client.ask(name) == ""
        registry_dir.declare("orders", database, connection={"application_name": "tea"})
        assert registry.reload().applied == ("orders",)
        assert (client.ask(name), client.ask(WHERE)) == ("tea", other.name)
        assert registry.reload().unchanged == ("orders",)
        registry.get("orders", "pool", force_reload=True)
        assert client.ask(WHERE) == other.name
        registry_dir.write("orders", "connection_settings: [")
        assert "orders" in registry.reload().rejected
        assert (client.ask(name), client.ask(WHERE)) == ("tea", other.name)
    assert (client.ask(name), client.ask(WHERE)) == ("tea", database.name)


def test_a_file_that_is_removed_removes_the_database(
    client: Client,
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    other: TemporaryDatabase,
) -> None:
    """A block says so, leaving does not; one that comes back is overridden."""
    with registry.override("orders", **place(other)):
        registry_dir.remove("orders")
        registry.reload()
        with pytest.raises(DatabaseRemovedError):
            client.ask()
        with pytest.raises(DatabaseRemovedError), registry.override("orders", port=1):
            pass
        registry_dir.declare("orders", database)
        registry.reload()
        assert client.ask(WHERE) == other.name
        registry_dir.remove("orders")
        registry.reload()
    with pytest.raises(DatabaseRemovedError):
        client.ask()


@pytest.mark.parametrize("rollback", [False, True])
def test_a_registry_that_is_closed_within_the_block_stays_closed(
    client: Client, registry: Registry, other: TemporaryDatabase, *, rollback: bool
) -> None:
    """Leaving raises nothing."""
    with registry.override("orders", rollback=rollback, **place(other)):
        client.ask()
        registry.close()
        eventually(lambda: not other.backends(), 5, "its connections are closed")
    with pytest.raises(HandleClosedError):
        client.ask()
    with pytest.raises(HandleClosedError):
        registry.override("orders")


@pytest.mark.parametrize("rollback", [False, True])
def test_a_child_process_is_overridden_too(
    client: Client, registry: Registry, other: TemporaryDatabase, *, rollback: bool
) -> None:
    """It connects by itself, and nothing that it does reaches the connections of its parent."""
    with registry.override("orders", rollback=rollback, **place(other)):
        backend = client.ask("SELECT pg_backend_pid()")
        connection = client.getconn()

        def child() -> Any:
            own = Client(registry, "orders", client.handle.connection_type)
            found = own.ask("SELECT pg_backend_pid()"), own.ask(WHERE)
            own.putconn(connection)
            own.close()
            registry.close()
            return found

        theirs, where = in_a_child(child)
        assert where == other.name
        assert theirs != backend
        client.putconn(connection)
        assert client.ask(WHERE) == other.name


# How it shows


def test_it_is_an_event_and_shows_in_the_status(
    client: Client, registry: Registry, events: CapturedEvents, canary: Canary
) -> None:
    """With the names of what is overridden, never with a value."""

    def shown() -> tuple[str, ...]:
        return registry.status().databases[0].overridden

    assert shown() == ()
    with registry.override("orders", password=canary.secret(), user="tea", rollback=True):
        assert shown() == ("password", "rollback", "user")
        with registry.override("orders", url="postgresql://127.0.0.1/tea", port=1):
            assert shown() == ("password", "port", "rollback", "url", "user")
    assert shown() == ()
    keys = ["password", "user", "rollback"]
    assert [one["overridden"] for one in events.named("database.overridden")] == [
        keys,
        ["port", "url"],
    ]
    ended = events.named("database.override_ended", database="orders")
    assert [one["overridden"] for one in ended] == [["port", "url"], keys]
    assert not events.named("config.applied")


def test_what_can_never_work_is_an_error_at_once(registry: Registry) -> None:
    """Not at the first checkout; nothing is overridden."""
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"port": "abc"}, ValueError, "port: expected an integer from 1 to 65535"),
        ({"host": "db:5432"}, ValueError, "host: a host has no port in it"),
        ({"sslmode": "on"}, ValueError, "sslmode: expected one of"),
        ({"autocommit": "perhaps"}, ValueError, "autocommit: expected true or false"),
        ({"url": "http://tea"}, ValueError, "url: does not start with postgresql://"),
        ({"url": 5432}, ValueError, "url: expected text"),
        ({"dbnam": "tea"}, TypeError, 'did you mean "dbname"'),
        ({"row_factory": print}, TypeError, "give it to `configure`"),
        ({"dbname": "a\0b"}, ValueError, "dbname: the value contains a NUL character"),
        ({"password": "a\0b"}, ValueError, "password: the value contains a NUL character"),
        ({"statement_timeout": "1s"}, TypeError, 'options="-c statement_timeout=..."'),
        ({"isolation_level": "serializable"}, TypeError, "set it on the connection"),
    ]
    for settings, error, text in wrong:
        with pytest.raises(error, match=text):
            registry.override("orders", **settings)


def test_values_of_psycopg_and_durations_are_taken(client: Client, registry: Registry) -> None:
    """As in a file: a time has its unit, and `None` leaves a setting to its default."""
    settings = {"connect_timeout": "3s", "prepare_threshold": None, "keepalives": 1}
    with registry.override("orders", autocommit=True, **settings):
        assert client.run(lambda connection: connection.autocommit) is True
        assert client.run(lambda connection: connection.prepare_threshold) is None


def test_no_secret_is_in_an_error_or_its_traceback(
    client: Client, registry: Registry, canary: Canary
) -> None:
    """Neither of a password, nor of a url, whether it is wrong or does not work."""
    secret = canary.secret()
    wrong: list[dict[str, Any]] = [
        {"password": secret, "port": "x"},
        {"url": f"postgresql://u:{secret}@127.0.0.1:x/tea"},
        {"url": f"postgresql://u:{secret}/tea"},
        {"conninfo": f"password={secret}"},
    ]
    for settings in wrong:
        with pytest.raises((ValueError, TypeError)) as caught:
            registry.override("orders", **settings)
        _check(caught.value, canary)
    refused: list[dict[str, Any]] = [
        {"password": secret},
        {"url": f"postgresql://u:{secret}@127.0.0.1:1/tea"},
    ]
    for settings in refused:
        for rollback in (False, True):
            override = registry.override("orders", rollback=rollback, **settings)
            with override, pytest.raises((ConnectError, CheckoutTimeout)) as refusal:
                client.ask(timeout=0.1)
            _check(refusal.value, canary)


def _check(error: Exception, canary: Canary) -> None:
    canary.check(f"{error!r} {error}")
    for frame in inspect.getinnerframes(error.__traceback__):
        if "/pgmonkey/" in frame.filename:
            canary.check(repr(frame.frame.f_locals), frame.function)


# Everything is rolled back


def insert(client: Client, number: int) -> None:
    client.ask(f"INSERT INTO rows VALUES ({number}) RETURNING id")


def seen(client: Client) -> list[int]:
    return list(client.ask("SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM rows"))


def sessions(database: TemporaryDatabase) -> int:
    return len(database.backends())


@pytest.mark.parametrize("connection_type", ["normal", "pool", "async", "async_pool"])
def test_what_blocks_do_is_rolled_back_in_the_end(
    registry: Registry,
    database: TemporaryDatabase,
    rows: Callable[[], list[int]],
    connection_type: str,
) -> None:
    """The next blocks see it, other sessions do not; all blocks use one connection."""
    client = Client(registry, "orders", connection_type)
    with registry.override("orders", rollback=True):
        assert not database.backends()
        client.open()
        insert(client, 1)
        insert(client, 2)
        assert seen(client) == [1, 2]
        assert rows() == []
        assert sessions(database) == 1
    assert not database.backends()
    assert seen(client) == []
    insert(client, 3)
    assert rows() == [3]
    client.close()


def test_a_block_that_fails_is_rolled_back_alone(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """Also one in which a statement failed, whose error it swallowed: an event says so."""

    async def fail(connection: Any) -> None:
        await wait(connection.execute("INSERT INTO rows VALUES (2)"))
        raise KeyError

    async def swallow(connection: Any) -> None:
        await wait(connection.execute("INSERT INTO rows VALUES (3)"))
        with pytest.raises(psycopg.errors.UniqueViolation):
            await wait(connection.execute("INSERT INTO rows VALUES (1)"))

    with registry.override("orders", rollback=True):
        insert(client, 1)
        with pytest.raises(KeyError):
            do(client, fail)
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(client, 1)
        do(client, swallow)
        assert seen(client) == [1]


def test_a_swallowed_error_is_an_event_as_otherwise(
    client: Client, registry: Registry, events: CapturedEvents, rows: Callable[[], list[int]]
) -> None:
    """With the place of the block."""

    async def swallow() -> None:
        async with client.handle as connection:
            with pytest.raises(psycopg.Error):
                await connection.execute("tea")

    with registry.override("orders", rollback=True):
        if client.is_async:
            client.on(swallow)
        else:
            with client.handle as connection, pytest.raises(psycopg.Error):
                connection.execute("tea")
    assert "test_override.py" in events.wait("checkout.rolled_back")["place"]


def test_commit_and_rollback_act_on_the_block(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """What was committed stays until the override ends, whatever becomes of the block."""

    async def body(connection: Any) -> None:
        await wait(connection.execute("INSERT INTO rows VALUES (1)"))
        await wait(connection.commit())
        await wait(connection.execute("INSERT INTO rows VALUES (2)"))
        await wait(connection.rollback())
        await wait(connection.execute("INSERT INTO rows VALUES (3)"))
        await wait(connection.commit())
        with pytest.raises(psycopg.Error):
            await wait(connection.execute("tea"))
        await wait(connection.rollback())
        with pytest.raises(psycopg.Error):
            await wait(connection.execute("tea"))
        await wait(connection.commit())  # a server rolls back then
        await wait(connection.execute("INSERT INTO rows VALUES (4)"))
        raise KeyError

    with registry.override("orders", rollback=True):
        with pytest.raises(KeyError):
            do(client, body)
        assert seen(client) == [1, 3]
    assert rows() == []


def test_transactions_inside_of_a_block_work(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """Those of psycopg, those of the handle, and those that are rolled back."""

    async def body(connection: Any) -> None:
        if client.is_async:
            async with connection.transaction():
                await connection.execute("INSERT INTO rows VALUES (1)")
            with pytest.raises(KeyError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO rows VALUES (2)")
                    raise KeyError
        else:
            with connection.transaction():
                connection.execute("INSERT INTO rows VALUES (1)")
            with pytest.raises(KeyError), connection.transaction():
                connection.execute("INSERT INTO rows VALUES (2)")
                raise KeyError

    async def shorthands() -> None:
        async with client.handle.transaction() as connection:
            await connection.execute("INSERT INTO rows VALUES (3)")
        async with client.handle.transaction(force_rollback=True) as connection:
            await connection.execute("INSERT INTO rows VALUES (4)")
        async with client.handle.cursor() as cursor:
            await cursor.execute("INSERT INTO rows VALUES (5)")

    with registry.override("orders", rollback=True):
        do(client, body)
        if client.is_async:
            client.on(shorthands)
        else:
            with client.handle.transaction() as connection:
                connection.execute("INSERT INTO rows VALUES (3)")
            with client.handle.transaction(force_rollback=True) as connection:
                connection.execute("INSERT INTO rows VALUES (4)")
            with client.handle.cursor() as cursor:
                cursor.execute("INSERT INTO rows VALUES (5)")
        assert seen(client) == [1, 3, 5]
    assert rows() == []


def test_blocks_that_one_client_nests_are_nested_savepoints(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """The inner one alone may fail; what the outer one rolls back takes the inner ones with it."""

    async def outer(connection: Any) -> None:
        await wait(connection.execute("INSERT INTO rows VALUES (1)"))
        if client.is_async:
            async with client.handle as inner:
                await inner.execute("INSERT INTO rows VALUES (2)")
            with pytest.raises(KeyError):
                async with client.handle as inner:
                    await inner.execute("INSERT INTO rows VALUES (3)")
                    raise KeyError
        else:
            with client.handle as inner:
                inner.execute("INSERT INTO rows VALUES (2)")
            with pytest.raises(KeyError), client.handle as inner:
                inner.execute("INSERT INTO rows VALUES (3)")
                raise KeyError

    async def failing(connection: Any) -> None:
        await outer(connection)
        raise KeyError

    with registry.override("orders", rollback=True):
        with pytest.raises(KeyError):
            do(client, failing)
        assert seen(client) == []
        do(client, outer)
        assert seen(client) == [1, 2]
    assert rows() == []


def test_by_hand_is_rolled_back_to_the_last_commit(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """Two that are borrowed at once are nested, in whatever order they are given back."""
    with registry.override("orders", rollback=True):
        first = client.getconn()
        client.on(lambda: first.execute("INSERT INTO rows VALUES (1)"))
        client.on(first.commit)
        client.on(lambda: first.execute("INSERT INTO rows VALUES (2)"))
        assert client.handle.is_retired(first) is False
        client.putconn(first)
        assert seen(client) == [1]
        with pytest.raises(ValueError, match="given back before"):
            client.putconn(first)
    assert rows() == []


def test_two_that_one_thread_borrows_by_hand_are_nested(
    registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """They are one connection, so each `putconn` ends the one that was borrowed last."""
    handle: Any = registry.get("orders")
    with registry.override("orders", rollback=True):
        first, second = handle.getconn(), handle.getconn()
        with handle as inner, pytest.raises(ValueError, match="the block that borrowed it"):
            handle.putconn(inner)
        handle.putconn(first)
        handle.putconn(second)
        with pytest.raises(ValueError, match="given back before"):
            handle.putconn(second)


def test_clients_take_turns(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """Threads or tasks; one that waits for too long is told who holds the connection, and where."""
    with registry.override("orders", rollback=True):
        answers = [
            client.ask_soon(f"INSERT INTO rows VALUES ({n}) RETURNING id", timeout=20)
            for n in range(8)
        ]
        assert sorted(answer.result(20) for answer in answers) == list(range(8))
        with client.holding():
            late = client.ask_soon(timeout=0.05)
            with pytest.raises(CheckoutTimeout) as caught:
                late.result(10)
            waits = client.ask_soon(timeout=20)
            eventually(lambda: client.handle.status().waiting == 1, 5, "it waits")
            status = client.handle.status()
            assert (status.used, status.idle, status.errors["timeout"]) == (1, 0, 1)
            (shown,) = status.checkouts
            assert "side.py" in shown.place
        assert waits.result(10) == 1
        text = str(caught.value)
        assert "no turn within 0.05 s" in text
        assert "side.py" in text
        assert shown.holder in text
        assert len(seen(client)) == 8
        status = client.handle.status()
        assert (status.used, status.idle) == (0, 1)
    assert rows() == []


def test_a_block_may_end_in_another_thread(
    registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """As a dependency of a web framework does that runs in a pool of threads."""
    handle: Any = registry.get("orders")
    with registry.override("orders", rollback=True):
        block = handle.connection()
        connection = in_a_thread(block.__enter__)
        connection.execute("INSERT INTO rows VALUES (1)")
        in_a_thread(lambda: block.__exit__(None, None, None))
        with handle as connection:
            assert connection.execute("SELECT id FROM rows").fetchall() == [(1,)]


def in_a_thread(act: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(act).result()


def test_blocks_that_end_in_the_wrong_order(
    registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """An outer block that succeeds leaves the inner ones; one that fails rolls them back."""
    handle: Any = registry.get("orders")
    with registry.override("orders", rollback=True):
        outer, inner = handle.connection(), handle.connection()
        outer.__enter__()
        inner.__enter__().execute("INSERT INTO rows VALUES (1)")
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        outer, inner = handle.connection(), handle.connection()
        outer.__enter__()
        inner.__enter__().execute("INSERT INTO rows VALUES (2)")
        outer.__exit__(KeyError, KeyError(), None)
        with pytest.raises(OverrideError, match="around it was rolled back"):
            inner.__exit__(None, None, None)
        with handle as connection:
            assert connection.execute("SELECT id FROM rows").fetchall() == [(1,)]


def test_a_block_gets_the_connection_as_it_was_made(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """What a block sets is taken back; functions of `configure` were called, once."""
    calls = []

    async def configure_async(connection: Any) -> None:
        await connection.execute("SELECT 1")
        await connection.commit()
        calls.append(connection.info.backend_pid)

    def configure(connection: Any) -> None:
        connection.execute("SELECT 1")
        connection.commit()
        calls.append(connection.info.backend_pid)

    registry.configure("orders", configure_async if client.is_async else configure)

    def change(connection: Any) -> None:
        connection.row_factory = dict_row
        connection.prepare_threshold = 0

    def changed(connection: Any) -> bool:
        return connection.row_factory is dict_row or connection.prepare_threshold == 0

    with registry.override("orders", rollback=True):
        client.run(change)
        assert client.run(changed) is False
        backend = client.ask("SELECT pg_backend_pid()")
    assert calls == [backend]


def test_autocommit_differs_as_documented(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """A database with `autocommit` works; a block cannot turn it on."""

    def turn_on(connection: Any) -> Any:
        return connection.set_autocommit(True)

    with registry.override("orders", rollback=True, autocommit=True):
        insert(client, 1)
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(client, 1)
        assert seen(client) == [1]
        with pytest.raises(psycopg.ProgrammingError):
            client.run(turn_on)
        assert seen(client) == [1]
    assert rows() == []


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_a_commit_that_is_sent_as_sql_is_an_error(
    client: Client, registry: Registry, rows: Callable[[], list[int]], statement: str
) -> None:
    """At the end of its block, and of every one after it; not in the next override."""
    with registry.override("orders", rollback=True):
        with pytest.raises(OverrideError, match="sent COMMIT or ROLLBACK as SQL"):
            client.run(lambda connection: connection.execute(statement))
        with pytest.raises(OverrideError, match="no block can begin any more"):
            insert(client, 1)
    with registry.override("orders", rollback=True):
        insert(client, 1)
    assert rows() == []


def test_a_connection_that_breaks_is_an_error_of_later_blocks(
    client: Client, registry: Registry, database: TemporaryDatabase, rows: Callable[[], list[int]]
) -> None:
    """What was in the transaction is lost, so they cannot go on as if nothing had happened."""
    with registry.override("orders", rollback=True):
        insert(client, 1)
        database.terminate_backends()
        for _ in range(2):
            with pytest.raises(OverrideError, match="its connection was lost"):
                insert(client, 2)
    with registry.override("orders", rollback=True):
        with pytest.raises(OverrideError, match="its connection was lost"):
            client.run(lambda connection: connection.close())
        with pytest.raises(OverrideError, match="its connection was lost"):
            client.ask()
    insert(client, 3)
    assert rows() == [3]


def test_a_block_that_ends_inside_of_something_is_an_error(
    client: Client, registry: Registry
) -> None:
    """The same one as otherwise; then the connection is lost."""
    held = []

    async def body(connection: Any) -> None:
        held.append(connection.pipeline())
        await entered(held[0])

    with registry.override("orders", rollback=True):
        with pytest.raises(LeftOpenError, match=r"pipeline\(\)"):
            do(client, body)
        with pytest.raises(OverrideError, match="its connection was lost"):
            client.ask()


def test_a_block_that_is_open_in_the_end_is_an_error_that_names_it(
    client: Client, registry: Registry, database: TemporaryDatabase, rows: Callable[[], list[int]]
) -> None:
    """It is rolled back and its connection closed; giving it back later raises nothing."""
    with pytest.raises(OverrideError, match=r"begun at .*side\.py:\d+ in getconn"):
        with registry.override("orders", rollback=True):
            connection = client.getconn()
            client.on(lambda: connection.execute("INSERT INTO rows VALUES (1)"))
            client.on(connection.commit)
    eventually(lambda: not database.backends(), 5, "its connection is closed")
    client.putconn(connection)
    assert seen(client) == []
    with pytest.raises(KeyError), registry.override("orders", rollback=True):
        connection = client.getconn()
        raise KeyError
    client.putconn(connection)


def test_a_block_that_was_made_on_the_other_side_of_the_override_is_refused(
    registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """Else it would commit for good; `connection()` in a variable is rare."""
    handle: Any = registry.get("orders")
    before = handle.connection()
    with registry.override("orders", rollback=True):
        with pytest.raises(OverrideError, match="made before"), before:
            pass
        inside = handle.connection()
    with pytest.raises(OverrideError, match="has ended"), inside:
        pass


def test_overrides_that_roll_back_are_nested(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """One for a session and one for each test: a test sees the data of the session, and leaves none."""
    with registry.override("orders", rollback=True):
        insert(client, 1)
        for _ in range(2):
            with registry.override("orders", rollback=True):
                insert(client, 2)
                assert seen(client) == [1, 2]
            assert seen(client) == [1]
        with registry.override("orders", application_name="tea"):
            # Another place, another transaction.
            assert seen(client) == []
            insert(client, 3)
        assert seen(client) == [1]
        with pytest.raises(OverrideError, match="begun at"):
            with registry.override("orders", rollback=True):
                connection = client.getconn()
        client.putconn(connection)
        assert seen(client) == [1]
    assert rows() == []


def test_the_data_of_a_session_may_come_later(
    client: Client, registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """A transaction that begins in the inner override goes on in the outer one."""
    outer = registry.override("orders", rollback=True)
    inner = registry.override("orders", rollback=True)
    with outer:
        with inner:
            insert(client, 1)
        assert seen(client) == []
        insert(client, 2)
    outer.__enter__()
    inner.__enter__()
    insert(client, 1)
    outer.__exit__(None, None, None)
    assert seen(client) == []
    inner.__exit__(None, None, None)
    assert rows() == []


def test_closing_the_registry_first_waits_for_the_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, rows: Callable[[], list[int]]
) -> None:
    """Whichever of the two blocks ends first."""

    async def test() -> None:
        async with Registry(registry_dir, metrics=None, watch=False) as registry:
            handle: Any = registry.get("orders", "async_pool")
            async with registry.override("orders", rollback=True):
                async with handle as connection:
                    await connection.execute("INSERT INTO rows VALUES (1)")
                await registry.aclose()
                assert not database.backends()

    registry_dir.declare("orders", database)
    asyncio.run(test())
    assert rows() == []


def test_it_rolls_back_in_another_place(
    client: Client, registry: Registry, other: TemporaryDatabase
) -> None:
    """Settings and rollback go together."""
    with registry.override("orders", rollback=True, **place(other)):
        client.ask("SELECT 1")
        client.run(lambda connection: connection.execute("CREATE TABLE tea (id int)"))
        assert client.ask(WHERE) == other.name
        assert client.ask("SELECT to_regclass('tea') IS NULL") is False
    assert other.execute("SELECT to_regclass('tea')") == [(None,)]


def test_a_reload_or_close_within_the_block_keeps_the_transaction(
    client: Client,
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    rows: Callable[[], list[int]],
) -> None:
    """An application that shuts down at the end of a test closes its handle: what it did is there."""
    with registry.override("orders", rollback=True):
        insert(client, 1)
        registry_dir.declare("orders", database, connection={"application_name": "tea"})
        registry.reload()
        client.shut()
        assert seen(client) == [1]
        registry_dir.remove("orders")
        registry.reload()
        database.assert_unused()  # a loop closes its connections in its next turn
        registry_dir.declare("orders", database)
        registry.reload()
        assert seen(client) == []
    assert rows() == []


def test_the_connection_counts_in_max_connections(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Without room for it, a block waits for as long as a checkout does."""
    registry_dir.declare("orders", database, timeout="200ms")
    with Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry:
        with registry.override("orders", rollback=True) as handle:
            with registry.connect("orders"), pytest.raises(ConnectError) as caught, handle:
                pass
            assert caught.value.reason == "too_many_connections"
            with handle, pytest.raises(ConnectError):
                registry.connect("orders")


def test_each_event_loop_has_a_transaction_of_its_own(
    registry: Registry, database: TemporaryDatabase, rows: Callable[[], list[int]]
) -> None:
    """It ends with its loop, or with the override, which waits for that."""

    async def use() -> None:
        handle: Any = registry.get("orders", "async_pool")
        async with handle as connection:
            cursor = await connection.execute("SELECT id FROM rows")
            assert await cursor.fetchall() == []
            await connection.execute("INSERT INTO rows VALUES (1)")

    with registry.override("orders", rollback=True):
        asyncio.run(use())
        asyncio.run(use())
    assert not database.backends()

    async def test() -> None:
        async with registry.override("orders", rollback=True):
            await use()
        assert not database.backends()

    asyncio.run(test())
    with asyncio.Runner() as runner:
        with registry.override("orders", rollback=True):
            runner.run(use())
        assert not database.backends()
    assert rows() == []


def test_a_task_that_is_cancelled_in_a_block_disturbs_no_other(
    registry: Registry, rows: Callable[[], list[int]]
) -> None:
    """Nor one that is cancelled while it waits for its turn."""

    async def sleep(handle: Any) -> None:
        async with handle as connection:
            await connection.execute("INSERT INTO rows VALUES (1)")
            await connection.execute("SELECT pg_sleep(60)")

    async def test() -> None:
        handle: Any = registry.get("orders", "async_pool")
        async with registry.override("orders", rollback=True):
            tasks = [asyncio.create_task(sleep(handle)) for _ in range(2)]
            await aeventually(lambda: handle.status().waiting == 1, 5, "one sleeps, one waits")
            for task in reversed(tasks):
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
            async with handle as connection:
                cursor = await connection.execute("SELECT count(*) FROM rows")
                assert await cursor.fetchone() == (0,)
        await handle.close()

    asyncio.run(test())


@pytest.mark.parametrize("connection_type", ["normal", "async"])
def test_a_handle_of_one_connection_refuses_nested_blocks_as_otherwise(
    registry: Registry, connection_type: str
) -> None:
    """What fails outside of tests fails in a test."""
    client = Client(registry, "orders", connection_type)
    handle: Any = client.handle

    async def nest() -> None:
        async with handle, handle:
            pass

    with registry.override("orders", rollback=True):
        with pytest.raises(NestedCheckoutError, match=r"test_override\.py"):
            if client.is_async:
                client.on(nest)
            else:
                with handle, handle:
                    pass
        assert client.ask() == 1
    client.close()


def test_a_transaction_that_is_idle_for_long_is_not_ended(
    client: Client, registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Whatever the file says for blocks that forget to end."""
    name = "idle_in_transaction_session_timeout"
    settings = {name: "10s"}
    registry_dir.declare("orders", database, sync_settings=settings, async_settings=settings)
    registry.reload()
    assert client.ask(f"SHOW {name}") == "10s"
    with registry.override("orders", rollback=True):
        assert client.ask(f"SHOW {name}") == "0"
    assert client.ask(f"SHOW {name}") == "10s"


def test_a_statement_of_a_table_that_was_rolled_back_works_again(
    client: Client, registry: Registry
) -> None:
    """With another type of its result, too: none is prepared on the server."""
    kinds = ["int", "text", "date"]

    async def create(connection: Any) -> None:
        await wait(connection.execute(f"CREATE TABLE tea (id {kinds.pop()})"))
        for _ in range(8):
            await wait(connection.execute("SELECT id FROM tea"))
        raise KeyError

    with registry.override("orders", rollback=True):
        while kinds:
            with pytest.raises(KeyError):
                do(client, create)
