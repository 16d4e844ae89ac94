"""Child processes: they forget the parent's connections without touching them, and use their own."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
from multiprocessing import resource_tracker
from typing import Any

import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.registry.steps import Pause


def backend(registry: Registry, name: str = "orders") -> int:
    with registry.get(name) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("connection_type", ["pool", "normal"])
def test_a_child_has_connections_of_its_own_and_leaves_the_parents_alone(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """After a fork both sides work, on different backends, also when the child closes its own."""
    registry_dir.declare("orders", database, connection_type)
    with Registry(registry_dir, metrics=None) as registry:
        before = backend(registry)

        def child() -> int:
            mine = backend(registry)
            registry.close()
            return mine

        assert in_a_child(child) != before
        assert backend(registry) == before


def test_a_child_that_is_forked_inside_a_block_does_not_disturb_it(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The parent's open transaction survives a child that uses the same handle, and commits."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 2})
    with Registry(registry_dir, metrics=None) as registry:
        handle = registry.get("orders")
        with handle as connection:
            connection.execute("INSERT INTO rows VALUES (1)")

            def child() -> None:
                with handle as mine:
                    mine.execute("INSERT INTO rows VALUES (2)")

            in_a_child(child)
            connection.execute("INSERT INTO rows VALUES (3)")

        assert sorted(row[0] for row in database.execute("SELECT id FROM public.rows")) == [1, 2, 3]


def test_a_child_watches_the_files_itself(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, volume: SecretVolume
) -> None:
    """A rotation reaches a child process too: its watcher starts at its first use."""
    registry_dir.declare("orders", database, volume=volume)
    with Registry(registry_dir, metrics=None) as registry:
        backend(registry)

        def child() -> list[str]:
            first = backend(registry)
            seen = ["used"]
            database.rotate()
            write_credentials(volume, database)
            eventually(lambda: backend(registry) != first, 10, "the child rotates")
            seen.append("rotated")
            return seen

        assert in_a_child(child) == ["used", "rotated"]


def test_a_child_that_is_forked_in_the_middle_of_a_reload_finishes_it_for_itself(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The thread that was probing is not in the child, and the locks that it held are new there."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None) as registry:
        backend(registry)
        with Pause(registry.get("orders"), "prepared") as pause:
            registry_dir.declare("orders", database, connection={"application_name": "v2"})
            pause.wait()

            def child() -> list[str]:
                pause.go_on()

                def seen() -> str:
                    with registry.get("orders") as connection:
                        row = connection.execute("SHOW application_name").fetchone()
                    assert row is not None
                    return str(row[0])

                seen()
                eventually(lambda: seen() == "v2", 10, "the child applies what is written")
                return [seen(), *registry.reload().unchanged]

            assert in_a_child(child) == ["v2", "orders"]
        eventually(lambda: registry.status().databases[0].version == 2, 10, "so does the parent")


def test_an_async_handle_works_in_a_child(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A child may run a loop of its own on a handle that the parent's loop has used."""
    registry_dir.declare("events", database, "async_pool")
    with Registry(registry_dir, metrics=None) as registry:
        handle: Any = registry.get("events")

        async def use() -> int:
            async with handle as connection:
                cursor = await connection.execute("SELECT pg_backend_pid()")
                pid = (await cursor.fetchone())[0]
            await handle.close()
            return int(pid)

        assert asyncio.run(use()) != in_a_child(lambda: asyncio.run(use()))
        asyncio.run(use())


def _spawned(directory: str, results: Any) -> None:
    with Registry(directory, metrics=None) as registry:
        results.send(backend(registry))


def test_a_registry_says_how_to_get_into_a_spawned_process(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Pickling a registry or a handle is refused with what to do; a spawned process makes its own."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None) as registry:
        with pytest.raises(TypeError, match="make one in the other process"):
            pickle.dumps(registry)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(registry.get("orders"))
        parent = backend(registry)

        context = multiprocessing.get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_spawned, args=(str(registry_dir), sending))
        process.start()
        assert receiving.poll(20)
        child = receiving.recv()
        process.join(20)
        receiving.close()
        sending.close()
        # multiprocessing keeps a process for its resources until the program ends.
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]  # the only way

        assert process.exitcode == 0
        assert child != parent


def test_a_child_reports_that_it_starts_anew(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """The first use in a child process makes one event, in the child only."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None) as registry:
        backend(registry)

        def child() -> list[str]:
            backend(registry)
            backend(registry)
            return [name for name in events.names if name == "fork.detected"]

        assert in_a_child(child) == ["fork.detected"]
        assert "fork.detected" not in events.names
