"""Files that are away for a moment, and directories that are empty: nothing is removed too soon."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import prometheus_client
import pytest

from pgmonkey import Registry
from pgmonkey.errors import DatabaseRemovedError
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import Client
from tests.registry.load import asking

NAMES = ("events", "orders", "reports")
#: What an operator sees, and what the alert is about.
SUCCESSFUL = "pgmonkey_config_last_reload_successful"


def text(description: str = "first") -> str:
    return (
        "connection_settings:\n  host: db.example\n  dbname: shop\n  user: app\n  password: tea\n"
        f"description: {description}\n"
    )


def description(registry: Registry, name: str = "orders") -> str:
    config = registry.config(name)
    assert config is not None
    return config.description


def codes(registry: Registry) -> list[str]:
    return [problem.code for problem in registry.status().problems]


@pytest.fixture
def files(registry_dir: RegistryDirectory) -> RegistryDirectory:
    """Three databases that no test connects to."""
    for name in NAMES:
        registry_dir.write(name, text())
    return registry_dir


@pytest.fixture
def numbers() -> prometheus_client.CollectorRegistry:
    """What the registry of the test exports to."""
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def watched(
    files: RegistryDirectory, events: CapturedEvents, numbers: prometheus_client.CollectorRegistry
) -> Iterator[Registry]:
    """A registry that believes an absence after 0.3 seconds, and whose watch is armed."""
    with Registry(files, metrics=numbers, removal_delay=0.3) as registry:
        events.wait("watch.started")
        yield registry


# One file


@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_no_checkout_fails_while_a_file_is_away_for_a_moment(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    connection_type: str,
) -> None:
    """Unlinked, and made again after 20, 100 and 300 ms: the database was never removed."""
    path = registry_dir.declare("orders", database, connection_type)
    registry_dir.declare("reports", database)
    good = path.read_text()
    with Registry(registry_dir, metrics=None) as registry, closing(Client(registry)) as client:
        events.wait("watch.started")
        with asking(client) as errors:
            for number, pause in enumerate((0.02, 0.1, 0.3)):
                path.unlink()
                time.sleep(pause)  # how long the file is away
                path.write_text(f"{good}description: back {number}\n")
                eventually(lambda number=number: description(registry) == f"back {number}", 10)
        assert errors == []
        assert registry.names == ("orders", "reports")
    assert "config.removed" not in events.names
    assert "config.rejected" not in events.names


def test_no_checkout_fails_while_git_checks_out_300_files(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Git unlinks each file and makes it again: none is removed, and the new contents arrive."""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example")
        command = ["git", "-C", str(registry_dir), *identity, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    orders = registry_dir.declare("orders", database).read_text()
    others = [f"db{number}" for number in range(300)]
    git("init", "--quiet", "--initial-branch=first")
    for branch in ("first", "second"):
        if branch == "second":
            git("checkout", "--quiet", "-b", branch)
        registry_dir.write("orders", f"{orders}description: {branch}\n")
        for name in others:
            registry_dir.write(name, text(branch))
        git("add", ".")
        git("commit", "--quiet", "--message", branch)
    with Registry(registry_dir, metrics=None) as registry, closing(Client(registry)) as client:
        events.wait("watch.started", 10)
        with asking(client) as errors:
            git("checkout", "--quiet", "first")
            for name in ("orders", *others):
                eventually(lambda name=name: description(registry, name) == "first", 20)
        assert errors == []
        assert len(registry) == 301
    assert "config.removed" not in events.names
    assert "config.rejected" not in events.names


def test_a_database_is_removed_when_its_file_was_missing_for_the_removal_delay(
    watched: Registry, files: RegistryDirectory, events: CapturedEvents
) -> None:
    """Not before, and without another file event: the others are not touched."""
    began = time.monotonic()
    files.remove("orders")
    events.wait("config.removed", database="orders")
    assert time.monotonic() - began >= 0.3
    assert watched.names == ("events", "reports")
    assert watched.status().last_reload_successful


def test_an_explicit_reload_believes_at_once_that_a_file_was_removed(
    files: RegistryDirectory,
) -> None:
    """A person asked, so the absence is believed: of a file, of the defaults, of the last file."""
    files.write("_defaults", "drain_timeout: 7s\n")
    with Registry(files, metrics=None, removal_delay=3600) as registry:
        files.remove("orders")
        assert registry.reload().removed == ("orders",)
        files.remove("_defaults")
        assert registry.reload().applied == ("events", "reports")
        files.remove("events")
        files.remove("reports")
        assert registry.reload().removed == ("events", "reports")
        assert codes(registry) == []


def test_defaults_that_are_away_for_a_moment_keep_their_place_under_every_database(
    files: RegistryDirectory, events: CapturedEvents
) -> None:
    """No database is made without them; a database that changes meanwhile has them, too."""
    defaults = files.write("_defaults", "sync_settings: {statement_timeout: 30s}\n")
    good = defaults.read_text()

    def timeout(name: str) -> object:
        config = registry.config(name)
        assert config is not None
        return config.sync_settings.get("statement_timeout")

    with Registry(files, metrics=None, removal_delay=0.6) as registry:
        events.wait("watch.started")
        defaults.unlink()
        files.write("orders", text("second"))
        events.wait("config.applied", database="orders")
        assert [timeout(name) for name in NAMES] == ["30s"] * 3
        defaults.write_text(good)
        files.write("reports", text("third"))
        events.wait("config.applied", database="reports")
        assert [one["database"] for one in events.named("config.applied")] == ["orders", "reports"]

        defaults.unlink()
        eventually(lambda: [timeout(name) for name in NAMES] == [None] * 3, 10, "they are gone")
    assert "config.rejected" not in events.names


def test_a_negative_removal_delay_is_refused(files: RegistryDirectory) -> None:
    """It would mean nothing; 0 believes every look."""
    with pytest.raises(ValueError, match="removal_delay"):
        Registry(files, metrics=None, removal_delay=-1)


# All files


def test_an_emptied_directory_removes_nothing_and_is_a_problem(
    watched: Registry,
    files: RegistryDirectory,
    events: CapturedEvents,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Nothing is removed however long it lasts; the metric of the alert is 0 until files are back."""
    for name in NAMES:
        files.remove(name)
    rejected = events.wait("config.rejected")
    assert (rejected["code"], rejected["file"]) == ("registry.empty", str(files))
    time.sleep(0.5)  # longer than removal_delay: nothing happens then
    assert watched.names == NAMES
    assert codes(watched) == ["registry.empty"]
    assert "3 databases before" in watched.status().problems[0].message
    assert numbers.get_sample_value(SUCCESSFUL) == 0
    assert "config.removed" not in events.names

    for name in NAMES:
        files.write(name, text("back"))
    eventually(lambda: numbers.get_sample_value(SUCCESSFUL) == 1, 10, "the problem is over")
    eventually(lambda: [description(watched, name) for name in NAMES] == ["back"] * 3, 10)
    assert len(events.named("config.rejected")) == 1, "it is reported once"


def test_an_explicit_reload_believes_an_emptied_directory_but_no_other_empty_one(
    files: RegistryDirectory,
) -> None:
    """A volume that is not mounted shows another directory: a reload removes nothing there."""
    with Registry(files, metrics=None, removal_delay=0.1, watch=False) as registry:
        files.path.rename(files.path.with_name("away"))
        files.path.mkdir()
        report = registry.reload()
        assert (report.removed, list(report.rejected)) == ((), [str(files)])
        assert codes(registry) == ["registry.empty"]
        files.path.rmdir()
        assert registry.reload().removed == ()
        assert codes(registry) == ["registry.missing"]

        files.path.with_name("away").rename(files.path)
        assert registry.reload().unchanged == NAMES
        for name in NAMES:
            files.remove(name)
        assert registry.reload().removed == NAMES


def test_a_directory_that_is_renamed_and_replaced_is_read_anew_and_loses_nothing(
    watched: Registry, files: RegistryDirectory, events: CapturedEvents
) -> None:
    """What is missing in the new directory is removed when it was missing there for long enough."""
    new = RegistryDirectory(files.path.with_name("new"))
    for name in ("events", "orders"):
        new.write(name, text("second"))
    files.path.rename(files.path.with_name("old"))
    new.path.rename(files.path)
    eventually(lambda: description(watched) == "second", 10, "the new directory is in force")
    events.wait("config.removed", database="reports")
    eventually(lambda: watched.status().last_reload_successful, 10)
    assert watched.names == ("events", "orders")


def test_a_directory_that_is_deleted_and_copied_again_file_by_file_loses_nothing(
    files: RegistryDirectory, events: CapturedEvents
) -> None:
    """`rm -r`, then `cp -r`, with a pause after each step that the watch sees."""
    copy = shutil.copytree(files.path, files.path.with_name("copy"))
    with Registry(files, metrics=None) as registry:
        events.wait("watch.started")
        shutil.rmtree(files.path)
        events.wait("config.rejected", code="registry.missing")
        files.path.mkdir()
        events.wait("config.rejected", code="registry.empty")
        for name in NAMES:
            shutil.copyfile(copy / f"{name}.yaml", files.file(name))
            eventually(lambda: codes(registry) == [], 10)
        assert registry.names == NAMES
        assert registry.reload().unchanged == NAMES
    assert "config.removed" not in events.names


UNMOUNTED = """
import subprocess, time
from pathlib import Path
from pgmonkey import Registry

directory = Path(argv[0])
def write(description, *names):
    for name in names:
        (directory / f"{name}.yaml").write_text(argv[1].format(description))
def mount(description):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    write(description, "orders", "events")
def wait(*codes):
    deadline = time.monotonic() + 20
    while codes != tuple(one.code for one in registry.status().problems):
        assert time.monotonic() < deadline, registry.status().problems
        time.sleep(0.01)

mount("first")
with Registry(directory, metrics=None, removal_delay=0.1) as registry:
    subprocess.run(["umount", "--lazy", directory], check=True)
    wait("registry.empty")
    write("below", "orders")
    wait("registry.replaced")
    time.sleep(0.2)  # longer than removal_delay
    say(*registry.names, registry.config("orders").description)
    say(registry.status().last_reload_successful)
    mount("again")
    wait()
    say(registry.reload().removed, registry.config("orders").description)
"""


def test_a_volume_that_is_unmounted_removes_nothing(tmp_path: Path, canary: Canary) -> None:
    """What is in the directory below is not used; a volume that is mounted again is."""
    namespaces = ("unshare", "--user", "--map-root-user", "--mount")
    if subprocess.run([*namespaces, "true"], capture_output=True, check=False).returncode != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("user namespaces are needed for this test")
        pytest.skip("no user namespaces here")
    with Program(UNMOUNTED, tmp_path, text("{}"), canary=canary, prefix=namespaces) as program:
        assert program.code() == 0, program.text
        assert program.said == ["events orders first", "False", "() again"]


# A database that was removed, and its handle


def test_the_handle_of_a_database_whose_file_comes_back_late_works_again(
    watched: Registry, files: RegistryDirectory, events: CapturedEvents
) -> None:
    """After the removal delay the database is removed; the file brings it back."""
    handle = watched.get("orders", "normal")
    files.remove("orders")
    events.wait("config.removed", database="orders")
    with pytest.raises(DatabaseRemovedError), handle:
        pass
    files.write("orders", text("late"))
    eventually(lambda: "orders" in watched, 10, "it is back")
    assert watched.get("orders", "normal") is handle
