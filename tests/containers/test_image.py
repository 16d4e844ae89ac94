"""The image: every step of its Dockerfile carried out, and what comes of it run as a container runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.containers.dockerfile import Stage, read
from tests.docs.snippets import ROOT
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase, need
from tests.kit.prometheus import check_metrics
from tests.kit.server import PostgresServer

DOCKER = ROOT / "docker"


@pytest.fixture
def stages() -> list[Stage]:
    """What the Dockerfile says."""
    return read(DOCKER / "Dockerfile")


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile passes hadolint, and its shell commands pass shellcheck."""
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKER / "Dockerfile"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_small_and_its_user_a_number(stages: list[Stage]) -> None:
    """The image has two stages of a slim base, a numeric user, a health check, and starts no shell."""
    build, final = stages
    assert build.base == final.base
    assert "slim" in final.base
    assert final.user.split(":") == ["10001", "10001"]
    assert final.healthcheck[0] == "python"
    assert final.entrypoint == ["pgmonkey"]
    assert not any("install" in step[1].split() for step in final.steps if step[0] == "RUN")


def test_what_is_copied_is_not_ignored(stages: list[Stage]) -> None:
    """The build context has only the files that the build copies."""
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for stage in stages
        for step in stage.steps
        if step[0] == "COPY" and not step[1]
        for source in step[2:-1]
    }
    assert kept == copied


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_image_works_read_only_under_a_user_without_a_name(
    stages: list[Stage],
    server: PostgresServer,
    database: TemporaryDatabase,
    registry_dir: RegistryDirectory,
    canary: Canary,
    tmp_path: Path,
) -> None:
    """Built step by step and run as process 1, it is healthy, ready, writes nothing and ends on SIGTERM."""
    need(os.geteuid() == 0 and namespaces(), "root and mount namespaces")
    need(shutil.which("ip"), "ip, of iproute2")
    need(sys.base_prefix != "/usr", "a Python of its own, that a test may change a copy of")
    secrets = tmp_path / "mounted"
    secrets.mkdir()
    (secrets / "password").write_text(database.password)
    # As in a Secret with fsGroup: readable by root and the group alone.
    os.chown(secrets / "password", 0, 10001)
    (secrets / "password").chmod(0o440)
    registry_dir.write(
        "orders",
        {
            "connection_settings": {
                "host": "127.0.0.1",
                "port": 5432,
                "dbname": database.name,
                "user": database.user,
                "password": {"from_file": "/run/secrets/orders/password"},
            }
        },
    )
    work = tmp_path / "image"
    work.mkdir()
    (socket,) = server.socket_directory.glob(".s.PGSQL.*[0-9]")
    specification = {
        "work": str(work),
        "context": str(ROOT),
        "python": sys.base_prefix,
        "hidden": sorted({str(ROOT), *hiding(sys.prefix, ROOT)}),
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "volumes": [
            [str(registry_dir), "/etc/pgmonkey/registry.d"],
            [str(secrets), "/run/secrets/orders"],
        ],
        "socket": str(socket),
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HTTP"))
        },
    }
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, Path(__file__).with_name("engine.py"), json.dumps(specification)),
        ],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    canary.check(done.stdout + done.stderr, "what the image prints")

    assert "healthy" in seen, seen["log"]
    assert (seen["before"], seen["healthy"], seen["after"]) == (1, 0, 1)
    assert seen["ready"]["databases"]["orders"]["reached"]
    assert seen["ids"] == [["10001"] * 4, ["10001"] * 4]
    assert "cannot find name for user ID 10001" in seen["name"]
    assert seen["pids"][-1] == "1"
    assert seen["command"][-4:] == stages[-1].command
    assert all("Read-only file system" in said for said in seen["write"]), seen["write"]
    assert "No module named pip" in seen["pip"]
    assert "pgmonkey" in seen["programs"]
    assert not [name for name in seen["programs"] if name.startswith(("pip", "hatch"))]
    assert 'pgmonkey_up{database="orders"} 1.0' in seen["metrics"]
    check_metrics(seen["metrics"])
    assert seen["exit"] == 0, seen["log"]
    assert "Traceback" not in seen["log"]


def namespaces() -> bool:
    """Tell whether this machine lets us make them."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, check=False
    )
    return done.returncode == 0


def hiding(prefix: str, root: Path) -> list[str]:
    """Return the environment of the tests, where it does not lie in the repository."""
    return [] if Path(prefix).is_relative_to(root) else [prefix]
