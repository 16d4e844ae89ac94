"""Copies of a handle with pools of their own, for those who set up connections in their own way."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from psycopg import adapters as psycopg_adapters
from psycopg.adapt import AdaptersMap
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from pgmonkey import HandleClosedError, Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
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


def test_a_closed_registry_closes_own_pools_and_makes_none(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """As its handles."""
    registry_dir.declare("orders", database)
    registry = Registry(registry_dir, metrics=None, watch=False)
    handle: Any = registry.get("orders")
    copy = handle.with_own_pool()
    with copy:
        pass
    registry.close()
    with pytest.raises(HandleClosedError), copy:
        pass
    with pytest.raises(HandleClosedError):
        handle.with_own_pool()
    eventually(lambda: not database.backends(), 5, "its connections are closed")


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
