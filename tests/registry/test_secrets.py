"""Secrets in a registry: pairs that belong together, line ends, permissions, dates in the past."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgmonkey import Registry
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.pool.side import SIDES, Client


def serves(registry: Registry) -> bool:
    with registry.get("orders").connection(timeout=5) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.slow
def test_a_user_and_a_password_that_change_together_are_never_mixed(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
    canary: Canary,
) -> None:
    """Two users take turns in a volume that is swapped all the time: no login is ever refused."""
    other = f"{database.user}_b"
    pairs = [
        {"username": database.user, "password": database.password},
        {"username": other, "password": canary.secret()},
    ]
    database.server.create_role(other, pairs[1]["password"])
    registry_dir.declare("orders", database, volume=volume)
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not stop.is_set():
            swaps += 1
            volume.write(pairs[swaps % 2])

    try:
        with Registry(registry_dir, metrics=None, watch=False) as registry:
            assert serves(registry)
            swapper = threading.Thread(target=swap)
            swapper.start()
            try:
                until = time.monotonic() + 3
                reloads = 0
                while time.monotonic() < until or swaps <= 100 or reloads <= 10:
                    report = registry.reload()
                    assert report.rejected == {}
                    reloads += 1
            finally:
                stop.set()
                swapper.join()
            failures = registry.get("orders").status().connect_failures
            assert serves(registry)
            version = registry.status().databases[0].version

        assert version > 5, "the reloads have seen both pairs"
        assert sum(failures.values()) == 0
        assert events.named("config.rejected") == []
    finally:
        database.server.drop_role(other)


@pytest.mark.parametrize("side", SIDES)
def test_a_json_document_rotates_as_a_whole(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    canary: Canary,
    side: str,
) -> None:
    """Another user and its password, as the rotation of RDS writes them, replace the old pair."""
    other = f"{database.user}_b"
    password = canary.secret(hostile=True)
    database.server.create_role(other, password)

    def write(user: str, password: str) -> None:
        volume.write({"secret.json": json.dumps({"username": user, "password": password})})

    write(database.user, database.password)
    path = str(volume.path("secret.json"))
    pair = {
        "user": {"from_file": path, "json_key": "username"},
        "password": {"from_file": path, "json_key": "password"},
    }
    registry_dir.declare("orders", database, side, connection=pair)
    try:
        with Registry(registry_dir, metrics=None, watch=False) as registry:
            with closing(Client(registry)) as client:
                assert client.ask("SELECT current_user") == database.user
                write(other, password)
                assert registry.reload().applied == ("orders",)
                assert client.ask("SELECT current_user") == other
                volume.write({"secret.json": password})
                problems = registry.reload().rejected["orders"]
                assert {problem.code for problem in problems} == {"secret.json"}
                assert client.ask("SELECT current_user") == other
    finally:
        database.server.drop_role(other)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_end_after_a_secret_is_not_part_of_it(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path, end: str
) -> None:
    """`echo` writes a line end, an editor on Windows two characters: the login works with each."""
    path = tmp_path / "password"
    path.write_bytes((database.password + end).encode())
    registry_dir.declare("orders", database, connection={"password": {"from_file": str(path)}})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        assert serves(registry)


def test_white_space_inside_a_secret_is_kept_and_two_line_ends_are_one_too_many(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """Exactly one line end is removed: the rest of a secret is its author's business."""
    path = tmp_path / "password"
    password = f"  {database.password}\t\n"
    database.server.set_password(database.user, password)
    registry_dir.declare("orders", database, connection={"password": {"from_file": str(path)}})
    path.write_bytes((password + "\n").encode())
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        assert serves(registry)
        path.write_bytes(password.encode())  # its own line end is now taken for the file's
        assert "orders" in registry.reload().rejected
        assert serves(registry)


def test_a_secret_that_may_not_be_read_any_more_is_rejected_and_taken_when_it_may(
    public_dir: Path,
    database: TemporaryDatabase,
) -> None:
    """Permission denied is a problem with path and user; the last good configuration serves."""
    registry_dir = RegistryDirectory(public_dir / "registry.d")
    directory = public_dir / "secrets"
    directory.mkdir()
    path = directory / "password"
    path.write_text(database.password)
    os.utime(path, (1, 1))  # not a file of this moment, which would be read again in any case
    registry_dir.declare("orders", database, connection={"password": {"from_file": str(path)}})

    def child() -> list[str]:
        if os.geteuid() == 0:
            os.chown(path, 54321, 54321)
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
        said = []
        with Registry(registry_dir, metrics=None, watch=False) as registry:
            assert serves(registry)
            path.chmod(0)
            (problem,) = registry.reload().rejected["orders"]
            said.append(problem.code)
            assert str(path) in str(problem)
            assert str(os.geteuid()) in str(problem)
            assert serves(registry)
            assert registry.status().databases[0].state == "stale"
            path.chmod(0o400)
            said.append(str(dict(registry.reload().rejected)))
            assert serves(registry)
        return said

    assert in_a_child(child) == ["secret.permission", "{}"]


def test_a_file_older_than_the_one_before_is_a_change_all_the_same(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    tmp_path: Path,
    events: CapturedEvents,
) -> None:
    """A restored backup carries dates of the past: what counts is that the content differs."""
    path = tmp_path / "secrets" / "password"
    path.parent.mkdir()
    path.write_text(database.password)
    registry_dir.declare("orders", database, connection={"password": {"from_file": str(path)}})
    with Registry(registry_dir, metrics=None) as registry:
        assert serves(registry)
        events.wait("watch.started")
        for age in (86_400.0, 10 * 86_400.0):
            restored = path.with_name("restored")
            restored.write_text(database.rotate())
            past = time.time() - age
            os.utime(restored, (past, past))
            events.clear()
            restored.replace(path)
            events.wait("config.applied", database="orders", timeout=10)
            assert registry.status().databases[0].secret_modified == pytest.approx(past, abs=1)
            assert serves(registry)


def test_a_secret_that_is_rewritten_with_its_old_size_and_time_is_a_change(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """Tools that keep times, as `rsync --times --inplace`, do not hide a new password."""
    path = tmp_path / "password"
    path.write_text(database.password)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    registry_dir.declare("orders", database, connection={"password": {"from_file": str(path)}})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        assert serves(registry)
        before = path.stat()
        # Older than the tick of the file system's clock, within which nothing is taken for sure.
        eventually(lambda: time.time_ns() > before.st_ctime_ns + 100_000_000, 5)
        assert registry.reload().unchanged == ("orders",)
        password = database.password[::-1]
        database.server.set_password(database.user, password)
        with path.open("r+") as file:
            file.write(password)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = path.stat()
        assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
            before.st_size,
            before.st_mtime_ns,
            before.st_ino,
        )
        assert registry.reload().applied == ("orders",)


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_jumps_by_a_day_changes_nothing(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    monkeypatch: pytest.MonkeyPatch,
    days: int,
) -> None:
    """Deadlines, lifetimes, retries and rescans follow the monotonic clock."""
    registry_dir.declare("orders", database, leak_detection="1h", drain_timeout="1h")
    now = time.time
    with Registry(registry_dir, metrics=None, rescan_interval=0.1) as registry:
        with registry.get("orders") as connection:
            before = connection.info.backend_pid
        events.wait("watch.started")
        monkeypatch.setattr(time, "time", lambda: now() + days * 86_400)
        with registry.get("orders").connection(timeout=1) as connection:
            assert connection.info.backend_pid == before
        registry_dir.declare("orders", database, connection={"application_name": "later"})
        events.wait("database.rotated", timeout=10)
        began = time.monotonic()
        with registry.get("orders").connection(timeout=1) as connection:
            assert connection.execute("SHOW application_name").fetchone() == ("later",)
        assert time.monotonic() - began < 1
        status = registry.status()
        assert status.reload_durations.sum < 10
        assert registry.wait_drained(timeout=5)
        assert "checkout.leaked" not in events.names
        assert "database.drain_timeout" not in events.names


@pytest.mark.slow
def test_a_wrong_password_is_tried_at_most_once_a_second(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
) -> None:
    """The pauses grow: a server may lock an account that is tried too often.

    Meanwhile the last good configuration serves, and the event says when it is tried again.
    """
    registry_dir.declare("orders", database, "pool", volume=volume)
    with Registry(registry_dir, metrics=None) as registry:
        assert serves(registry)
        events.wait("watch.started")
        attempts = registry.get("orders").status().connect_attempts
        began = time.monotonic()
        volume.write({"username": database.user, "password": "wrong"})
        failed = events.wait("database.probe_failed", reason="auth")
        assert 1.0 <= failed["retry_in"] <= 1.2
        moments: list[float] = []

        def tried() -> int:
            number = registry.get("orders").status().connect_attempts - attempts
            while len(moments) < number:
                moments.append(time.monotonic() - began)
            return number

        eventually(lambda: tried() >= 3, 15, "it was tried three times")
        assert serves(registry)
        pauses = [after - before for before, after in itertools.pairwise(moments)]
        assert pauses[0] >= 0.9
        assert pauses[1] >= 1.8
        assert len(events.named("config.rejected")) == 1
        assert len(events.named("database.probe_failed")) == 1


@pytest.mark.parametrize("connection_type", ["pool", "normal", "async_pool", "async"])
def test_a_new_secret_ends_the_pause_after_a_refused_login(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    connection_type: str,
) -> None:
    """Nothing is open and the login is refused, for longer each time: the new one is tried at once."""
    registry_dir.declare("orders", database, connection_type, volume=volume)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")

        async def use() -> None:
            async with handle.connection(timeout=5) as connection:
                await connection.execute("SELECT 1")

        with asyncio.Runner() as runner:

            def works() -> bool:
                try:
                    if connection_type.startswith("async"):
                        runner.run(use())
                    else:
                        serves(registry)
                except psycopg.OperationalError:
                    return False
                return True

            assert works()
            database.rotate()
            database.terminate_backends()
            attempts = handle.status().connect_attempts
            eventually(
                lambda: not works() and handle.status().connect_attempts >= attempts + 2,
                10,
                "the login was refused twice",
            )
            write_credentials(volume, database)
            registry.reload()
            assert works(), "and not only when the pause is over"
            runner.run(close(handle))


async def close(handle: Any) -> None:
    if handle.connection_type.startswith("async"):
        await handle.close()
