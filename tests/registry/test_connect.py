"""Connections outside of the pools: `registry.connect` and `registry.aconnect`."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row, tuple_row

from pgmonkey import (
    ConfigError,
    ConnectError,
    DatabaseRemovedError,
    HandleClosedError,
    Registry,
    UnknownDatabaseError,
)
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume

#: Do something with a connection of its own, and close it: sync or async.
Use = Callable[..., Any]
TIMEOUT = "SHOW statement_timeout"


async def _ask(registry: Registry, statement: str, overrides: dict[str, Any]) -> Any:
    async with await registry.aconnect("orders", **overrides) as connection:
        cursor = await connection.execute(statement)
        return await cursor.fetchone()


@pytest.fixture(params=["connect", "aconnect"])
def ask(request: pytest.FixtureRequest) -> Use:
    """Connect to `orders`, execute a statement, and return the first row."""

    def ask(registry: Registry, statement: str = "SELECT 1", **overrides: Any) -> Any:
        if request.param == "aconnect":
            return asyncio.run(_ask(registry, statement, overrides))
        with registry.connect("orders", **overrides) as connection:
            return connection.execute(statement).fetchone()

    return ask


@pytest.fixture
def registry(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Registry]:
    """A registry that declares `orders`, and reads its files when it is asked to."""
    registry_dir.declare(
        "orders",
        database,
        timeout="100ms",
        sync_settings={"statement_timeout": "30s"},
        async_settings={"statement_timeout": "30s"},
    )
    with Registry(registry_dir, metrics=None, watch=False, max_connections=2) as registry:
        yield registry


def wait_for_long(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Let those who need a connection wait for it."""
    registry_dir.declare("orders", database, timeout="30s")
    registry.reload()


def held(registry: Registry) -> int:
    """Return how many of two connections somebody holds."""
    with ExitStack() as stack:
        for free in range(2):
            try:
                stack.enter_context(registry.connect("orders"))
            except ConnectError:
                return 2 - free
    return 0


# What it is


def test_it_is_a_connection_of_psycopg_and_of_no_pool(registry: Registry) -> None:
    """As a context manager it commits and closes; nothing of it is in the status."""
    with registry.connect("orders") as connection:
        assert isinstance(connection, psycopg.Connection)
        assert registry.get("orders").status().used == 0
    assert connection.closed

    async def connect() -> None:
        async with await registry.aconnect("orders") as connection:
            assert isinstance(connection, psycopg.AsyncConnection)
        assert connection.closed

    asyncio.run(connect())


def test_it_has_the_settings_of_the_file(ask: Use, registry: Registry) -> None:
    """Those of the session, too."""
    assert ask(registry, TIMEOUT) == ("30s",)


def test_it_has_the_settings_of_psycopg_of_the_file(
    ask: Use, registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Rows, cursors and transactions are as in a block of the handle; an override wins."""
    settings = {
        "isolation_level": "serializable",
        "row_factory": "dict_row",
        "cursor_factory": "RawCursor",
    }
    registry_dir.declare("orders", database, connection=settings)
    registry.reload()
    assert ask(registry, "SHOW transaction_isolation") == {"transaction_isolation": "serializable"}
    assert ask(registry, row_factory=tuple_row) == (1,)
    with registry.connect("orders") as connection:
        assert connection.execute("SELECT $1::int AS one", [1]).fetchone() == {"one": 1}


def test_overrides_are_those_of_psycopg(
    ask: Use, registry: Registry, database: TemporaryDatabase
) -> None:
    """Settings of libpq and of psycopg, and objects; what is not overridden is as in the file."""
    assert ask(registry, "SELECT current_database()", dbname="postgres") == ("postgres",)
    assert ask(registry, "SELECT 1 AS one", row_factory=dict_row) == {"one": 1}
    assert ask(registry, "SHOW application_name", application_name="tea") == ("tea",)
    assert ask(registry, TIMEOUT, options="-c statement_timeout=0") == ("0",)
    assert ask(registry, "SHOW geqo", options="-c geqo=off") == ("off",)
    assert ask(registry, TIMEOUT, options="-c geqo=off") == ("30s",)
    assert ask(registry, port=database.port) == (1,)
    with registry.connect("orders", autocommit=True, prepare_threshold=None) as connection:
        assert connection.autocommit
        assert connection.prepare_threshold is None
    with registry.connect("orders", application_name=None) as connection:
        assert connection.info.parameter_status("application_name") == ""


def test_a_database_of_a_test_is_made_used_and_dropped(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """A refusal because it does not exist is not remembered for a second."""
    name = f"{database.name}_extra"
    database.execute(f'ALTER ROLE "{database.user}" CREATEDB')
    with pytest.raises(ConnectError) as caught:
        registry.connect("orders", dbname=name)
    assert caught.value.reason == "no_database"
    with registry.connect("orders", dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        with registry.connect("orders", dbname=name) as connection:
            connection.execute("CREATE TABLE tea (id int)")
    finally:
        with registry.connect("orders", dbname="postgres", autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}"')


def test_another_host_takes_the_place_of_an_address_too(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Else libpq would connect to the address of the file, whatever the host is."""
    registry_dir.declare("orders", database, connection={"hostaddr": "127.0.0.9"})
    registry.reload()
    with registry.connect("orders", host=database.host) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_parameter_that_psycopg_does_not_know_is_a_mistake_of_the_program(
    ask: Use, registry: Registry, canary: Canary
) -> None:
    """Nothing is connected; a similar one is named, and no value."""
    with pytest.raises(TypeError, match='"pasword" is no parameter.*did you mean "password"'):
        ask(registry, pasword=canary.secret())
    with pytest.raises(TypeError, match=r"or its parts, such as dbname="):
        ask(registry, conninfo="host=localhost")


def test_it_has_the_newest_settings_and_no_reload_touches_it(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The next one is made with what the files say by then."""
    with registry.connect("orders") as connection:
        registry_dir.declare("orders", database, connection={"application_name": "new"})
        registry.reload()
        assert registry.wait_drained(0)
        assert connection.execute("SHOW application_name").fetchone() == ("",)
        with registry.connect("orders") as another:
            assert another.execute("SHOW application_name").fetchone() == ("new",)


def test_it_is_no_leak(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
) -> None:
    """However long it lives, beside a checkout that is one."""
    registry_dir.declare("orders", database, leak_detection="1ms")
    registry.reload()
    handle: Any = registry.get("orders")
    with registry.connect("orders") as connection, handle:
        connection.execute("SELECT pg_sleep(0.02)")
        handle.report_long_checkouts(float("inf"))
        assert len(events.named("checkout.leaked")) == 1


# Limits


def test_it_counts_within_max_connections_until_it_is_closed(registry: Registry) -> None:
    """A client that needs one more waits; its error names the holders."""
    first = registry.connect("orders")
    with registry.connect("orders"):
        assert held(registry) == 2
        with pytest.raises(ConnectError) as caught:
            registry.connect("orders")
        assert caught.value.reason == "too_many_connections"
        assert "orders/connect 2" in str(caught.value)
        assert "max_connections" in caught.value.hint
    assert held(registry) == 1
    first.close()
    first.close()
    assert held(registry) == 0


def test_an_async_one_counts_until_it_is_closed(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """And a task that waits for room leaves its loop alone."""
    wait_for_long(registry, registry_dir, database)

    async def connect() -> None:
        first, second = [await registry.aconnect("orders") for _ in range(2)]
        third = asyncio.create_task(registry.aconnect("orders"))
        await asyncio.sleep(0)
        await first.close()
        await (await third).close()
        fourth = await registry.aconnect("orders")
        gives_up = asyncio.create_task(registry.aconnect("orders"))
        await asyncio.sleep(0)
        gives_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gives_up
        await second.close()
        await fourth.close()

    asyncio.run(connect())
    for connection in [registry.connect("orders") for _ in range(2)]:
        connection.close()


def test_a_thread_that_waits_for_room_goes_on_when_there_is_some(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """It waits for the `timeout` of the database."""
    wait_for_long(registry, registry_dir, database)
    first, second = (registry.connect("orders") for _ in range(2))
    made: list[Any] = []
    waits = threading.Thread(target=lambda: made.append(registry.connect("orders")))
    waits.start()
    first.close()
    waits.join(10)
    assert len(made) == 1
    made[0].close()
    second.close()


def test_one_that_is_dropped_or_failed_is_not_counted(registry: Registry, canary: Canary) -> None:
    """For one that is dropped there is psycopg's warning, as always."""
    connection = registry.connect("orders")
    assert held(registry) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del connection
        gc.collect()
    assert held(registry) == 0
    for _ in range(3):
        with pytest.raises(ConnectError):
            registry.connect("orders", dbname="is_not_there")
    assert held(registry) == 0


def test_a_child_process_counts_its_own(registry: Registry) -> None:
    """What its parent has opened takes no place of the child's."""
    with registry.connect("orders"):

        def child() -> int:
            count = held(registry)
            registry.close()
            return count

        assert in_a_child(child) == 0
        assert held(registry) == 1


# What goes wrong


def test_a_failure_has_a_reason_and_a_hint_and_shows_no_secret(
    ask: Use, registry: Registry, canary: Canary
) -> None:
    """Neither the password of the file nor an overridden one, also in the frames of the traceback."""
    with pytest.raises(ConnectError) as caught:
        ask(registry, host="127.0.0.1", port=1, password=canary.secret())
    error = caught.value
    assert (error.database, error.reason) == ("orders", "refused")
    assert error.hint
    assert error.__cause__ is None
    assert error.__context__ is None
    frames = inspect.getinnerframes(error.__traceback__)
    assert any("registry.py" in frame.filename for frame in frames)
    for frame in frames:
        if "/pgmonkey/" in frame.filename:
            canary.check(repr(frame.frame.f_locals), frame.function)


def test_a_wrong_password_is_not_tried_again_and_again(registry: Registry, canary: Canary) -> None:
    """Some servers lock an account: within a second the answer is the one from before."""
    secret = canary.secret()
    for _ in range(3):
        with pytest.raises(ConnectError) as caught:
            registry.connect("orders", password=secret)
        assert caught.value.reason == "auth"
    with registry.connect("orders"):
        pass


def test_a_refused_login_reads_the_files_and_tries_again(
    ask: Use,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
) -> None:
    """A password that was rotated a moment ago fails no connect, as it fails no checkout."""
    registry_dir.declare("orders", database, volume=volume)
    with Registry(registry_dir, metrics=None, rescan_interval=600) as registry:
        assert ask(registry) == (1,)
        database.rotate()
        write_credentials(volume, database)
        assert ask(registry) == (1,)


def test_what_is_not_declared_removed_broken_or_closed_says_so(
    ask: Use, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """With the errors of a checkout."""
    registry_dir.write("orders", "x: [")
    registry = Registry(registry_dir, metrics=None, watch=False, strict=False)
    with pytest.raises(ConfigError, match=r"orders\.yaml"):
        ask(registry)
    registry_dir.declare("orders", database)
    registry_dir.declare("reports", database)
    registry.reload()
    assert ask(registry) == (1,)
    with pytest.raises(UnknownDatabaseError, match="order"):
        registry.connect("order")
    registry_dir.remove("orders")
    registry.reload()
    with pytest.raises(DatabaseRemovedError):
        ask(registry)
    registry.close()
    with pytest.raises(HandleClosedError):
        ask(registry)


def test_values_are_checked_as_those_of_a_file(
    ask: Use, registry: Registry, database: TemporaryDatabase
) -> None:
    """A list of hosts is taken; a value that can never work is an error that shows no value."""
    assert ask(registry, host=[database.host, database.host], port=[database.port] * 2) == (1,)
    for settings in ({"port": "abc"}, {"sslmode": "bogus"}, {"dbname": "a\0b"}):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))}: ") as caught:
            ask(registry, **settings)
        assert next(iter(settings.values())) not in str(caught.value)
