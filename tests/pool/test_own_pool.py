"""Copies of a handle with pools of their own, for those who set up connections in their own way."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import adapters as psycopg_adapters
from psycopg.adapt import AdaptersMap
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from pgmonkey import DatabaseRemovedError, HandleClosedError, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.manager import TYPES
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import Client, Make

ONE = {"min_size": 1, "max_size": 1}


def with_own_pool(client: Client, context: Any = None) -> Any:
    """Let the client use a copy of its handle from now on, and return the handle."""
    original = client.handle
    client.handle = original.with_own_pool(context)
    return original


def pid(connection: Any) -> int:
    return int(connection.info.backend_pid)


def test_what_is_set_up_in_an_own_pool_stays_there(make: Make) -> None:
    """Every borrower of the copy gets what was kept, and no block of the handle does."""
    client = make(pool=ONE)
    original = with_own_pool(client)
    connection = client.getconn()
    connection.row_factory = dict_row
    set_json_loads(lambda _: "tea", connection)
    connection.keep_settings()
    client.putconn(connection)
    seen = [client.run(lambda one: (pid(one), one.row_factory)) for _ in range(2)]
    assert seen == [(pid(connection), dict_row)] * 2
    client.handle = original
    assert client.run(lambda one: one.row_factory) is not dict_row
    assert client.ask("SELECT '1'::json") == 1


def test_settings_that_are_kept_twice_keep_the_adapters(make: Make) -> None:
    """Also if no one looked at them in between."""
    client = make(pool=ONE)
    with_own_pool(client)
    connection = client.getconn()
    set_json_loads(lambda _: "tea", connection)
    connection.keep_settings()
    connection.keep_settings()
    client.putconn(connection)
    assert client.ask("SELECT '1'::json") == "tea"


def test_the_adapters_of_an_own_pool_begin_with_its_context(make: Make) -> None:
    """Of each connection, from the first use on, and after a rotation."""
    client = make(pool=ONE)
    context = AdaptersMap(psycopg_adapters)
    set_json_loads(lambda _: "tea", context)
    with_own_pool(client, context)
    assert client.ask("SELECT '1'::json") == "tea"
    client.shut()
    assert client.ask("SELECT '1'::json") == "tea"


def test_an_own_pool_has_the_size_of_the_other_beside_it(
    make: Make, database: TemporaryDatabase
) -> None:
    """Two pools of one connection are two connections, which show as those of one database."""
    client = make(pool=ONE)
    original = with_own_pool(client)
    own = client.getconn()
    copy, client.handle = client.handle, original
    plain = client.getconn()
    assert pid(own) != pid(plain)
    assert len(database.backends()) == 2
    status = original.status()
    assert (status.used, status.max_size, status.requests) == (2, 2, 2)
    assert len(status.checkouts) == 2
    client.putconn(plain)
    client.handle = copy
    client.putconn(own)
    (shown,) = client.registry.status().databases[0].pools
    assert (shown.used, shown.idle) == (0, 2)


def test_max_connections_counts_own_pools(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """As any other pool of the process."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 0, "max_size": 2})
    with Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry:
        handle: Any = registry.get("orders")
        copy = handle.with_own_pool()
        connection = copy.getconn()
        with pytest.raises(Exception, match="max_connections"):
            handle.getconn(timeout=0.2)
        copy.putconn(connection)


def test_a_reload_replaces_the_connections_of_an_own_pool(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Also while the handle itself was never used."""
    client = make(pool=ONE)
    with_own_pool(client)
    held = client.getconn()
    kind = client.handle.connection_type
    section = "async_pool_settings" if client.is_async else "pool_settings"
    registry_dir.declare(
        "orders", database, kind, connection={"application_name": "new"}, **{section: ONE}
    )
    client.registry.reload()
    assert client.handle.is_retired(held)
    client.putconn(held)
    assert client.ask("SELECT current_setting('application_name')") == "new"
    assert client.registry.wait_drained(5)


def test_an_own_pool_has_a_transaction_of_its_own_in_a_rollback(make: Make) -> None:
    """With its adapters, whether it was made before or in the block."""
    client = make(pool=ONE)
    context = AdaptersMap(psycopg_adapters)
    set_json_loads(lambda _: "tea", context)
    original = with_own_pool(client, context)
    before = client.run(pid)
    with client.registry.override("orders", rollback=True):
        for copy in (client.handle, original.with_own_pool(context)):
            client.handle = copy
            client.ask("SELECT set_config('app.tenant', 'acme', true)")
            assert client.ask("SELECT current_setting('app.tenant')") == "acme"
            assert client.ask("SELECT '1'::json") == "tea"
        client.handle = original
        assert not client.ask("SELECT current_setting('app.tenant', true)")
        client.handle = copy
    assert not client.ask("SELECT current_setting('app.tenant', true)")
    assert client.run(pid) != before
    assert client.handle.status().used == 0


def test_a_copy_that_no_one_refers_to_is_closed(make: Make, database: TemporaryDatabase) -> None:
    """What it has counted stays with its handle."""
    client = make(pool=ONE)
    original = with_own_pool(client)
    assert client.ask() == 1
    client.handle = original
    gc.collect()
    eventually(lambda: not database.backends(), 5, "its connection is closed")
    assert original.copies() == []
    assert original.status().requests == 1


@pytest.fixture(params=TYPES)
def pair(
    request: pytest.FixtureRequest, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> Iterator[tuple[Client, Any, Any]]:
    """A client of each connection type, its handle, and a copy of that."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        client = Client(registry, connection_type=request.param)
        try:
            yield client, client.handle, client.handle.with_own_pool()
        finally:
            client.close()


def ask(client: Client, handle: Any, statement: str = "SELECT pg_backend_pid()") -> Any:
    """Ask in a block of a handle."""
    client.handle = handle
    return client.ask(statement)


def test_a_copy_closes_alone_and_with_its_handle(
    pair: tuple[Client, Any, Any], database: TemporaryDatabase
) -> None:
    """The next block opens it again; and so it is with a copy of a copy."""
    client, handle, copy = pair
    for one in (copy, copy.with_own_pool()):
        kept = ask(client, handle)
        assert ask(client, one) != kept
        assert handle.status().idle == 2
        client.shut()
        assert [each["pid"] for each in database.backends()] == [kept]
        assert handle.status().idle == 1
        assert ask(client, one) != kept
        client.handle = handle
        client.shut()
        assert database.backends() == []
        assert handle.status().idle == 0
        assert ask(client, one, "SELECT 1") == 1
        client.shut()


def test_a_copy_goes_where_its_handle_goes(pair: tuple[Client, Any, Any]) -> None:
    """Into an override, and out again, whether it was made before or in it."""
    client, handle, copy = pair
    name = "SELECT current_setting('application_name')"
    before = ask(client, copy, name)
    with client.registry.override("orders", application_name="elsewhere"):
        later = handle.with_own_pool()
        assert [ask(client, one, name) for one in (copy, later)] == ["elsewhere"] * 2
    assert [ask(client, one, name) for one in (copy, later)] == [before] * 2


def test_a_copy_is_removed_and_comes_back_with_its_handle(
    pair: tuple[Client, Any, Any], registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Also one that is made meanwhile; a subscriber hears of each change once."""
    client, handle, copy = pair
    ask(client, copy)
    heard: list[str] = []
    client.registry.subscribe(lambda change: heard.append(change.outcome))
    registry_dir.remove("orders")
    client.registry.reload()
    copies = copy, handle.with_own_pool()
    for one in copies:
        with pytest.raises(DatabaseRemovedError):
            ask(client, one)
    eventually(lambda: not database.backends(), 5, "its connections are closed")
    registry_dir.declare("orders", database)
    client.registry.reload()
    assert [ask(client, one, "SELECT 1") for one in copies] == [1, 1]
    assert heard == ["removed", "applied"]


def test_a_closed_registry_closes_own_pools(
    pair: tuple[Client, Any, Any], database: TemporaryDatabase
) -> None:
    """And those that are made afterwards are closed as their handle is."""
    client, handle, copy = pair
    ask(client, copy)
    client.registry.close()
    for one in (copy, handle.with_own_pool()):
        with pytest.raises(HandleClosedError):
            ask(client, one)
    eventually(lambda: not database.backends(), 5, "its connections are closed")


def test_copies_that_are_made_during_reloads_miss_none(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Each has the newest version in the end."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders", "pool")
        done = threading.Event()
        made: list[Any] = []

        def copy() -> None:
            while not done.is_set():
                made.append(handle.with_own_pool())

        with ThreadPoolExecutor(1) as threads:
            copying = threads.submit(copy)
            for number in range(8):
                registry_dir.declare(
                    "orders", database, connection={"application_name": str(number)}
                )
                registry.reload()
            done.set()
        copying.result()
        assert len(made) > 1
        assert {one.version for one in made} == {handle.version}


def test_an_own_pool_outlives_its_handle_object_while_something_is_borrowed(make: Make) -> None:
    """A connection that was borrowed by hand keeps the copy, and gives back to it."""
    client = make(pool=ONE)
    original = with_own_pool(client)
    connection = client.getconn()
    client.handle = original
    gc.collect()
    assert original.status().used == 1
    client.on(connection.close)
    assert original.status().used == 0


def test_a_connection_is_given_back_to_the_handle_that_lent_it(make: Make) -> None:
    """The error tells the copy and its handle apart, and where it was borrowed."""
    client = make(pool=ONE)
    original = with_own_pool(client)
    connection = client.getconn()
    copy, client.handle = client.handle, original
    for refused in (client.putconn, original.is_retired):
        with pytest.raises(ValueError, match=r"borrowed at .* from another handle of orders"):
            refused(connection)
    client.handle = copy
    client.putconn(connection)


def test_the_status_of_a_handle_counts_listeners_of_its_copies(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """And the leaks of their checkouts, each once."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        with handle.with_own_pool().listen("news"):
            assert handle.status().listeners == 1
        assert handle.status().listeners == 0


def test_a_checkout_of_a_copy_is_reported_as_leaked_once(
    make: Make, events: CapturedEvents
) -> None:
    """As one of its handle, which counts it."""
    client = make(pool=ONE, leak_detection="1ms")
    original = with_own_pool(client)
    connection = client.getconn()
    eventually(lambda: original.status().leaks == 1, 5, "the leak is found")
    client.putconn(connection)
    (leak,) = events.named("checkout.leaked")
    assert leak["database"] == "orders"


def test_a_child_process_uses_an_own_pool_on_its_own(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Its connections are its own, and it counts from zero."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        copy = handle.with_own_pool()
        with copy as connection:
            parent = pid(connection)

        def child() -> None:
            with copy as connection:
                assert pid(connection) != parent
            assert handle.status().requests == 1

        in_a_child(child)
        with copy as connection:
            assert pid(connection) == parent
