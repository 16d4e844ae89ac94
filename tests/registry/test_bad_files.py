"""Files that go bad while they are served: what an operator sees, and what the clients do not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import prometheus_client
import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory


@dataclass
class Operator:
    """What an operator has: the metrics, the status, the events."""

    registry: Registry
    numbers: prometheus_client.CollectorRegistry
    events: CapturedEvents

    def metric(self, name: str, **labels: str) -> float | None:
        return self.numbers.get_sample_value(name, labels)

    def of_orders(self, name: str, **labels: str) -> float | None:
        return self.metric(name, database="orders", **labels)

    def serves(self) -> bool:
        with self.registry.get("orders").connection(timeout=5) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)

    def sees_one_rejection(self, code: str, *, says: str) -> None:
        """Look at the event, the status, the metrics; and that the same is not said twice."""
        problem = f"config.{code}" if "." not in code else code
        rejected = self.events.wait("config.rejected", database="orders", timeout=10)
        assert rejected["code"] == problem, rejected
        assert rejected["file"].endswith("orders.yaml")
        assert any(says in text for text in rejected["problems"]), rejected["problems"]
        (orders,) = (one for one in self.registry.status().databases if one.name == "orders")
        assert orders.state == "stale"
        assert says in str(orders.problems[0])
        assert orders.last_reload == "rejected"
        assert not self.registry.status().last_reload_successful
        assert self.of_orders("pgmonkey_config_stale") == 1
        assert self.of_orders("pgmonkey_config_version") == 1
        assert self.metric("pgmonkey_config_last_reload_successful") == 0
        assert self.of_orders("pgmonkey_config_reloads_total", outcome="rejected") == 1
        self.registry.reload()
        assert len(self.events.named("config.rejected")) == 1, "the same problem is one event"
        assert self.of_orders("pgmonkey_config_reloads_total", outcome="rejected") == 1
        assert self.serves(), "the last good configuration serves"

    def sees_it_mended(self) -> None:
        eventually(lambda: self.of_orders("pgmonkey_config_stale") == 0, 10, "it is mended")
        assert self.metric("pgmonkey_config_last_reload_successful") == 1
        assert self.registry.status().databases[0].problems == ()
        assert self.serves()


@pytest.fixture
def secret(tmp_path: Path, database: TemporaryDatabase) -> Path:
    """The file of the database's password."""
    directory = tmp_path / "secrets"
    directory.mkdir()
    path = directory / "password"
    path.write_text(database.password)
    return path


@pytest.fixture
def good(registry_dir: RegistryDirectory, database: TemporaryDatabase, secret: Path) -> str:
    """The text of a good file, which stands in the registry."""
    password = {"from_file": str(secret)}
    return registry_dir.declare("orders", database, connection={"password": password}).read_text()


@pytest.fixture
def operator(
    registry_dir: RegistryDirectory, events: CapturedEvents, good: str
) -> Iterator[Operator]:
    """A watched registry with an open database, and all that an operator can look at."""
    numbers = prometheus_client.CollectorRegistry()
    with Registry(registry_dir, metrics=numbers, removal_delay=0.3) as registry:
        operator = Operator(registry, numbers, events)
        assert operator.serves()
        events.wait("watch.started")
        assert operator.of_orders("pgmonkey_config_stale") == 0
        yield operator


def deep(good: str) -> str:
    return good + "description: " + "[" * 1000 + "]" * 1000


def bomb(good: str) -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return good + "\n".join(lines) + "\n"


def merge_bomb(good: str) -> str:
    lines = ["a: &a {x: 1, y: 2}"]
    lines += [
        f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return good + "\n".join(lines) + "\n"


SPOILERS: dict[str, tuple[Callable[[str], str | bytes], str, str]] = {
    # C1
    "unclosed bracket": (lambda good: good + "x: [\n", "syntax", ""),
    "tab": (lambda good: good.replace("  host", "\thost"), "syntax", "tab"),
    "unclosed quote": (lambda good: good + "description: 'no end\n", "syntax", ""),
    # C3
    "empty": (lambda _good: "", "empty", "empty"),
    "comments only": (lambda _good: "# nothing\n", "empty", "empty"),
    "document marker only": (lambda _good: "---\n", "empty", "empty"),
    # C4
    "too large": (lambda good: good + "#" * 300 * 1024, "too_large", "256 KiB"),
    "far too large": (lambda good: good + "#" * 20_000_000, "too_large", "256 KiB"),
    "too deep": (deep, "too_deep", "20"),
    "billion laughs": (bomb, "too_many_nodes", "2000"),
    "merge bomb": (merge_bomb, "too_many_nodes", "2000"),
    # C5
    "duplicate key": (lambda good: good + "connection_type: pool\n", "duplicate_key", "twice"),
    "wrong type": (lambda good: good + "drain_timeout: soon\n", "duration", "drain_timeout"),
    "unknown key": (lambda good: good + "conection_type: pool\n", "unknown_key", "connection_type"),
    "not UTF-8": (lambda good: good.encode() + b"description: \xff\n", "encoding", "UTF-8"),
    "a NUL": (lambda good: good + 'description: "a\\0b"\n', "nul", "NUL"),
    # C16
    "unset variable": (
        lambda good: good + "description: ${PGMONKEY_TEST_UNSET}\n",
        "reference.unset",
        "PGMONKEY_TEST_UNSET",
    ),
    "empty variable for a password": (
        lambda good: (
            good.replace("\n  password:\n    from_file", "\n  password:\n    from_env").split(
                "from_env:", maxsplit=1
            )[0]
            + "from_env: PGMONKEY_TEST_EMPTY\n"
        ),
        "probe.auth",
        "no password supplied",
    ),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_file_that_goes_bad_is_rejected_once_with_its_reason_and_the_last_good_one_serves(
    operator: Operator,
    registry_dir: RegistryDirectory,
    good: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One event with file and code, the reason in the status, the metrics turn; then it is mended."""
    monkeypatch.setenv("PGMONKEY_TEST_EMPTY", "")
    spoil, code, says = SPOILERS[name]
    content = spoil(good)
    path = registry_dir.file("orders")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    operator.sees_one_rejection(code, says=says)
    registry_dir.write("orders", good)
    operator.sees_it_mended()


def test_bad_files_cost_no_memory(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """A process that may have 64 MiB more than it has rejects huge files, and goes on serving."""
    program = """
import resource, sys
from pathlib import Path
from pgmonkey import Registry
registry = Registry(sys.argv[1], metrics=None, watch=False)
with registry.get("orders") as connection:
    connection.execute("SELECT 1")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 64 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
path = Path(sys.argv[1], "orders.yaml")
good = path.read_text()
for bad in sorted(Path(sys.argv[2]).iterdir()):
    bad.rename(path)
    print(registry.reload().rejected["orders"][0].code)
    with registry.get("orders") as connection:
        connection.execute("SELECT 1")
path.write_text(good)
assert not registry.reload().rejected
registry.close()
"""
    good = registry_dir.declare("orders", database).read_text()
    bad = tmp_path / "bad"
    bad.mkdir()
    for number, spoil in enumerate((bomb, deep, merge_bomb)):
        (bad / str(number)).write_text(spoil(good))
    with (bad / "3").open("wb") as huge:
        huge.truncate(2 * 2**30)
    done = subprocess.run(
        [sys.executable, "-c", program, str(registry_dir), str(bad)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )

    assert done.stdout.split() == [
        "config.too_many_nodes",
        "config.too_deep",
        "config.too_many_nodes",
        "config.too_large",
    ], done.stderr


# C13: what may be wrong with a file that holds a secret.


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def circular(path: Path) -> None:
    path.symlink_to(path.name)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


SECRETS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda _path: None, "secret.missing", "does not exist"),
    "dangling link": (dangling, "secret.missing", "does not exist"),
    "circular link": (circular, "secret.missing", "leads nowhere"),
    "directory": (Path.mkdir, "secret.not_regular", "is a directory"),
    "FIFO": (os.mkfifo, "secret.not_regular", "not a regular file"),
    "empty": (content(b""), "secret.empty", "is empty"),
    "only a newline": (content(b"\n"), "secret.empty", "is empty"),
    "too large": (content(b"x" * 70_000), "secret.too_large", "64 KiB"),
    "binary": (content(b"\xff\xfe\x01x"), "secret.encoding", "UTF-8"),
    "a NUL": (content(b"a\0b"), "secret.nul", "NUL"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_cannot_be_read_is_rejected_with_path_and_key_and_mended_by_itself(
    operator: Operator, database: TemporaryDatabase, secret: Path, name: str
) -> None:
    """The event names the secret's file and the key, never its content; nothing hangs on a FIFO."""
    spoil, code, says = SECRETS[name]
    secret.unlink()
    spoil(secret)
    operator.sees_one_rejection(code, says=says)
    (rejected,) = operator.events.named("config.rejected")
    assert rejected["key"] == "connection_settings.password.from_file"
    assert str(secret) in rejected["problems"][0]

    if secret.is_dir():
        secret.rmdir()
    else:
        secret.unlink(missing_ok=True)
    secret.write_text(database.rotate())
    operator.sees_it_mended()
