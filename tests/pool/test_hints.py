"""What people try on a handle out of habit: the error says in one sentence what to write."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest

from pgmonkey import Database, Registry, WrongSideError
from tests.kit.registry_dir import RegistryDirectory

#: What is tried, and what the answer ends with; in braces what differs between the sides.
HABITS = {
    "handle.execute": "borrow a connection: `{with} handle as conn:`, and use conn.execute",
    "handle.fetchone": "borrow a cursor: `{with} handle.cursor() as cur:`, and use cur.fetchone",
    "handle.commit": "`{with} handle as conn:`, and in it {await}conn.commit()",
    "handle.pool": "the handle is the pool, and handle.status() has its numbers",
    "handle.test_connection": "{await}handle.open() connects now, and raises why it cannot",
    "handle.cursor().execute": "write `{with} handle.cursor() as cur:`, and use cur.execute",
    "handle.connection(2).cursor": "`{with} handle.connection() as conn:`, and use conn.cursor",
    "handle.transaction().info": "`{with} handle.transaction() as conn:`, and use conn.info",
}
SIDES = {
    "pool": {"with": "with", "await": ""},
    "async_pool": {"with": "async with", "await": "await "},
}
PUBLIC = {
    *("name", "connection_type", "connection", "transaction", "cursor"),
    *("open", "close", "status", "getconn", "putconn", "is_retired"),
}


@pytest.fixture
def registry(registry_dir: RegistryDirectory) -> Iterator[Registry]:
    """A registry that is never used to connect."""
    registry_dir.write(
        "orders",
        "connection_type: pool\nconnection_settings: {host: localhost, dbname: orders, user: app}\n",
    )
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        yield registry


@pytest.mark.parametrize("habit", HABITS)
def test_the_error_says_what_to_write(registry: Registry, habit: str) -> None:
    """One sentence, for the side of the handle; `hasattr` is false, and the class has it neither."""
    for connection_type, words in SIDES.items():
        handle: Any = registry.get("orders", connection_type)  # type: ignore[arg-type]  # a key
        owner = eval(habit.rpartition(".")[0], {"handle": handle})
        name = habit.rpartition(".")[2]
        with pytest.raises(AttributeError) as caught:
            getattr(owner, name)
        message = str(caught.value)
        noun = "a handle" if owner is handle else "a block that is not entered"
        assert message.startswith(f"orders: {noun} has no {name}; ")
        assert message.endswith(HABITS[habit].format(**words))
        assert not hasattr(owner, name)
        assert not hasattr(type(owner), name)


@pytest.mark.parametrize("connection_type", ["normal", "async"])
def test_what_psycopg_has_is_no_plain_attribute_error(
    registry: Registry, connection_type: Any
) -> None:
    """Each public name of a cursor that a handle does not have, and what ends transactions, has a hint."""
    handle = registry.get("orders", connection_type)
    of_cursors = {"execute", "executemany", "fetchone", "fetchmany", "fetchall", "stream", "copy"}
    assert of_cursors <= set(dir(psycopg.Cursor))
    for name in (*of_cursors, "commit", "rollback", "autocommit", "pipeline", "notifies"):
        with pytest.raises(AttributeError, match="orders: a handle has no"):
            getattr(handle, name)


@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_dir_shows_public_names(registry: Registry, connection_type: Any) -> None:
    """Besides those of Python itself, these are the methods whose docstring has an example."""
    handle = registry.get("orders", connection_type)
    shown = {name for name in dir(handle) if not name.startswith("__")}
    with_example = {
        name
        for name, value in inspect.getmembers_static(Database, inspect.isfunction)
        if "Example:" in (value.__doc__ or "")
    }
    assert shown == with_example | {"name", "connection_type"} >= PUBLIC
    assert all(hasattr(handle, name) for name in dir(handle))


def test_a_mock_of_a_handle_is_a_context_manager(registry: Registry) -> None:
    """`MagicMock(spec=handle)` can be entered, as programs' own tests do."""
    with MagicMock(spec=registry.get("orders")) as connection:
        connection.execute("SELECT 1")


def test_a_block_of_the_wrong_side_says_so(registry: Registry) -> None:
    """`with` on `cursor()` and `transaction()` of an async handle names the fix."""
    handle: Any = registry.get("orders", "async_pool")
    for block in (handle.cursor(), handle.transaction(), handle.connection()):
        with pytest.raises(WrongSideError, match="use `async with"), block:
            pass
