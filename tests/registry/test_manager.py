"""PGConnectionManager: one handle for each configuration and type."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from pgmonkey import (
    ConfigError,
    ConnectError,
    EnvInterpolationError,
    PGConnectionManager,
    load_config,
)
from pgmonkey.config import loader
from tests.kit import Canary, CapturedEvents, ChaosProxy, TemporaryDatabase, eventually
from tests.kit.manager import Write

TYPES = ("normal", "pool", "async", "async_pool")


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_sync_type_gives_the_same_handle_every_time(
    manager: PGConnectionManager, config: Path, connection_type: str
) -> None:
    """Equal arguments give one object; its `with` yields psycopg's own connection."""
    handle = manager.get_database_connection(config, connection_type)

    assert manager.get_database_connection(str(config), connection_type) is handle
    with handle as connection:
        assert isinstance(connection, psycopg.Connection)
    assert manager.get_database_connection(config, connection_type) is handle


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_an_async_type_gives_a_coroutine_of_the_same_handle(
    config: Path, connection_type: str
) -> None:
    """Async types are awaited, on a cache hit too, and give one object."""
    async with PGConnectionManager() as manager:
        first = manager.get_database_connection(config, connection_type)
        assert inspect.iscoroutine(first)
        handle = await first
        again = manager.get_database_connection(config, connection_type)
        assert inspect.iscoroutine(again)

        assert await again is handle
        async with handle as connection:
            assert isinstance(connection, psycopg.AsyncConnection)


def test_the_file_names_the_type_and_the_argument_overrides_it(
    manager: PGConnectionManager, write: Write
) -> None:
    """`connection_type` of the file is the default, `normal` if there is none; each type has a handle."""
    pooled = write("pooled.yaml", connection_type="pool")
    plain = write("plain.yaml")

    assert manager.get_database_connection(pooled).connection_type == "pool"
    assert manager.get_database_connection(plain).connection_type == "normal"
    normal = manager.get_database_connection(pooled, "normal")
    assert normal.connection_type == "normal"
    assert normal is not manager.get_database_connection(pooled)
    assert manager.get_database_connection(pooled, "pool") is manager.get_database_connection(
        pooled
    )


@pytest.mark.parametrize("wrong", ["Pool", "asyncpool", ""])
def test_an_unknown_type_is_refused_with_the_valid_ones(
    manager: PGConnectionManager, config: Path, wrong: str
) -> None:
    """`ValueError` names the four types."""
    with pytest.raises(ValueError, match="normal, pool, async, async_pool"):
        manager.get_database_connection(config, wrong)
    with pytest.raises(ValueError, match="normal, pool, async, async_pool"):
        manager.get_database_connection_from_dict({"connection_settings": {}}, wrong)


def test_a_dictionary_shares_the_handle_of_an_equal_file(
    manager: PGConnectionManager, config: Path
) -> None:
    """What counts is the resolved configuration, however it is written and wherever it is from."""
    settings = load_config(config)
    settings["connection_settings"]["port"] = str(settings["connection_settings"]["port"])

    handle = manager.get_database_connection_from_dict(settings, "pool")

    assert manager.get_database_connection_from_dict(settings, "pool") is handle
    assert manager.get_database_connection(config, "pool") is handle
    assert manager.cache_info["size"] == 1


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_twenty_threads_that_ask_first_make_one_pool(
    manager: PGConnectionManager,
    config: Path,
    database: TemporaryDatabase,
    events: CapturedEvents,
    connection_type: str,
) -> None:
    """Single flight: one handle, one pool, and no connection more than its size."""
    barrier = threading.Barrier(20)

    def ask(_number: int) -> object:
        barrier.wait()
        handle = manager.get_database_connection(config, connection_type)
        with handle as connection:
            connection.execute("SELECT 1")
        return handle

    with ThreadPoolExecutor(20) as threads:
        handles = set(threads.map(ask, range(20)))

    assert len(handles) == 1
    assert len(events.named("database.opened")) == 1
    assert handles.pop().status().connect_attempts <= 4  # type: ignore[attr-defined]  # of a set of objects
    assert len(database.backends()) <= 4


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_twenty_tasks_that_ask_first_make_one_pool(
    config: Path, database: TemporaryDatabase, events: CapturedEvents, connection_type: str
) -> None:
    """Single flight among the tasks of one loop."""
    async with PGConnectionManager() as manager:

        async def ask() -> object:
            handle = await manager.get_database_connection(config, connection_type)
            async with handle as connection:
                await connection.execute("SELECT 1")
            return handle

        handles = set(await asyncio.gather(*(ask() for _ in range(20))))

        assert len(handles) == 1
        assert len(events.named("database.opened")) == 1
        assert len(database.backends()) <= 4


@pytest.mark.parametrize("connection_type", ["normal", "async"])
def test_one_connection_is_made_in_the_call_and_its_error_is_the_servers(
    manager: PGConnectionManager, write: Write, connection_type: str
) -> None:
    """`normal` and `async` raise the server's reason where the handle is asked for, and cache nothing."""
    config = write(connection={"password": "not-the-password"})

    async def ask_async() -> None:
        await manager.get_database_connection(config, connection_type)

    for _ in range(2):
        with pytest.raises(psycopg.OperationalError, match="password authentication") as caught:
            if connection_type == "normal":
                manager.get_database_connection(config, connection_type)
            else:
                asyncio.run(ask_async())
        assert isinstance(caught.value, ConnectError)
        assert caught.value.reason == "auth"
        assert manager.cache_info["size"] == 0


def test_a_pool_that_cannot_connect_says_so_at_its_first_checkout(
    manager: PGConnectionManager, write: Write
) -> None:
    """The first block raises the server's reason at once instead of a bare timeout."""
    pool = manager.get_database_connection(write(connection={"password": "wrong"}), "pool")

    with pytest.raises(ConnectError, match="password authentication failed"), pool:
        pass


def test_a_silent_server_holds_up_nobody_who_asks_for_another_one(
    manager: PGConnectionManager, write: Write, proxy: ChaosProxy
) -> None:
    """While one configuration is being connected or closed, calls for others go on."""
    good = write("good.yaml")
    silent = write("silent.yaml", connection={"host": proxy.host, "port": proxy.port}, timeout=40)
    proxy.set("blackhole")

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(manager.get_database_connection, silent, "normal")
        eventually(lambda: proxy.accepted > 0, message="the silent server was asked")
        with manager.get_database_connection(good, "normal") as connection:
            connection.execute("SELECT 1")
        assert not waiting.done()
        other = PGConnectionManager()
        with other.get_database_connection(good, "pool") as connection:
            connection.execute("SELECT 1")
        other.clear_cache()
        assert not waiting.done()
        proxy.kill()
        with pytest.raises(ConnectError):
            waiting.result()
    proxy.set("pass")


def test_errors_of_a_file_are_raised_at_the_call_also_for_async_types(
    manager: PGConnectionManager, tmp_path: Path
) -> None:
    """What is wrong with a file shows before anything is awaited."""
    with pytest.raises(FileNotFoundError):
        manager.get_database_connection(tmp_path / "missing.yaml", "async")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("connection_setings: {}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean"):
        manager.get_database_connection(wrong, "async")
    wrong.write_text("connection_settings: {host: '${NOT_SET_ANYWHERE}'}\n", encoding="utf-8")
    with pytest.raises(EnvInterpolationError, match="NOT_SET_ANYWHERE"):
        manager.get_database_connection(wrong, "async", resolve_env=True)


def test_cache_info_counts_and_says_nothing_of_secrets(
    manager: PGConnectionManager, config: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """One entry for each handle, whose name differs from process to process."""
    assert manager.cache_info == {"size": 0, "connection_types": {}}
    manager.get_database_connection(config, "normal")
    manager.get_database_connection(config, "pool")

    info = manager.cache_info

    assert info["size"] == 2
    assert sorted(info["connection_types"].values()) == ["normal", "pool"]
    canary.check(repr(info))
    canary.check(repr(vars(manager)))


def test_a_cached_call_parses_nothing_and_sees_what_changed(
    manager: PGConnectionManager, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A repeated call reads no YAML; a changed file, variable or secret file gives a new handle."""
    secret = tmp_path / "secret"
    secret.write_text("first\n", encoding="utf-8")
    monkeypatch.setenv("APP_NAME", "first")

    def write_it(**content: object) -> Path:
        return write(
            connection={
                "application_name": "${APP_NAME}",
                "sslpassword": {"from_file": str(secret)},
            },
            **content,
        )

    def get() -> object:
        return manager.get_database_connection(config, "pool", resolve_env=True)

    config = write_it()
    first = get()
    parsed = []
    read = loader.load_bytes
    monkeypatch.setattr(
        loader, "load_bytes", lambda *args, **kwargs: parsed.append(1) or read(*args, **kwargs)
    )
    assert get() is first
    assert parsed == []

    write_it(description="another one")
    second = get()
    assert second is not first
    monkeypatch.setenv("APP_NAME", "second")
    third = get()
    assert third is not second
    secret.write_text("second\n", encoding="utf-8")
    fourth = get()
    assert fourth is not third
    assert get() is fourth
    assert len(parsed) == 3
    assert manager.cache_info["size"] == 4, "as 4.0 says, the old ones stay until they are cleared"


def test_going_back_to_old_values_goes_back_to_the_old_handle(
    manager: PGConnectionManager, write: Write
) -> None:
    """The key is what the file says, so an edit that is undone gives the handle from before."""
    config = write()
    first = manager.get_database_connection(config, "pool")
    write(description="edited")
    manager.get_database_connection(config, "pool")
    write()

    assert manager.get_database_connection(config, "pool") is first


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_file_that_is_removed_after_start_breaks_no_open_handle(
    manager: PGConnectionManager, config: Path, connection_type: str
) -> None:
    """The handle goes on, and the same call goes on giving it; another manager says what is wrong."""
    handle = manager.get_database_connection(config, connection_type)
    config.unlink()

    assert manager.get_database_connection(config, connection_type) is handle
    with handle as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(FileNotFoundError):
        PGConnectionManager().get_database_connection(config, connection_type)


def test_a_secret_file_that_is_gone_for_a_moment_breaks_no_open_handle(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """While a secret is being replaced, the call gives what it gave before."""
    secret = tmp_path / "password"
    secret.write_text(database.password, encoding="utf-8")
    config = write(connection={"password": {"from_file": str(secret)}})
    handle = manager.get_database_connection(config, "pool", resolve_env=True)
    secret.unlink()

    assert manager.get_database_connection(config, "pool", resolve_env=True) is handle


def test_references_stay_verbatim_unless_asked_for(
    manager: PGConnectionManager, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `resolve_env` the text is what the file says; with it, what the variable says."""
    monkeypatch.setenv("APP_NAME", "resolved")
    config = write(connection={"application_name": "${APP_NAME}"})
    statement = "SELECT current_setting('application_name')"

    with manager.get_database_connection(config, "normal") as connection:
        assert connection.execute(statement).fetchone() == ("${APP_NAME}",)
    with manager.get_database_connection(config, "normal", resolve_env=True) as connection:
        assert connection.execute(statement).fetchone() == ("resolved",)


def test_a_sensitive_default_is_refused_until_it_is_allowed(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase
) -> None:
    """`${NAME:-default}` of a password needs `allow_sensitive_defaults`."""
    config = write(connection={"password": "${NOT_SET_ANYWHERE:-" + database.password + "}"})

    with pytest.raises(EnvInterpolationError, match="default"):
        manager.get_database_connection(config, resolve_env=True)
    with manager.get_database_connection(
        config, resolve_env=True, allow_sensitive_defaults=True
    ) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_old_wrapper_is_unwrapped_with_a_warning(
    manager: PGConnectionManager, tmp_path: Path, database: TemporaryDatabase
) -> None:
    """Files of 2.x, with everything under `postgresql:`, still work, and say that they are old."""
    old = {"postgresql": {"connection_settings": database.parameters()}}

    with pytest.warns(DeprecationWarning, match="postgresql") as caught:
        handle = manager.get_database_connection_from_dict(old, "normal")

    assert caught[0].filename == __file__
    with handle as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_twenty_threads_that_cannot_connect_get_an_error_each(
    manager: PGConnectionManager, write: Write, database: TemporaryDatabase
) -> None:
    """All hear the server's reason; the server is asked once or twice, not twenty times."""
    config = write(connection={"password": "not-the-password"})
    barrier = threading.Barrier(20)

    def ask(_number: int) -> BaseException:
        barrier.wait()
        with pytest.raises(ConnectError, match="password authentication failed") as caught:
            manager.get_database_connection(config, "normal")
        return caught.value

    with ThreadPoolExecutor(20) as threads:
        errors = list(threads.map(ask, range(20)))

    assert len({id(error) for error in errors}) == 20
    assert manager.cache_info["size"] == 0
    refused = database.server.log_text().count(f'authentication failed for user "{database.user}"')
    assert 1 <= refused <= 5
