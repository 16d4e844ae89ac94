"""Tests of applications that use the API of 4.0: `manager.override`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgmonkey import ConfigError, PGConnectionManager
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.manager import TYPES, Write

WHERE = "SELECT current_database()"

#: Ask a manager for the handle of a configuration, and run a statement in a block.
Ask = Callable[..., Any]


@pytest.fixture(params=TYPES)
def connection_type(request: pytest.FixtureRequest) -> str:
    """One of the four types."""
    return str(request.param)


class Application:
    """An application that asks its manager in each call, as recipes of 4.0 do.

    Args:
        manager: The manager.
        config: A path or a dictionary.
        connection_type: One of the four.
    """

    def __init__(self, manager: PGConnectionManager, config: Any, connection_type: str) -> None:
        self.manager = manager
        self.config = config
        self.arguments = (config, connection_type)
        self.runner = asyncio.Runner()

    def run(self, work: Any) -> Any:
        return self.runner.run(work) if inspect.iscoroutine(work) else work

    def handle(self, **options: Any) -> Any:
        get = self.manager.get_database_connection
        if isinstance(self.config, dict):
            get = self.manager.get_database_connection_from_dict
        return self.run(get(*self.arguments, **options))

    def ask(self, statement: str = WHERE) -> Any:
        handle = self.handle()

        async def ask() -> Any:
            async with handle as connection:
                cursor = await connection.execute(statement)
                return (await cursor.fetchone())[0]

        if self.arguments[1].startswith("async"):
            return self.run(ask())
        with handle as connection:
            return connection.execute(statement).fetchone()[0]

    def override(self, **settings: Any) -> Any:
        return self.manager.override(*self.arguments, **settings)


@pytest.fixture(params=["path", "dictionary"])
def application(
    request: pytest.FixtureRequest,
    manager: PGConnectionManager,
    config: Path,
    connection_type: str,
) -> Iterator[Application]:
    """An application that gives a path, or a dictionary."""
    given = config if request.param == "path" else yaml.safe_load(config.read_text())
    application = Application(manager, given, connection_type)
    yield application
    application.run(manager.clear_cache_async())
    application.runner.close()


def place(database: TemporaryDatabase) -> dict[str, Any]:
    return {"dbname": database.name, "user": database.user, "password": database.password}


def test_the_handle_of_the_application_leads_somewhere_else(
    application: Application, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """The object that its calls return is the same before, in and after the block."""
    handle = application.handle()
    assert application.ask() == database.name
    with application.override(**place(other)) as given:
        assert application.handle() is given is handle
        assert application.ask() == other.name
    assert application.handle() is handle
    assert application.ask() == database.name


def test_a_handle_that_was_not_asked_for_yet_is_overridden_too(
    application: Application, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """Nothing has connected to the place of the file before."""
    with application.override(**place(other)) as handle:
        assert not database.backends()
        assert application.ask() == other.name
        assert application.handle() is handle
    assert not database.backends()
    assert application.manager.cache_info["size"] == 1


def test_what_blocks_do_is_rolled_back(
    application: Application, database: TemporaryDatabase, rows: Callable[[], list[int]]
) -> None:
    """Calls in the block connect to nothing, also of the types that connect otherwise."""
    with application.override(rollback=True):
        application.handle()
        assert not database.backends()
        application.ask("INSERT INTO rows VALUES (1) RETURNING id")
        assert application.ask("SELECT count(*) FROM rows") == 1
        assert rows() == []
        assert len(database.backends()) == 1
    assert application.ask("SELECT count(*) FROM rows") == 0


def test_a_file_that_changes_in_the_block_counts_after_it(
    manager: PGConnectionManager,
    write: Write,
    connection_type: str,
    database: TemporaryDatabase,
    other: TemporaryDatabase,
) -> None:
    """In the block its calls return the handle that is overridden; after it what the file says."""
    application = Application(manager, write(), connection_type)
    name = "SHOW application_name"
    handle = application.handle()
    with application.override(**place(other)):
        write(connection={"application_name": "tea"})
        assert application.handle() is handle
        assert (application.ask(name), application.ask()) == ("", other.name)
        assert application.handle(force_reload=True) is handle
        assert (application.ask(name), application.ask()) == ("tea", other.name)
        write(connection={"application_name": "coffee"})
        assert application.ask() == other.name
    assert (application.ask(name), application.ask()) == ("coffee", database.name)
    application.run(manager.clear_cache_async())
    application.runner.close()


def test_clearing_the_cache_keeps_the_override(
    application: Application, database: TemporaryDatabase, other: TemporaryDatabase
) -> None:
    """An application that does so when it shuts down, and asks again, must not get the real place."""
    with application.override(**place(other)) as handle:
        application.ask()
        application.run(application.manager.clear_cache_async())
        assert not other.backends()
        assert application.handle() is handle
        assert application.ask() == other.name
    assert application.ask() == database.name
    application.run(application.manager.clear_cache_async())
    assert application.handle() is not handle


def test_a_configuration_with_problems_raises_them(
    manager: PGConnectionManager, tmp_path: Path, canary: Canary
) -> None:
    """As the calls of the application do; no secret is in the traceback."""
    path = tmp_path / "config.yaml"
    path.write_text("connection_settings: {prot: 1}")
    with pytest.raises(ConfigError, match="prot"):
        manager.override(path)
    secret = canary.secret()
    with pytest.raises(ConfigError) as caught:
        manager.override({"connection_settings": {"password": secret, "prot": 1}})
    for frame in inspect.getinnerframes(caught.value.__traceback__):
        if "/pgmonkey/" in frame.filename:
            canary.check(repr(frame.frame.f_locals), frame.function)
    with pytest.raises(ValueError, match="port"):
        manager.override(path, port="x")
