"""Directories that may be searched but not listed, and systems without file events."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from pgmonkey import Registry
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secret_volume import SecretVolume

USER = 54321


def password(registry: Registry, name: str = "orders") -> str:
    config = registry.config(name)
    assert config is not None
    return str(config.connect_kwargs("pool")["password"])


def declare(registry_dir: RegistryDirectory, name: str, secret: Path) -> None:
    settings = {"host": "db.example", "dbname": "shop", "user": "app"}
    settings |= {"password": {"from_file": str(secret)}}
    registry_dir.write(name, {"connection_settings": settings})


def as_an_ordinary_user(*paths: Path) -> None:
    """Become a user that owns the paths, if this is root: nothing is forbidden to root."""
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, USER, USER)
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)


def test_secrets_of_a_directory_that_may_not_be_listed_are_read_and_polled(
    public_dir: Path, events: CapturedEvents
) -> None:
    """Debian's /etc/ssl/private: that directory alone is polled, and the event names it."""
    registry_dir = RegistryDirectory(public_dir / "registry.d")
    private = public_dir / "private"
    volume = SecretVolume(public_dir / "volume")
    volume.write({"password": "first"})
    private.mkdir()
    secret = private / "password"
    secret.write_text("first")
    declare(registry_dir, "orders", secret)
    declare(registry_dir, "reports", volume.path("password"))

    def child() -> dict[str, Any]:
        as_an_ordinary_user(private, secret, volume.directory)
        private.chmod(0o300)  # may be changed and searched, not listed
        volume.directory.chmod(0o300)
        with Registry(registry_dir, metrics=None, rescan_interval=3600) as registry:
            degraded = events.wait("watch.degraded")
            started = events.wait("watch.started")
            secret.with_name("new").write_text("second")
            secret.with_name("new").replace(secret)
            later = volume.directory / "..later"
            later.mkdir()
            (later / "password").write_text("second")
            volume.directory.joinpath("..data_tmp").symlink_to(later.name)
            volume.directory.joinpath("..data_tmp").replace(volume.directory / "..data")
            for name in ("orders", "reports"):
                eventually(lambda name=name: password(registry, name) == "second", 10, "renames")
            secret.write_text("third")
            eventually(lambda: password(registry) == "third", 10, "a file written in place, too")
            polling = registry.status().polling

            private.chmod(0o700)  # may be listed: the next look at the files finds out
            registry.reload()
            secret.with_name("new").write_text("fourth")
            secret.with_name("new").replace(secret)
            eventually(lambda: password(registry) == "fourth", 10, "it is watched")
            reports = len(events.named("watch.degraded"))
        volume.directory.chmod(0o700)
        return {"degraded": degraded, "started": started, "polling": polling, "reports": reports}

    said = in_a_child(child)
    assert said["degraded"]["mode"] == "polling"
    assert said["degraded"]["directories"] == [str(private), str(volume.directory)]
    assert said["degraded"]["reason"] == "the directory may be searched, but not listed"
    assert said["started"]["directories"] == [str(registry_dir)]
    assert (said["polling"], said["reports"]) == (False, 1)


def test_the_event_names_the_directories_and_the_reason_when_there_are_no_file_events(
    registry_dir: RegistryDirectory,
    tmp_path: Path,
    events: CapturedEvents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One event for all directories, with the words of the system."""

    def exhausted(*_directories: str, **_: Any) -> Iterator[Any]:
        raise OSError(28, "OS file watch limit reached.")

    monkeypatch.setattr(watchfiles, "watch", exhausted)
    (tmp_path / "password").write_text("first")
    declare(registry_dir, "orders", tmp_path / "password")
    with Registry(registry_dir, metrics=None) as registry:
        degraded = events.wait("watch.degraded")
        assert degraded["mode"] == "polling"
        assert degraded["directories"] == [str(tmp_path), str(registry_dir)]
        assert "OS file watch limit reached" in degraded["reason"]
        assert registry.status().polling


def test_a_look_that_is_due_comes_without_a_file_event(
    registry_dir: RegistryDirectory, events: CapturedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look at a half-written file, and the one that believes a removal, come by themselves."""
    changed, told = threading.Event(), threading.Event()

    def one_event(*_directories: str, stop_event: Any, **_: Any) -> Iterator[set[Any]]:
        yield set()
        if not told.is_set():
            told.set()
            changed.wait(10)
            yield {(watchfiles.Change.modified, str(registry_dir.file("orders")))}
        while not stop_event.is_set():
            threading.Event().wait(0.01)

    monkeypatch.setattr(watchfiles, "watch", one_event)
    text = "connection_settings: {host: db.example, dbname: shop, user: app, password: %s}\n"
    path = registry_dir.write("orders", text % "first")
    registry_dir.write("reports", text % "first")
    with Registry(registry_dir, metrics=None, rescan_interval=3600, removal_delay=0.3) as registry:
        path.write_text(text % "second")
        registry_dir.remove("reports")
        changed.set()
        eventually(lambda: password(registry) == "second", 10)
        events.wait("config.removed", database="reports")
