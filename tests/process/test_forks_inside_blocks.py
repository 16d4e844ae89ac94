"""Blocks that a parent process entered and a forked child leaves: the child touches nothing of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory

NOTHING = (None, None, None)
FAILED = (ValueError, ValueError("it failed"), None)

#: The ways to enter a block of a handle.
WAYS: dict[str, Callable[[Any], Any]] = {
    "connection": lambda handle: handle.connection(),
    "transaction": lambda handle: handle.transaction(),
    "cursor": lambda handle: handle.cursor(),
}


@pytest.fixture
def rows(database: TemporaryDatabase) -> Callable[[], list[int]]:
    """A table `rows (id int)`; call it for what a second connection sees in it."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    return lambda: [one for (one,) in database.execute("SELECT id FROM public.rows ORDER BY id")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("connection_type", ["pool", "normal"])
@pytest.mark.parametrize("child_end", [NOTHING, FAILED], ids=["child succeeds", "child fails"])
@pytest.mark.parametrize("parent_end", [NOTHING, FAILED], ids=["parent succeeds", "parent fails"])
def test_what_a_child_leaves_is_ended_by_its_parent(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    rows: Callable[[], list[int]],
    connection_type: str,
    way: str,
    child_end: Any,
    parent_end: Any,
) -> None:
    """The child neither commits nor rolls back: the parent's own end decides, and it goes on."""
    registry_dir.declare("orders", database, connection_type)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        block = WAYS[way](handle)
        block.__enter__().execute("INSERT INTO rows VALUES (1)")

        def child() -> list[int]:
            with suppress(ValueError):
                block.__exit__(*child_end)
            with handle as connection:  # and it goes on with a connection of its own
                found = connection.execute("SELECT id FROM rows").fetchall()
            registry.close()
            return [one for (one,) in found]

        assert in_a_child(child) == []
        assert rows() == []
        with suppress(ValueError):
            block.__exit__(*parent_end)
        assert rows() == ([1] if parent_end is NOTHING else [])
        with handle as connection:
            connection.execute("INSERT INTO rows VALUES (2)")
        assert 2 in rows()


@pytest.mark.parametrize("connection_type", ["pool", "normal"])
def test_a_child_that_runs_on_to_the_end_of_the_block_leaves_it_to_the_parent(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    rows: Callable[[], list[int]],
    connection_type: str,
) -> None:
    """A fork in the middle of `with`: both processes run out of it, and the parent rolls back."""
    registry_dir.declare("orders", database, connection_type)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")

        def fork_and_run_on() -> None:
            in_child = False

            def child() -> None:
                nonlocal in_child
                in_child = True
                next(leave, None)

            def hold() -> Any:
                with handle as connection:
                    connection.execute("INSERT INTO rows VALUES (1)")
                    yield
                    if not in_child:
                        raise ValueError("only the parent's block fails")

            leave = hold()
            next(leave)
            in_a_child(child)
            with suppress(ValueError):
                next(leave, None)

        fork_and_run_on()
        assert rows() == []


@pytest.mark.parametrize("connection_type", ["async_pool", "async"])
@pytest.mark.parametrize("child_end", [NOTHING, FAILED], ids=["child succeeds", "child fails"])
@pytest.mark.parametrize("parent_end", [NOTHING, FAILED], ids=["parent succeeds", "parent fails"])
async def test_what_a_child_leaves_is_ended_by_the_task_of_its_parent(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    rows: Callable[[], list[int]],
    connection_type: str,
    child_end: Any,
    parent_end: Any,
) -> None:
    """The same for `async with`."""
    registry_dir.declare("orders", database, connection_type)
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        block = handle.connection()
        connection = await block.__aenter__()
        await connection.execute("INSERT INTO rows VALUES (1)")

        async def leave() -> None:
            with suppress(ValueError):
                await block.__aexit__(*child_end)

        in_a_child(lambda: asyncio.run(leave()))
        assert await asyncio.to_thread(rows) == []
        with suppress(ValueError):
            await block.__aexit__(*parent_end)
        assert await asyncio.to_thread(rows) == ([1] if parent_end is NOTHING else [])
        async with handle as connection:
            await connection.execute("INSERT INTO rows VALUES (2)")
        assert 2 in await asyncio.to_thread(rows)


@pytest.mark.parametrize("connection_type", ["pool", "normal"])
def test_a_transaction_of_psycopgs_own_is_not_ended_by_a_child(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    rows: Callable[[], list[int]],
    connection_type: str,
) -> None:
    """`conn.transaction()` inside of a block: what the child does with it reaches no server."""
    registry_dir.declare("orders", database, connection_type)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")

        def child(connection: Any, transaction: Any) -> str:
            with pytest.raises(psycopg.OperationalError):
                connection.execute("INSERT INTO rows VALUES (2)")
            with suppress(psycopg.OperationalError):
                transaction.__exit__(*NOTHING)
            return "left"

        with suppress(ValueError), handle as connection:
            transaction = connection.transaction()
            transaction.__enter__()
            connection.execute("INSERT INTO rows VALUES (1)")
            assert in_a_child(lambda: child(connection, transaction)) == "left"
            assert rows() == []
            connection.execute("INSERT INTO rows VALUES (3)")
            transaction.__exit__(*NOTHING)
        assert rows() == [1, 3]


def test_the_sessions_of_a_parent_that_is_killed_end_though_its_child_lives_on(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A child keeps no socket of its parent open, with a transaction and its locks."""
    registry_dir.declare("orders", database)
    telling, told = os.pipe()
    going_on, go_on = os.pipe()

    def child() -> None:
        os.close(go_on)
        os.write(told, b"forked")
        os.read(going_on, 1)  # until the test ends

    def parent() -> None:
        with Registry(registry_dir, metrics=None, watch=False) as registry:
            with registry.get("orders") as connection:
                connection.execute("SELECT 1")
                if os.fork() == 0:
                    child()
                    os._exit(0)
                signal.pause()

    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            parent()
        finally:
            os._exit(1)
    try:
        assert os.read(telling, 6) == b"forked"
        assert len(database.backends()) == 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        eventually(lambda: database.backends() == [], 10, "its session has ended")
    finally:
        for end in (telling, told, going_on, go_on):
            os.close(end)
