"""What the files may do: every change is found, whatever the events say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import watchfiles

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume


def text(database: TemporaryDatabase, name: str) -> str:
    return (
        "connection_type: pool\nconnection_settings:\n"
        + "".join(f"  {key}: '{value}'\n" for key, value in database.parameters().items())
        + f"  application_name: {name}\n"
    )


def application_name(registry: Registry, name: str = "orders") -> Any:
    """Return what the server sees in a checkout that starts now."""
    with registry.get(name) as connection:
        row = connection.execute("SELECT current_setting('application_name')").fetchone()
    assert row is not None
    return row[0]


class Numbers(prometheus_client.CollectorRegistry):
    """The metrics that an operator sees."""

    def of(self, metric: str, database: str = "orders", **labels: str) -> float | None:
        return self.get_sample_value(f"pgmonkey_{metric}", {"database": database, **labels})

    def reloads(self, outcome: str, database: str = "orders") -> float | None:
        return self.of("config_reloads_total", database, outcome=outcome)

    def all_in_force(self) -> bool:
        return self.get_sample_value("pgmonkey_config_last_reload_successful") == 1

    def declared(self) -> float | None:
        return self.get_sample_value("pgmonkey_registry_databases")


@pytest.fixture
def numbers() -> Numbers:
    """What the registry of the test exports to."""
    return Numbers()


@pytest.fixture
def registry(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    numbers: Numbers,
) -> Iterator[Registry]:
    """A watched registry whose one database is open, and whose watch is armed."""
    registry_dir.write("orders", text(database, "first"))
    with Registry(registry_dir, metrics=numbers, removal_delay=0.3) as registry:
        assert application_name(registry) == "first"
        events.wait("watch.started")
        yield registry


@pytest.mark.parametrize("how", ["rename", "in_place", "vim", "truncate_and_wait"])
def test_every_way_of_writing_a_file_is_seen_and_makes_one_version(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    numbers: Numbers,
    how: str,
) -> None:
    """Renamed over, rewritten in place, as an editor does it, half written: one applied change."""
    path = registry_dir.file("orders")
    new = text(database, "second")
    if how == "rename":
        registry_dir.write("orders", new)
    elif how == "in_place":
        registry_dir.write_in_place("orders", new)
    elif how == "vim":
        path.rename(path.with_name("orders.yaml~"))
        path.write_text(new)
        path.with_name("orders.yaml~").unlink()
    else:
        with path.open("w") as file:
            file.flush()
            os.fsync(file.fileno())
            threading.Event().wait(0.05)  # between truncating and writing, as a slow writer
            file.write(new)
    events.wait("config.applied", database="orders")

    assert application_name(registry) == "second"
    assert registry.status().databases[0].version == 2
    assert "config.removed" not in events.names
    assert len(events.named("config.rejected")) == 0
    assert (numbers.reloads("applied"), numbers.reloads("rejected")) == (1, 0)
    assert (numbers.of("config_version"), numbers.of("config_stale")) == (2, 0)


def test_unchanged_content_and_touch_do_nothing(
    registry: Registry,
    registry_dir: RegistryDirectory,
    events: CapturedEvents,
    numbers: Numbers,
) -> None:
    """A file that is touched or written again as it was makes no version and no event."""
    path = registry_dir.file("orders")
    registry_dir.write("orders", path.read_text())
    os.utime(path, (1, 1))
    report = registry.reload()

    assert report.unchanged == ("orders",)
    assert registry.status().databases[0].version == 1
    assert "config.applied" not in events.names
    assert (numbers.reloads("applied"), numbers.reloads("rejected")) == (0, 0)
    assert numbers.of("config_version") == 1


def test_a_burst_of_a_thousand_writes_ends_at_the_last_one(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    numbers: Numbers,
) -> None:
    """Many quick changes are applied as few; the final content is what runs."""
    for number in range(1000):
        registry_dir.write("orders", text(database, f"burst-{number}"))
    eventually(lambda: application_name(registry) == "burst-999", 15, "the last content runs")

    def applied_so_far() -> int:
        return len(events.named("config.applied"))

    # It is reported when no older connection is left.
    eventually(lambda: registry.status().databases[0].version == applied_so_far() + 1, 10)
    applied = applied_so_far()
    assert applied < 200
    assert numbers.reloads("applied") == applied
    assert numbers.of("config_version") == applied + 1


def test_a_directory_that_is_deleted_and_made_again_is_found(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    numbers: Numbers,
) -> None:
    """While it is gone the last good configuration serves; its return is applied by itself."""
    shutil.rmtree(registry_dir.path)
    events.wait("watch.lost")
    assert application_name(registry) == "first"
    assert "orders" in registry
    assert "config.removed" not in events.names
    rejected = events.wait("config.rejected")
    assert (rejected["code"], rejected["file"]) == ("registry.missing", str(registry_dir))
    assert not registry.status().last_reload_successful
    assert not numbers.all_in_force()
    assert (numbers.declared(), numbers.reloads("removed")) == (1, 0)

    registry_dir.path.mkdir()
    registry_dir.write("orders", text(database, "again"))
    eventually(lambda: application_name(registry) == "again", 10, "the new content runs")
    events.wait("watch.restored")
    assert registry.status().last_reload_successful
    assert numbers.all_in_force()

    # The watch is on the new directory: the next change comes by an event, not by the rescan.
    registry_dir.write("orders", text(database, "later"))
    eventually(lambda: application_name(registry) == "later", 10, "the next change is seen")
    assert len(events.named("config.rejected")) == 1


def test_a_symlink_that_is_switched_is_followed(
    tmp_path: Path, database: TemporaryDatabase, events: CapturedEvents, numbers: Numbers
) -> None:
    """A registry directory behind a symlink is read again when the link points elsewhere."""
    for version in ("one", "two"):
        RegistryDirectory(tmp_path / version).write("orders", text(database, version))
    link = tmp_path / "registry.d"
    link.symlink_to("one")
    with Registry(link, metrics=numbers) as registry:
        assert application_name(registry) == "one"
        events.wait("watch.started")
        temporary = tmp_path / "link"
        temporary.symlink_to("two")
        temporary.replace(link)

        events.wait("config.applied", timeout=10)
        assert application_name(registry) == "two"
        assert [one["version"] for one in events.named("config.applied")] == [2]
        assert (numbers.reloads("applied"), numbers.of("config_version")) == (1, 2)


def test_a_kubernetes_swap_of_the_config_directory_is_one_change(
    tmp_path: Path, database: TemporaryDatabase, events: CapturedEvents, numbers: Numbers
) -> None:
    """A ConfigMap that holds the files is swapped by kubelet: exactly one applied change."""
    mount = SecretVolume(tmp_path / "registry.d")
    mount.write({"orders.yaml": text(database, "first")})
    with Registry(mount.directory, metrics=numbers) as registry:
        assert application_name(registry) == "first"
        events.wait("watch.started")
        mount.write({"orders.yaml": text(database, "second")})

        events.wait("config.applied", timeout=10)
        assert application_name(registry) == "second"
        assert len(events.named("config.applied")) == 1
        assert registry.status().databases[0].version == 2
        assert (numbers.reloads("applied"), numbers.reloads("rejected")) == (1, 0)


def test_a_secret_reloads_exactly_the_databases_that_use_it(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
    numbers: Numbers,
) -> None:
    """A rotated secret touches one database of two; the other keeps its version."""
    registry_dir.declare("orders", database, volume=volume)
    registry_dir.declare("reports", database, connection={"password": database.password})
    with Registry(registry_dir, metrics=numbers) as registry:
        application_name(registry)
        events.wait("watch.started")
        database.rotate()
        write_credentials(volume, database)
        applied = events.wait("config.applied", database="orders")
        assert applied["changed"] == ["connection_settings.password"]

        versions = {one.name: one.version for one in registry.status().databases}
        assert versions == {"orders": 2, "reports": 1}
        assert numbers.of("config_version") == 2
        assert numbers.of("config_version", "reports") == 1
        assert numbers.reloads("applied", "reports") == 0
        modified = numbers.of("secret_modified_timestamp_seconds")
        assert modified == pytest.approx(volume.path("password").stat().st_mtime)


def silent(*_directories: str, stop_event: Any, **_: Any) -> Iterator[set[Any]]:
    """Watch as an operating system does that reports nothing."""
    while not stop_event.is_set():
        time.sleep(0.02)  # as watchfiles, which comes back now and then with nothing
        yield set()


def test_a_lost_event_is_made_good_by_the_rescan(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    numbers: Numbers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When no file event ever comes, the rescan finds the change."""
    monkeypatch.setattr(watchfiles, "watch", silent)
    registry_dir.write("orders", text(database, "first"))
    with Registry(registry_dir, metrics=numbers, rescan_interval=0.2) as registry:
        assert application_name(registry) == "first"
        registry_dir.write("orders", text(database, "second"))

        events.wait("config.applied", timeout=10)
        assert application_name(registry) == "second"
        assert [one["version"] for one in events.named("config.applied")] == [2]
        assert numbers.of("config_version") == 2


def test_a_pause_of_the_process_is_a_reason_to_read_the_files(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that was stopped, or a machine that slept, may have missed events: it looks."""
    monkeypatch.setattr(watchfiles, "watch", silent)
    registry_dir.write("orders", text(database, "first"))
    with Registry(registry_dir, metrics=None, rescan_interval=3600) as registry:
        assert application_name(registry) == "first"
        events.wait("watch.started")
        registry_dir.write("orders", text(database, "second"))
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 60)  # it is a minute later

        eventually(lambda: application_name(registry) == "second", 10, "it has read the files")


def test_without_file_events_the_directory_is_polled_and_the_event_says_so(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    numbers: Numbers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No inotify instance left: changes are found by looking, also two within one second."""

    def exhausted(*_directories: str, **_: Any) -> Iterator[Any]:
        raise RuntimeError("Too many open files (os error 24)")

    monkeypatch.setattr(watchfiles, "watch", exhausted)
    registry_dir.write("orders", text(database, "first"))
    with Registry(registry_dir, metrics=numbers) as registry:
        events.wait("watch.degraded", mode="polling")
        assert registry.status().polling
        for name in ("second", "third!"):
            registry_dir.write("orders", text(database, name))
            eventually(lambda name=name: application_name(registry) == name, 10, f"{name} runs")
        assert len(events.named("watch.degraded")) == 1, "it is reported once"
        assert registry.status().watcher_errors > 0
        assert (numbers.get_sample_value("pgmonkey_watcher_errors_total") or 0) > 0
        assert numbers.get_sample_value("pgmonkey_watcher_up") == 1, "changes are still seen"
        assert numbers.of("config_version") == 3


def test_the_real_inotify_limit_leads_to_polling(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """In a namespace without inotify instances, a reload still works."""
    program = (
        "import sys, time\n"
        "from pgmonkey import Registry\n"
        "from pathlib import Path\n"
        "registry = Registry(sys.argv[1], metrics=None)\n"
        "deadline = time.monotonic() + 10\n"
        "while not registry.status().polling and time.monotonic() < deadline:\n"
        "    time.sleep(0.01)\n"
        "path = Path(sys.argv[1], 'orders.yaml')\n"
        "path.write_text(path.read_text() + 'description: changed\\n')\n"
        "while registry.status().databases[0].description != 'changed':\n"
        "    assert time.monotonic() < deadline, 'not seen'\n"
        "    time.sleep(0.01)\n"
        "print('polling', registry.status().polling)\n"
    )
    registry_dir.write("orders", text(database, "first"))
    limited = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    command = ["unshare", "-Ur", "sh", "-c", limited, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("user namespaces are needed for this test")
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*command, sys.executable, "-c", program, str(registry_dir)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "polling True\n"), done.stderr


def test_a_file_is_added_renamed_and_removed(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    numbers: Numbers,
) -> None:
    """A new file is a new database; a renamed one goes under its old name and comes as new."""
    registry_dir.write("reports", text(database, "reports"))
    eventually(lambda: "reports" in registry, 5, "the new database is there")
    assert application_name(registry, "reports") == "reports"

    registry_dir.file("reports").rename(registry_dir.file("archive"))
    eventually(lambda: "archive" in registry and "reports" not in registry, 5, "it is renamed")
    assert application_name(registry, "archive") == "reports"
    assert len(events.named("config.removed", database="reports")) == 1
    assert events.named("config.applied", database="archive")
    assert numbers.reloads("removed", "reports") == 1
    assert numbers.of("config_version", "reports") is None, "its gauges are gone"
    assert numbers.of("config_version", "archive") == 1
    assert numbers.declared() == 2

    registry_dir.remove("archive")
    events.wait("config.removed", database="archive")
    assert numbers.reloads("removed", "archive") == 1
    assert numbers.all_in_force(), "a removal is no failure"
    assert application_name(registry) == "first", "the other database was not touched"
    assert "config.rejected" not in events.names


def test_a_new_database_is_there_once_it_is_in_force(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A name that is listed can be had and has a state, however soon after its file was written."""
    registry_dir.write("orders", text(database, "first"))
    errors: list[BaseException] = []
    stop = threading.Event()
    with Registry(registry_dir, metrics=None, watch=False) as registry:

        def look() -> None:
            try:
                while not stop.is_set():
                    for name in registry:
                        registry.get(name)
                    assert all(one.state for one in registry.status().databases)
            except BaseException as error:
                errors.append(error)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            for number in range(50):
                registry_dir.write(f"new{number}", text(database, "new"))
                registry.reload()
        finally:
            stop.set()
            looking.join()

        assert errors == []
        assert application_name(registry, "new49") == "new"


def test_changed_defaults_reach_every_database(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
    numbers: Numbers,
) -> None:
    """`_defaults.yaml` is merged under every database, also when it changes or goes bad."""
    body = text(database, "x").replace("  application_name: x\n", "")
    registry_dir.write("orders", body)
    registry_dir.write("_defaults", "connection_settings: {application_name: one}\n")
    with Registry(registry_dir, metrics=numbers) as registry:
        assert application_name(registry) == "one"
        events.wait("watch.started")
        registry_dir.write("_defaults", "connection_settings: {application_name: two}\n")
        eventually(lambda: application_name(registry) == "two", 10, "the new default is in force")

        registry_dir.write("_defaults", "connection_settings: [\n")
        events.wait("config.rejected")
        assert application_name(registry) == "two"
        assert not registry.status().last_reload_successful
        assert (numbers.of("config_stale"), numbers.all_in_force()) == (1, False)


def test_what_touches_no_connection_takes_effect_without_a_rotation(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
) -> None:
    """A changed description makes a version, but keeps the connections."""
    with registry.get("orders") as connection:
        before = connection.info.backend_pid
    registry_dir.write("orders", text(database, "first") + "description: order intake\n")
    applied = events.wait("config.applied", database="orders")
    with registry.get("orders") as connection:
        after = connection.info.backend_pid

    assert applied["changed"] == ["description"]
    assert (applied["version"], before) == (2, after)
    assert registry.status().databases[0].description == "order intake"
    assert "database.rotated" not in events.names


def test_a_registry_of_some_names_reads_and_counts_only_these(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """With `names`, the broken file and the missing secret of another service do not matter."""
    registry_dir.write("orders", text(database, "first"))
    registry_dir.write("other", "connection_settings: [\n")
    with Registry(registry_dir, names=["orders"], metrics=None) as registry:
        assert tuple(registry) == ("orders",)
        assert application_name(registry) == "first"


def test_a_dropped_registry_ends_its_watcher(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A registry without a reference stops its thread and closes its connections."""
    registry_dir.write("orders", text(database, "first"))
    registry = Registry(registry_dir, metrics=None)
    assert application_name(registry) == "first"
    threads = [one for one in threading.enumerate() if one.name == "pgmonkey-watcher"]
    assert len(threads) == 1
    del registry

    eventually(lambda: not threads[0].is_alive(), 5, "the watcher ends")
    eventually(lambda: database.backends() == [], 5, "its connections are closed")


def test_a_change_is_in_force_soon_after_it_was_made(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    events: CapturedEvents,
) -> None:
    """The watch reports a change long before the rescan, and the status keeps the duration."""
    began = time.monotonic()
    registry_dir.write("orders", text(database, "second"))
    events.wait("database.rotated")

    assert time.monotonic() - began < 10
    assert registry.status().reload_durations.count == 1
