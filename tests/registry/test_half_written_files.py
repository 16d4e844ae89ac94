"""Files that are rewritten in place: no half of one is applied, and a rename counts at once."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from watchfiles import Change

from pgmonkey import Registry
from pgmonkey.config import belief, directory
from pgmonkey.registry import reload
from pgmonkey.registry.watch import renamed_into_place
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secret_volume import SecretVolume

#: A valid file, and what makes it another one.
HALF = "connection_settings: {host: db.example, dbname: shop, user: app, password: tea}\n"
OLD = HALF + "description: old\n"
WHOLE = HALF + "description: whole\n"
#: Seconds between two parts.
PAUSE = 0.04


@pytest.fixture
def settling(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Say how far apart two looks at a file must be that may be half written."""

    def settle(seconds: float) -> None:
        for module in (belief, directory, reload):
            monkeypatch.setattr(module, "SETTLE", seconds)

    return settle


@pytest.fixture
def slow(settling: Callable[[float], None]) -> None:
    """Looks are further apart than a thread of a busy machine may stop between two parts."""
    settling(0.5)


def description(registry: Registry, name: str = "orders") -> str | None:
    config = registry.config(name) if name in registry else None
    return None if config is None else config.description


def password(registry: Registry, name: str = "orders") -> str:
    config = registry.config(name)
    assert config is not None
    return str(config.connect_kwargs("pool")["password"])


@contextmanager
def seen(look: Callable[[], object]) -> Iterator[list[object]]:
    """Look again and again in the background, and collect each different thing that was seen."""
    found: list[object] = []
    stop = threading.Event()

    def work() -> None:
        while True:
            last = stop.is_set()
            now = look()
            if found[-1:] != [now]:
                found.append(now)
            if last:
                return
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: found, 5)
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def in_place(path: Path) -> None:
    """Empty the file, write a valid half, then the rest: the same inode."""
    with path.open("w") as file:
        time.sleep(PAUSE)
        file.write(HALF)
        file.flush()
        time.sleep(PAUSE)
        file.write("description: whole\n")


def made_again(path: Path) -> None:
    """Unlink the file, and write another one in two parts under its name."""
    path.unlink(missing_ok=True)
    in_place(path)


def vim(path: Path) -> None:
    """Move the old file to a backup, write the new one in two parts, remove the backup."""
    backup = path.with_name(f"{path.name}~")
    path.rename(backup)
    in_place(path)
    backup.unlink()


def rename(path: Path) -> None:
    """Write a temporary file beside it, and rename that in the same moment."""
    RegistryDirectory(path.parent).write(path.stem, WHOLE)


def sed(path: Path) -> None:
    subprocess.run(["sed", "-i", "s/old/whole/", path], check=True)


def rsync(path: Path) -> None:
    """Write a temporary file beside it, set its mode and time, rename it."""
    temporary = path.with_name(f".{path.name}.Xy12Zz")
    temporary.write_text(WHOLE)
    temporary.chmod(0o640)
    os.utime(temporary, (1_000_000_000, 1_000_000_000))
    temporary.replace(path)


WRITERS = {"in-place": in_place, "again": made_again, "vim": vim, "rename": rename, "sed": sed, "rsync": rsync}  # fmt: skip


@pytest.mark.usefixtures("slow")
def test_a_valid_half_of_a_file_is_not_applied(
    registry_dir: RegistryDirectory, events: CapturedEvents
) -> None:
    """However it is written, a database goes from the old file to the whole new one."""
    for name in WRITERS:
        registry_dir.write(name, OLD)
    with Registry(registry_dir, metrics=None) as registry:
        events.wait("watch.started")
        with ExitStack() as stack:
            found = {
                name: stack.enter_context(seen(partial(description, registry, name)))
                for name in WRITERS
            }
            threads = [
                threading.Thread(target=write, args=[registry_dir.file(name)])
                for name, write in WRITERS.items()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for name in WRITERS:
                eventually(lambda name=name: description(registry, name) == "whole", 10)
        assert found == {name: ["old", "whole"] for name in WRITERS}
        assert {one.version for one in registry.status().databases} == {2}

        with seen(lambda: description(registry, "new")) as found_new:
            made_again(registry_dir.file("new"))
            eventually(lambda: description(registry, "new") == "whole", 10)
        assert found_new == [None, "whole"], "a new database has a whole file, too"
    assert "config.rejected" not in events.names


@pytest.mark.usefixtures("slow")
def test_defaults_that_are_half_written_are_not_applied(
    registry_dir: RegistryDirectory, events: CapturedEvents
) -> None:
    """Every database goes from the old ones to the whole new ones."""
    registry_dir.write("orders", HALF)
    path = registry_dir.write("_defaults", "description: old\n")
    with Registry(registry_dir, metrics=None) as registry:
        events.wait("watch.started")
        with seen(lambda: description(registry)) as found, path.open("w") as file:
            file.write("drain_timeout: 7s\n")
            file.flush()
            time.sleep(PAUSE)
            file.write("description: new\n")
            file.close()
            eventually(lambda: description(registry) == "new", 10)
        assert found == ["old", "new"]


@pytest.mark.usefixtures("slow")
def test_an_explicit_reload_waits_until_a_file_is_whole(registry_dir: RegistryDirectory) -> None:
    """Called between two parts it takes a moment longer, and reports the whole file."""
    path = registry_dir.write("orders", OLD)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        writer = threading.Thread(target=in_place, args=[path])
        writer.start()
        eventually(lambda: path.read_text() != OLD, 5)
        report = registry.reload()
        writer.join()
        assert (report.applied, dict(report.rejected)) == (("orders",), {})
        assert description(registry) == "whole"


def test_a_reload_does_not_wait_for_ever_for_a_file_that_is_rewritten_again_and_again(
    registry_dir: RegistryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in force before stays in force."""
    monkeypatch.setattr("pgmonkey.registry.reload._LONGEST_SETTLING", 0.3)
    path = registry_dir.write("orders", OLD)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            path.write_text(f"{HALF}description: {(number := number + 1)}\n")

    writer = threading.Thread(target=write)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        writer.start()
        try:
            eventually(lambda: "old" not in path.read_text(), 5)
            registry.reload()
            assert description(registry) == "old"
        finally:
            stop.set()
            writer.join()
        assert registry.reload().applied == ("orders",)


# Secrets


@pytest.fixture
def secret(registry_dir: RegistryDirectory, tmp_path: Path) -> Path:
    """The password file of the only database."""
    path = tmp_path / "secrets" / "password"
    path.parent.mkdir()
    path.write_text("first")
    text = HALF.replace("tea", f"{{from_file: {path}}}")
    registry_dir.write("orders", text)
    return path


@pytest.mark.usefixtures("slow")
def test_a_half_written_secret_is_not_applied(
    registry_dir: RegistryDirectory, secret: Path, events: CapturedEvents
) -> None:
    """Emptied, half, whole: the database sees the old and the new one only, and no problem."""
    with Registry(registry_dir, metrics=None) as registry:
        events.wait("watch.started")
        with seen(lambda: password(registry)) as found:
            with secret.open("w") as file:
                time.sleep(PAUSE)
                file.write("sec")
                file.flush()
                time.sleep(PAUSE)
                file.write("ond")
            eventually(lambda: password(registry) == "second", 10)
        assert found == ["first", "second"]
    assert "config.rejected" not in events.names


def test_a_secret_that_cannot_be_read_for_a_moment_is_no_problem(
    registry_dir: RegistryDirectory, secret: Path, events: CapturedEvents
) -> None:
    """Unlinked or emptied: it is one after the removal delay; the last good secret serves anyway."""
    other = secret.with_name("other")
    other.write_text("first")
    text = registry_dir.file("orders").read_text()
    registry_dir.write("reports", text.replace(str(secret), str(other)))
    names = ("orders", "reports")

    def passwords() -> set[str]:
        return {password(registry, name) for name in names}

    def spoil() -> None:
        secret.unlink()
        other.write_text("")

    def write(content: str) -> None:
        for path in (secret, other):
            path.write_text(content)

    with Registry(registry_dir, metrics=None, removal_delay=0.6) as registry:
        events.wait("watch.started")
        spoil()
        time.sleep(0.3)  # how long they are away
        write("second")
        eventually(lambda: passwords() == {"second"}, 10)
        assert "config.rejected" not in events.names

        spoil()
        for name in names:
            events.wait("config.rejected", database=name)
        assert passwords() == {"second"}
        write("third")
        eventually(lambda: passwords() == {"third"}, 10)
        assert registry.status().last_reload_successful


@pytest.mark.usefixtures("slow")
def test_a_half_written_secret_of_a_rejected_file_is_not_applied(
    registry_dir: RegistryDirectory, secret: Path, events: CapturedEvents
) -> None:
    """The last good text gets whole secrets, too; so does that of a file that is missing."""
    text = registry_dir.file("orders").read_text()
    registry_dir.write("other", HALF)
    with Registry(registry_dir, metrics=None, removal_delay=3600) as registry:
        events.wait("watch.started")
        for number, spoil in enumerate(
            (
                lambda: registry_dir.write("orders", text + "x: y\n"),
                lambda: registry_dir.remove("orders"),
            )
        ):
            spoil()
            with seen(lambda: password(registry)) as found:
                before = password(registry)
                with secret.open("w") as file:
                    file.write("half")
                    file.flush()
                    time.sleep(PAUSE)
                    file.write(f"whole{number}")
                eventually(lambda before=before: password(registry) != before, 10)
            assert found == [before, f"halfwhole{number}"]


def test_a_login_with_a_password_that_is_rewritten_in_place_waits_until_it_is_whole(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """Changed at the server first, then in the file: the next connect looks until looks agree."""
    path = tmp_path / "password"
    path.write_text(database.password)
    registry_dir.declare("orders", database, connection={"password": {"from_file": str(path)}})
    with Registry(registry_dir, metrics=None) as registry:
        database.rotate()
        path.write_text(database.password)
        with registry.get("orders").connection(timeout=20) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


# Renamed into place


@pytest.fixture
def never(settling: Callable[[float], None]) -> None:
    """What needs a second look is not believed."""
    settling(3600.0)


def moved_from_elsewhere(path: Path) -> None:
    """Rename a file that was written in another directory a while ago."""
    other = path.parent.with_name("elsewhere")
    other.write_text(WHOLE)
    eventually(lambda: _renamed_later(other), 5, "the clock of the file system goes on")
    other.replace(path)


def _renamed_later(path: Path) -> bool:
    path.rename(path.with_name("again"))
    path.with_name("again").rename(path)
    status = path.stat()
    return status.st_ctime_ns > status.st_mtime_ns


@pytest.mark.parametrize("write", [rsync, moved_from_elsewhere])
@pytest.mark.usefixtures("never")
def test_a_file_that_is_renamed_into_place_is_applied_at_once(
    registry_dir: RegistryDirectory, events: CapturedEvents, write: Callable[[Path], None]
) -> None:
    """One look is enough: a second one would have to come an hour later here."""
    path = registry_dir.write("orders", OLD)
    with Registry(registry_dir, metrics=None) as registry:
        events.wait("watch.started")
        write(path)
        eventually(lambda: description(registry) == "whole", 10)


@pytest.mark.usefixtures("never")
def test_a_rename_right_after_the_write_is_known_by_its_events(
    registry_dir: RegistryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times of the file say nothing then: the temporary file that came and went does."""
    path = registry_dir.write("orders", OLD)
    temporary = str(path.with_name(".orders.yaml.tmp"))
    go_on = threading.Event()

    def watch(*_directories: str, stop_event: Any, **_: Any) -> Iterator[set[tuple[Change, str]]]:
        yield set()
        while not stop_event.is_set():
            if go_on.wait(0.02):
                go_on.clear()
                added = {(Change.added, temporary), (Change.added, str(path))}
                yield added | {(Change.deleted, temporary)}

    monkeypatch.setattr(watchfiles, "watch", watch)
    with Registry(registry_dir, metrics=None) as registry:
        rename(path)
        go_on.set()
        eventually(lambda: description(registry) == "whole", 10)


@pytest.mark.usefixtures("never")
def test_a_kubernetes_volume_is_believed_at_once(tmp_path: Path, events: CapturedEvents) -> None:
    """Its files are whole when the link is replaced: those of the registry, and secrets."""
    mount, secrets = SecretVolume(tmp_path / "registry.d"), SecretVolume(tmp_path / "secrets")
    secrets.write({"password": "first"})
    text = HALF.replace("tea", f"{{from_file: {secrets.path('password')}}}")
    mount.write({"orders.yaml": text})
    with Registry(mount.directory, metrics=None) as registry:
        events.wait("watch.started")
        secrets.write({"password": "second"})
        eventually(lambda: password(registry) == "second", 10)
        mount.write({"orders.yaml": text + "description: whole\n"})
        eventually(lambda: description(registry) == "whole", 10)


def test_events_tell_a_rename_from_a_file_that_is_made_under_its_own_name() -> None:
    """A temporary file comes and goes in the same batch, in the same directory."""
    added, deleted, modified = Change.added, Change.deleted, Change.modified
    rename = {(added, "/d/.t"), (deleted, "/d/.t"), (added, "/d/a.yaml")}
    assert renamed_into_place(rename) == {"/d/a.yaml"}
    assert renamed_into_place(rename, lambda _path: True) == set(), "the other one came again"
    assert renamed_into_place({(added, "/d/a.yaml")}) == set()
    assert renamed_into_place({(modified, "/d/a.yaml")}) == set()
    unlinked = {(deleted, "/d/a.yaml"), (added, "/d/a.yaml")}
    assert renamed_into_place(unlinked) == set()
    assert renamed_into_place(unlinked | {(added, "/d/a.yaml~"), (deleted, "/d/a.yaml~")}) == set()
    assert renamed_into_place(rename | {(added, "/d/b.yaml")}) == set(), "one of the two was made"
    assert renamed_into_place(rename | {(added, "/e/b.yaml")}) == {"/d/a.yaml"}
    assert renamed_into_place(set()) == set()
