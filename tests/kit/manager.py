"""Configuration files, and the API of 4.0 that serves them: what its tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgmonkey import PGConnectionManager
from tests.kit.database import TemporaryDatabase

TYPES = ("normal", "pool", "async", "async_pool")
SIZES = {"min_size": 1, "max_size": 4}

Write = Callable[..., Path]


def write_config(directory: Path, content: Mapping[str, Any], name: str = "config.yaml") -> Path:
    """Write a configuration file."""
    path = directory / name
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
    return path


def declare(
    directory: Path,
    database: TemporaryDatabase,
    name: str = "config.yaml",
    connection: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Path:
    """Write the configuration file of a database that exists.

    Args:
        directory: Where.
        database: The database.
        name: The name of the file.
        connection: More connection settings, or others.
        sections: The rest of the file.
    """
    settings = database.parameters() | dict(connection or {})
    return write_config(directory, {"connection_settings": settings, **sections}, name)


@pytest.fixture
def manager(database: TemporaryDatabase) -> Iterator[PGConnectionManager]:
    """A manager, emptied after the test and before the database is looked at."""
    with PGConnectionManager() as manager:
        yield manager


@pytest.fixture
def write(tmp_path: Path, database: TemporaryDatabase) -> Write:
    """Write a configuration file of the database; returns its path."""

    def write(name: str = "config.yaml", **content: Any) -> Path:
        content = {"pool_settings": SIZES, "async_pool_settings": SIZES} | content
        return declare(tmp_path, database, name, **content)

    return write


@pytest.fixture
def config(write: Write) -> Path:
    """A configuration file whose pools have from one to four connections."""
    return write()


@pytest.fixture
def rows(database: TemporaryDatabase) -> Callable[[], list[int]]:
    """A table `rows (id int)`; call it for what a second connection sees in it."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    return lambda: [one for (one,) in database.execute("SELECT id FROM public.rows ORDER BY id")]


def ask(config: Path, connection_type: str, *blocks: list[str], **options: Any) -> list[Any]:
    """Run blocks of statements through a new manager; return the last row of each block.

    Args:
        config: The configuration file.
        connection_type: Any of the four.
        blocks: The statements of each `with`; `ROLLBACK` calls `conn.rollback()`.
        options: More for `get_database_connection`.
    """
    if connection_type in ("normal", "pool"):
        return _ask(config, connection_type, blocks, options)
    return asyncio.run(_ask_async(config, connection_type, blocks, options))


def _ask(config: Path, connection_type: str, blocks: Any, options: Any) -> list[Any]:
    found = []
    with PGConnectionManager() as manager:
        handle = manager.get_database_connection(config, connection_type, **options)
        for statements in blocks:
            row = None
            with handle as connection:
                for statement in statements:
                    if statement == "ROLLBACK":
                        connection.rollback()
                        continue
                    cursor = connection.execute(statement)
                    row = cursor.fetchone() if cursor.description else None
            found.append(row)
    return found


async def _ask_async(config: Path, connection_type: str, blocks: Any, options: Any) -> list[Any]:
    found = []
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(config, connection_type, **options)
        for statements in blocks:
            row = None
            async with handle as connection:
                for statement in statements:
                    if statement == "ROLLBACK":
                        await connection.rollback()
                        continue
                    cursor = await connection.execute(statement)
                    row = await cursor.fetchone() if cursor.description else None
            found.append(row)
    return found
