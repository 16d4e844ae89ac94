"""Files that cannot be used: the last good configuration serves, and the event says where."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any, Self

import prometheus_client
import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.pool.side import Client


class Reader:
    """Read from a database all the time, in a few threads, and keep the errors."""

    def __init__(self, registry: Registry, name: str) -> None:
        self._handle = registry.get(name)
        self._stop = threading.Event()
        self.errors: list[BaseException] = []
        self.done = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._handle as connection:
                    connection.execute("SELECT 1").fetchone()
            except BaseException as error:
                self.errors.append(error)
            self.done += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_bad_files_one_after_the_other_fail_no_query_and_are_mended_by_themselves(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
) -> None:
    """Broken YAML, an emptied file, a missing secret, a wrong password: last good keeps serving.

    Each one makes `pgmonkey_config_stale` 1 and one event that names file, line, key and code;
    each mending is applied without a restart.
    """
    numbers = prometheus_client.CollectorRegistry()
    good = registry_dir.declare(
        "orders", database, volume=volume, pool_settings={"min_size": 1, "max_size": 4}
    ).read_text()

    def stale() -> Any:
        return numbers.get_sample_value("pgmonkey_config_stale", {"database": "orders"})

    def bad_yaml() -> None:
        registry_dir.write("orders", good + "\npooler: [unclosed\n")

    def emptied() -> None:
        registry_dir.write_in_place("orders", "")

    def missing_secret() -> None:
        volume.write({"username": database.user})

    def wrong_password() -> None:
        volume.write({"username": database.user, "password": "not-the-password"})

    def mend_file() -> None:
        registry_dir.write("orders", good)

    def mend_secret() -> None:
        write_credentials(volume, database)

    def line_of(text: str) -> int:
        return next(number for number, one in enumerate(good.splitlines(), 1) if text in one)

    password = "connection_settings.password"
    secret_line = line_of(str(volume.path("password")))
    cases: list[tuple[Callable[[], None], Callable[[], None], str, str | None, int | None]] = [
        (bad_yaml, mend_file, "config.syntax", None, len(good.splitlines()) + 3),
        (emptied, mend_file, "config.empty", None, None),  # there is no line to name
        (missing_secret, mend_secret, "secret.missing", f"{password}.from_file", secret_line),
        (wrong_password, mend_secret, "probe.auth", password, secret_line),
    ]
    with (
        Registry(registry_dir, metrics=numbers, removal_delay=0.3) as registry,
        Reader(registry, "orders") as reader,
    ):
        eventually(lambda: reader.done > 10, 10, "the load is on")
        assert stale() == 0
        for spoil, mend, code, key, line in cases:
            events.clear()
            spoil()
            rejected = events.wait("config.rejected", database="orders")
            assert rejected["file"] == str(registry_dir.file("orders")), spoil.__name__
            said = (rejected["code"], rejected.get("key"), rejected.get("line"))
            assert said == (code, key, line), spoil.__name__
            eventually(lambda: stale() == 1, 5, "the database is stale")
            status = registry.status()
            assert status.databases[0].state == "stale"
            assert status.databases[0].problems
            assert not status.last_reload_successful
            done = reader.done
            eventually(lambda done=done: reader.done > done + 50, 10, "the load goes on")

            mend()
            eventually(lambda: stale() == 0, 10, f"{spoil.__name__} is mended")
            assert registry.status().last_reload_successful
            assert len(events.named("config.rejected")) == 1, "the same content is reported once"

        assert reader.errors == []
    reloads = numbers.get_sample_value(
        "pgmonkey_config_reloads_total", {"database": "orders", "outcome": "rejected"}
    )
    assert reloads is None or reloads == 4


def test_an_unset_variable_and_a_bad_value_name_line_and_key(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
) -> None:
    """The event of a rejected file has the line and the key, and `reload()` returns the problem."""
    path = registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        with registry.get("orders"):
            pass
        registry_dir.write("orders", path.read_text().replace("port:", "prot:"))
        report = registry.reload()

        assert report.applied == ()
        (problem,) = report.rejected["orders"]
        assert asdict(report)["rejected"]["orders"][0]["code"] == problem.code, "as plain values"
        assert problem.key == "connection_settings.prot"
        assert problem.line is not None
        assert problem.hint is not None
        assert "port" in problem.hint + problem.message
        rejected = events.wait("config.rejected", database="orders")
        assert (rejected["line"], rejected["key"]) == (problem.line, problem.key)
        with registry.get("orders") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_secret_that_comes_before_the_server_knows_it_is_retried_until_it_works(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
) -> None:
    """A new password in the file is tried again until the server has it; nothing fails meanwhile."""
    registry_dir.declare("orders", database, volume=volume)
    with Registry(registry_dir, metrics=None) as registry, Reader(registry, "orders") as reader:
        eventually(lambda: reader.done > 10, 10, "the load is on")
        password = database.canary.secret()
        volume.write({"username": database.user, "password": password})
        failed = events.wait("database.probe_failed", database="orders")
        assert failed["reason"] == "auth"
        assert failed["retry_in"] >= 1.0

        database.server.set_password(database.user, password)
        database.password = password
        applied = events.wait("config.applied", timeout=10, database="orders")
        assert applied["changed"] == ["connection_settings.password"]
        assert reader.errors == []


async def test_a_loop_is_served_while_a_secret_comes_before_the_server_knows_it(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
) -> None:
    """The same on an event loop: no task sees an error, and the loop rotates when the login works."""
    registry_dir.declare("events", database, "async_pool", volume=volume)
    done, stop = 0, asyncio.Event()
    async with Registry(registry_dir, metrics=None) as registry:
        handle: Any = registry.get("events")

        async def read() -> None:
            nonlocal done
            while not stop.is_set():
                async with handle as connection:
                    await connection.execute("SELECT 1")
                done += 1

        async def goes_on() -> None:
            before = done
            await aeventually(lambda: done > before + 10 or reader.done(), 20)

        reader = asyncio.create_task(read())
        await goes_on()
        password = database.canary.secret()
        volume.write({"username": database.user, "password": password})
        failed = await asyncio.to_thread(events.wait, "database.probe_failed", 10)
        assert (failed["database"], failed["reason"]) == ("events", "auth")
        await goes_on()
        assert registry.status().databases[0].state == "stale"

        await asyncio.to_thread(database.server.set_password, database.user, password)
        database.password = password
        await asyncio.to_thread(events.wait, "config.applied", 20)
        await asyncio.to_thread(events.wait, "database.rotated", 20)
        await goes_on()
        stop.set()
        await reader


@pytest.mark.parametrize(
    "connection_type, section", [("pool", "sync_settings"), ("async_pool", "async_settings")]
)
def test_a_session_setting_that_the_server_refuses_is_rejected_at_its_line(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    connection_type: str,
    section: str,
) -> None:
    """A name that is misspelt: the probe names it, the last good one serves, and it is mended."""
    numbers = prometheus_client.CollectorRegistry()
    registry_dir.declare("orders", database, connection_type)
    with (
        Registry(registry_dir, metrics=numbers, watch=False) as registry,
        closing(Client(registry)) as client,
    ):
        assert client.ask() == 1
        file = registry_dir.declare(
            "orders", database, connection_type, **{section: {"statement_timout": "5s"}}
        )
        (problem,) = registry.reload().rejected["orders"]
        assert problem.code == "probe.setting"
        assert "statement_timout" in problem.message
        assert problem.key == f"{section}.statement_timout"
        assert problem.line is not None
        assert "statement_timout" in file.read_text().splitlines()[problem.line - 1]
        rejected = events.wait("config.rejected", database="orders")
        assert (rejected["line"], rejected["key"]) == (problem.line, problem.key)
        labels = {"database": "orders"}
        assert numbers.get_sample_value("pgmonkey_config_stale", labels) == 1
        assert client.ask() == 1

        registry_dir.declare(
            "orders", database, connection_type, **{section: {"statement_timeout": "5s"}}
        )
        assert registry.reload().applied == ("orders",)
        assert client.ask("SHOW statement_timeout") == "5s"
        assert numbers.get_sample_value("pgmonkey_config_stale", labels) == 0


@pytest.mark.parametrize("connection_type", ["pool", "normal"])
def test_a_removed_file_ends_the_database_and_its_return_revives_the_handle(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    connection_type: str,
) -> None:
    """Checkouts in progress end; the next one raises; when the file is back the handle works."""
    text = registry_dir.declare("orders", database, connection_type).read_text()
    registry_dir.declare("reports", database)  # a directory without any file removes nothing
    with Registry(registry_dir, metrics=None, removal_delay=0.3) as registry:
        handle = registry.get("orders")
        with handle as connection:
            registry_dir.remove("orders")
            events.wait("config.removed", database="orders")
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert "orders" not in registry
        with pytest.raises(Exception, match="its file was removed") as caught, handle:
            pass
        assert type(caught.value).__name__ == "DatabaseRemovedError"

        registry_dir.write("orders", text)
        eventually(lambda: "orders" in registry, 5, "the database is back")
        assert registry.get("orders") is handle
        with handle as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
