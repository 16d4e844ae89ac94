"""force_reload: fresh connections for the same handle, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pgmonkey import PGConnectionManager, ReloadRejectedError
from tests.kit import CapturedEvents, TemporaryDatabase, aeventually, eventually
from tests.kit.manager import Write

PID = "SELECT pg_backend_pid()"


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_the_same_handle_gets_new_connections(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """With an unchanged file, new connections replace all old ones, which close."""
    handle = manager.get_database_connection(config, connection_type)
    with handle as connection:
        before = connection.execute(PID).fetchone()

    assert manager.get_database_connection(config, connection_type, force_reload=True) is handle

    with handle as connection:
        assert connection.execute(PID).fetchone() != before
    assert manager.cache_info["size"] == 1
    eventually(lambda: before[0] not in {one["pid"] for one in database.backends()})


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_the_same_async_handle_gets_new_connections(
    config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """The same for async types, at the await."""
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(config, connection_type)
        async with handle as connection:
            before = await (await connection.execute(PID)).fetchone()

        again = await manager.get_database_connection(config, connection_type, force_reload=True)

        assert again is handle
        async with handle as connection:
            assert await (await connection.execute(PID)).fetchone() != before
        await aeventually(lambda: before[0] not in {one["pid"] for one in database.backends()})


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_changed_file_moves_the_handle_and_leaves_nothing_behind(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase, connection_type: str
) -> None:
    """The handle that the path gave runs what the file says now; nothing stays cached."""
    statement = "SELECT current_setting('application_name')"
    config = write(connection={"application_name": "first"})
    handle = manager.get_database_connection(config, connection_type)
    with handle as connection:
        assert connection.execute(statement).fetchone() == ("first",)
    write(connection={"application_name": "second"})

    # However the call is spelled: by a relative path, and with the type from elsewhere.
    assert manager.get_database_connection(str(config), connection_type, True) is handle

    with handle as connection:
        assert connection.execute(statement).fetchone() == ("second",)
    assert manager.cache_info["size"] == 1
    assert manager.get_database_connection(config, connection_type) is handle
    eventually(lambda: {one["application_name"] for one in database.backends()} == {"second"})


def test_the_handle_is_found_however_the_call_is_spelled(
    manager: PGConnectionManager, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path may be relative and the type may come from the file: it is the same handle."""
    config = write(connection_type="pool", description="first")
    handle = manager.get_database_connection(config)
    write(connection_type="pool", description="second")
    monkeypatch.chdir(config.parent)

    assert manager.get_database_connection(config.name, "pool", force_reload=True) is handle
    assert manager.get_database_connection(config) is handle
    assert manager.cache_info["size"] == 1


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_refused_login_keeps_the_good_connection(
    manager: PGConnectionManager, write: Write, connection_type: str
) -> None:
    """What cannot connect replaces nothing; the error has the server's reason."""
    config = write()
    handle = manager.get_database_connection(config, connection_type)
    with handle as connection:
        before = connection.execute(PID).fetchone()
    write(connection={"password": "not-the-password"})

    with pytest.raises(ReloadRejectedError, match="password authentication failed") as caught:
        manager.get_database_connection(config, connection_type, force_reload=True)

    assert caught.value.reason == "auth"
    with handle as connection:
        assert connection.execute(PID).fetchone() == before
    assert manager.cache_info["size"] == 1
    write()
    assert manager.get_database_connection(config, connection_type) is handle


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_a_refused_login_keeps_the_good_async_connection(
    write: Write, connection_type: str
) -> None:
    """The same for async types."""
    config = write()
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(config, connection_type)
        async with handle as connection:
            before = await (await connection.execute(PID)).fetchone()
        write(connection={"password": "not-the-password"})

        with pytest.raises(ReloadRejectedError, match="password authentication failed"):
            await manager.get_database_connection(config, connection_type, force_reload=True)

        async with handle as connection:
            assert await (await connection.execute(PID)).fetchone() == before


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_query_under_way_is_not_disturbed(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """A reload during another thread's query fails neither the query nor its transaction."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    handle = manager.get_database_connection(config, connection_type)
    database.execute("SELECT pg_advisory_lock(27)")  # the superuser's connection is not kept
    guard = database.connect()
    guard.execute("SELECT pg_advisory_lock(27)")

    def work() -> None:
        with handle as connection:
            connection.execute("INSERT INTO rows VALUES (1)")
            connection.execute("SELECT pg_advisory_xact_lock(27)")
            connection.execute("INSERT INTO rows VALUES (2)")

    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work)
        eventually(
            lambda: any("advisory_xact" in one["query"] for one in database.backends()),
            message="the query waits",
        )
        manager.get_database_connection(config, connection_type, force_reload=True)
        assert not working.done()
        guard.execute("SELECT pg_advisory_unlock(27)")
        working.result(10)

    assert database.execute("SELECT count(*) FROM public.rows") == [(2,)]
    guard.close()
    manager.clear_cache()
    eventually(lambda: database.backends() == [], message="the old connection closed on return")


def test_a_kept_reference_goes_on_with_the_new_connections(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase
) -> None:
    """The application that keeps `self.pool` gets the new pool, and clear_cache closes all."""
    kept = manager.get_database_connection(config, "pool")
    with kept as connection:
        before = connection.execute(PID).fetchone()
    manager.get_database_connection(config, "pool", force_reload=True)
    with kept as connection:
        assert connection.execute(PID).fetchone() != before

    manager.clear_cache()

    eventually(lambda: database.backends() == [], message="nothing survives clear_cache")


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_eight_concurrent_reloads_leave_no_connection_behind(
    manager: PGConnectionManager,
    config: Path,
    database: TemporaryDatabase,
    events: CapturedEvents,
    connection_type: str,
) -> None:
    """They share their results, and what they replaced is closed."""
    handle = manager.get_database_connection(config, connection_type)
    with handle:
        pass
    barrier = threading.Barrier(8)

    def reload(_number: int) -> object:
        barrier.wait()
        return manager.get_database_connection(config, connection_type, force_reload=True)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(reload, range(8))) == {handle}

    assert 1 <= len(events.named("database.rotated")) <= 8
    manager.clear_cache()
    eventually(lambda: database.backends() == [], message="no connection is left behind")


async def test_eight_concurrent_async_reloads_share_one(
    config: Path, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """The same for tasks."""
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(config, "async_pool")
        async with handle:
            pass

        again = await asyncio.gather(
            *(
                manager.get_database_connection(config, "async_pool", force_reload=True)
                for _ in range(8)
            )
        )

        assert set(again) == {handle}
        assert len(events.named("database.rotated")) == 1
    await aeventually(lambda: database.backends() == [], message="no connection is left behind")


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_reload_that_comes_first_opens(
    manager: PGConnectionManager, config: Path, connection_type: str
) -> None:
    """With nothing to replace, force_reload gives what a plain call gives."""
    handle = manager.get_database_connection(config, connection_type, force_reload=True)

    assert handle is manager.get_database_connection(config, connection_type)
    with handle as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_another_file_with_equal_contents_is_not_moved_along(
    manager: PGConnectionManager, write: Write
) -> None:
    """Equal files share a handle; when one of them changes, the other one's stays what it is."""
    statement = "SELECT current_setting('application_name')"
    ours = write("ours.yaml", connection={"application_name": "same"})
    theirs = write("theirs.yaml", connection={"application_name": "same"})
    shared = manager.get_database_connection(ours, "pool")
    assert manager.get_database_connection(theirs, "pool") is shared
    write("ours.yaml", connection={"application_name": "changed"})

    moved = manager.get_database_connection(ours, "pool", force_reload=True)

    with moved as connection:
        assert connection.execute(statement).fetchone() == ("changed",)
    with shared as connection:
        assert connection.execute(statement).fetchone() == ("same",)
    assert manager.get_database_connection(theirs, "pool") is shared
    assert manager.get_database_connection(ours, "pool") is moved


def test_a_reload_onto_the_configuration_of_another_handle_loses_neither(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase
) -> None:
    """When a file goes back to values that an older handle still runs, both close with the cache."""
    config = write(description="first")
    first = manager.get_database_connection(config, "pool")
    write(description="second")
    second = manager.get_database_connection(config, "pool")
    write(description="first")

    assert manager.get_database_connection(config, "pool", force_reload=True) is second

    assert manager.get_database_connection(config, "pool") is second
    assert manager.cache_info["size"] == 2
    for handle in (first, second):
        with handle as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    manager.clear_cache()
    eventually(lambda: database.backends() == [], message="both are closed")


def test_a_dictionary_is_reloaded_too(
    manager: PGConnectionManager, database: TemporaryDatabase
) -> None:
    """An equal dictionary gives the handle whose connections are replaced."""
    content = {"connection_type": "pool", "connection_settings": database.parameters()}
    handle = manager.get_database_connection_from_dict(content)
    with handle as connection:
        before = connection.execute(PID).fetchone()

    assert manager.get_database_connection_from_dict(dict(content), force_reload=True) is handle

    with handle as connection:
        assert connection.execute(PID).fetchone() != before


def test_a_rotated_secret_is_taken_up_by_the_handle_that_the_application_keeps(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """After a rotation, force_reload gives the kept handle the new password; one pool, not two."""
    secret = tmp_path / "password"
    secret.write_text(database.password, encoding="utf-8")
    config = write(connection={"password": {"from_file": str(secret)}})
    kept = manager.get_database_connection(config, "pool", resolve_env=True)
    with kept:
        pass
    for _ in range(3):
        secret.write_text(database.rotate(), encoding="utf-8")
        manager.get_database_connection(config, "pool", force_reload=True, resolve_env=True)

    with kept, kept, kept as connection:  # two of them are made now
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert manager.cache_info["size"] == 1
    assert len(database.backends()) <= 4


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_reload_inside_of_a_block_waits_for_nobody(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """The block's own transaction goes on and commits; what it held closes when it ends."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    handle = manager.get_database_connection(config, connection_type)
    with handle as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        before = connection.info.backend_pid
        for _ in range(3):
            manager.get_database_connection(config, connection_type, force_reload=True)
        connection.execute("INSERT INTO rows VALUES (2)")

    assert database.execute("SELECT count(*) FROM public.rows") == [(2,)]
    with handle as connection:
        assert connection.info.backend_pid != before


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_a_reload_inside_of_an_async_block_waits_for_nobody(
    config: Path, database: TemporaryDatabase, connection_type: str
) -> None:
    """The same for async types."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    async with PGConnectionManager() as manager:
        handle = await manager.get_database_connection(config, connection_type)
        async with handle as connection:
            await connection.execute("INSERT INTO rows VALUES (1)")
            before = connection.info.backend_pid
            for _ in range(3):
                await manager.get_database_connection(config, connection_type, force_reload=True)
            await connection.execute("INSERT INTO rows VALUES (2)")

        assert database.execute("SELECT count(*) FROM public.rows") == [(2,)]
        async with handle as connection:
            assert connection.info.backend_pid != before


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
def test_a_reload_that_ends_with_its_loop_replaces_nothing(
    manager: PGConnectionManager, write: Write, connection_type: str
) -> None:
    """What it would have moved to was never proved: the next loop has what ran before."""
    config = write()

    async def give(force_reload: bool = False) -> Any:
        return await manager.get_database_connection(config, connection_type, force_reload)

    async def begin() -> None:
        async with await manager.get_database_connection(config, connection_type):
            pass
        write(connection={"password": "wrong"})
        reloading = asyncio.create_task(give(force_reload=True))
        await asyncio.sleep(0)
        assert not reloading.done()

    async def use() -> None:
        async with handle as connection:
            assert (await (await connection.execute("SELECT 1")).fetchone()) == (1,)

    handle = asyncio.run(give())
    asyncio.run(begin())
    asyncio.run(use())


async def test_a_reload_that_is_cancelled_goes_on_for_those_who_share_it(
    config: Path, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Only the last one of those who wait for a reload takes it back."""
    async with PGConnectionManager() as manager:
        async with await manager.get_database_connection(config, "async_pool"):
            pass
        first, second = (
            asyncio.create_task(
                manager.get_database_connection(config, "async_pool", force_reload=True)
            )
            for _ in range(2)
        )
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first, second])

        assert first.cancelled()
        assert second.exception() is None
        assert len(events.named("database.rotated")) == 1
    await aeventually(lambda: database.backends() == [], message="no connection is left behind")
