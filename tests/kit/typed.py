"""What a type checker knows of a handle: `make types` checks this file, and nothing runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow, TupleRow, class_row, dict_row

from pgmonkey import Database, Registry


@dataclass
class Order:
    """A row of an application."""

    item: str


def rows(handle: Database) -> None:
    """The rows of a cursor are those of its row factory."""
    with handle as connection:
        assert_type(connection, Connection[TupleRow])
    with handle.cursor(row_factory=dict_row) as cursor:
        assert_type(cursor.fetchone(), DictRow | None)
    with handle.cursor(2, row_factory=class_row(Order), binary=True) as orders:
        assert_type(orders.fetchall(), list[Order])
    with handle.cursor(name="named") as named:
        assert_type(named.fetchone(), Any | None)


async def rows_of_async_types(registry: Registry) -> None:
    """The same in a coroutine."""
    async with registry.get("events") as connection:
        assert_type(connection, AsyncConnection[TupleRow])
    async with registry["events"].cursor(row_factory=dict_row) as cursor:
        assert_type(await cursor.fetchone(), DictRow | None)


def configure(connection: Connection[Any]) -> None:
    """A function of an application has the type of its side."""


async def configure_async(connection: AsyncConnection[Any]) -> None:
    """The same for async types."""


def configured() -> Registry:
    """Both can be given."""
    registry = Registry("registry.d", configure={"orders": configure, "events": configure_async})
    registry.configure("*", configure)
    return registry
