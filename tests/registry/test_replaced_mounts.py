"""Mounts whose source is replaced: they show the old files for ever, which must be noticed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pgmonkey import Registry
from tests.kit.canary import Canary
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory

#: Runs a command where it may mount things that nothing else sees.
APART = ("unshare", "--map-root-user", "--mount")

BEGINNING = """
import shutil, subprocess
from pathlib import Path
import structlog
from pgmonkey import Registry

def new_home(name):
    global outside, secrets, files, ORDERS
    home = Path(argv[0], name)
    outside, secrets, files = home / "outside", home / "secrets", home / "registry.d"
    for directory in (outside, secrets, files):
        directory.mkdir(parents=True)
    events.clear()
    secret = secrets / "password"
    ORDERS = f"connection_settings: {{host: h, dbname: d, user: u, password: {{from_file: {secret}}}}}"

events = []
structlog.configure(processors=[lambda logger, method, event: events.append(event) or str(event)])

def mount(source, target):
    if not target.exists():
        target.mkdir() if source.is_dir() else target.touch()
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)

def unmount(target):
    subprocess.run(["umount", str(target)], check=True)

def replace(path, text):
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)

def value(key):
    return registry.config("orders").connect_kwargs("normal").get(key)

def states():
    return {one.name: one.state for one in registry.status().databases}

def rejected(path, code):
    report = registry.reload()
    (problem,) = {problem for problems in report.rejected.values() for problem in problems}
    assert (problem.path, problem.code) == (str(path), code), problem
    assert problem.hint.startswith("start the container again"), problem
    assert not registry.status().last_reload_successful
    said = [one for one in events if one["event"] == "config.rejected"]
    assert {(one["file"], one["code"]) for one in said} == {(str(path), code)}, said
    events.clear()
    registry.reload()
    assert [one for one in events if one["event"] == "config.rejected"] == [], "it is reported once"
    return report
"""

FILES = """
for name in ("secret", "database", "defaults"):
    new_home(name)
    target = {
        "secret": secrets / "password",
        "database": files / "orders.yaml",
        "defaults": files / "_defaults.yaml",
    }[name]
    source = outside / target.name
    for path, text in (
        (secrets / "password", "first"),
        (files / "orders.yaml", ORDERS),
        (files / "_defaults.yaml", "description: first"),
    ):
        (source if path == target else path).write_text(text)
    mount(source, target)
    with Registry(files, metrics=None, watch=False) as registry:
        assert registry.reload().rejected == {}
        new = source.read_text().replace("first", "second").replace("user: u", "user: second")
        replace(source, new)
        report = rejected(target, "file.unlinked")
        assert "orders" in report.rejected
        assert report.applied == ()
        assert states() == {"orders": "stale"}
        # What is not mounted in this way is still read.
        other = secrets / "password" if target != secrets / "password" else files / "_defaults.yaml"
        other.write_text(other.read_text().replace("first", "third"))
        assert registry.reload().applied == ("orders",)
        assert "third" in (value("password"), registry.config("orders").description)
        assert states() == {"orders": "stale"}

        # A new process has nothing better, and says the same at its next look.
        with Registry(files, metrics=None, watch=False) as other:
            assert other.reload().rejected["orders"][0].code == "file.unlinked"

        unmount(target)
        mount(source, target)
        report = registry.reload()
        assert (report.applied, report.rejected) == (("orders",), {}), report
        assert "second" in (value("password"), value("user"), registry.config("orders").description)
        assert states() == {"orders": "idle"}
"""

DIRECTORIES = """
new_home("directory")
(outside / "registry.d").mkdir()
(outside / "registry.d" / "orders.yaml").write_text(ORDERS)
(secrets / "password").write_text("first")
mount(outside / "registry.d", files)
with Registry(files, metrics=None, watch=False) as registry:
    shutil.rmtree(outside / "registry.d")
    (outside / "registry.d").mkdir()
    (outside / "registry.d" / "orders.yaml").write_text(ORDERS.replace("user: u", "user: second"))
    rejected(files, "registry.unlinked")
    (secrets / "password").write_text("second")
    report = registry.reload()
    assert (report.applied, report.removed) == (("orders",), ()), report
    assert value("password") == "second"
    unmount(files)
    mount(outside / "registry.d", files)
    assert registry.reload().rejected == {}
    assert value("user") == "second"

new_home("secrets")
(outside / "secrets").mkdir()
(outside / "secrets" / "password").write_text("first")
(files / "orders.yaml").write_text(ORDERS)
mount(outside / "secrets", secrets)
with Registry(files, metrics=None, watch=False) as registry:
    shutil.rmtree(outside / "secrets")
    report = rejected(files / "orders.yaml", "secret.missing")
    (problem,) = report.rejected["orders"]
    assert (problem.line, problem.key) == (1, "connection_settings.password.from_file")
    assert states() == {"orders": "stale"}
"""


@pytest.fixture
def may_mount(tmp_path: Path) -> None:
    """Skip the test where the system lets this process mount nothing."""
    (tmp_path / "mounted").mkdir()
    try:
        done = subprocess.run(
            [*APART, "mount", "--bind", str(tmp_path), str(tmp_path / "mounted")],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode()}")


def succeeds(program: str, canary: Canary, home: Path) -> None:
    with Program(BEGINNING + program, home, canary=canary, prefix=APART) as running:
        assert running.code() == 0, running.text


@pytest.mark.usefixtures("may_mount")
def test_a_mounted_file_that_is_replaced_is_reported_and_the_rest_is_read_on(
    tmp_path: Path, canary: Canary
) -> None:
    """A subPath of Kubernetes keeps the old file: the database is stale, the problem says why."""
    succeeds(FILES, canary, tmp_path)


@pytest.mark.usefixtures("may_mount")
def test_a_mounted_directory_that_is_replaced_is_reported_and_removes_nothing(
    tmp_path: Path, canary: Canary
) -> None:
    """It looks empty: databases stay, and the problem of a secret is not one of its path."""
    succeeds(DIRECTORIES, canary, tmp_path)


def test_a_file_without_a_name_is_no_replaced_mount(registry_dir: RegistryDirectory) -> None:
    """A secret in memory that a descriptor leads to is read as always."""
    secret = os.memfd_create("password")
    os.write(secret, b"first")
    settings = {"host": "h", "dbname": "d", "user": "u"}
    path = f"/proc/self/fd/{secret}"
    registry_dir.write(
        "orders", {"connection_settings": {**settings, "password": {"from_file": path}}}
    )
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        assert registry.reload().rejected == {}
    os.close(secret)
