"""The runbook, walked through: two processes of an application, a real server, a real Prometheus.

Each command of the page runs as it is written. The alerts that the page names fire and are over when
it says so; their minutes are half a second long, and they fire as soon as their condition holds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.docs.environment import Environment
from tests.docs.snippets import ROOT, Snippet, snippets
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.ports import free_port
from tests.kit.process import Process
from tests.kit.prometheus import DASHBOARD, Prometheus, configuration
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.kit.server import PostgresServer

PAGE = ROOT / "docs" / "runbook.md"
MINUTE = "500ms"
#: Seconds to wait for an alert, or for a command to say what it should.
PATIENCE = 40
#: How many clients each process has.
CLIENTS = 4

_SERVER = [sys.executable, "-m", "hypercorn", "--workers=0"]
_APPLICATION = """
import threading, time

from prometheus_client import make_asgi_app

from pgmonkey import Registry
from pgmonkey.service import status_app

registry = Registry("registry.d", probe_interval=0.5)
metrics, page = make_asgi_app(), status_app(registry)

async def app(scope, receive, send):
    await (metrics if scope.get("path") == "/metrics" else page)(scope, receive, send)

def work():
    while True:
        try:
            with registry.get("orders") as connection:
                connection.execute("SELECT pg_sleep(0.1)")
        except Exception:
            time.sleep(0.1)

for _ in range({clients}):
    threading.Thread(target=work, daemon=True).start()
"""


class Pod:
    """The place of one process of the application, with files and secrets of its own."""

    def __init__(self, directory: Path, canary: Canary) -> None:
        self.registry_dir = RegistryDirectory(directory / "registry.d")
        self.volume = SecretVolume(directory / "secrets")
        self.port = free_port()
        self._directory = directory
        self._canary = canary

    def start(self) -> Process:
        """Start the process, behind hypercorn; its files are there."""
        (self._directory / "application.py").write_text(_APPLICATION.format(clients=CLIENTS))
        return Process(
            [*_SERVER, f"--bind=127.0.0.1:{self.port}", "application:app"],
            canary=self._canary,
            cwd=self._directory,
            env=os.environ | {"PYTHONPATH": str(ROOT), "SECRETS": str(self.volume.directory)},
        )


class Walk:
    """The page, and the place where it is walked through."""

    def __init__(
        self,
        directory: Path,
        database: TemporaryDatabase,
        proxy: ChaosProxy,
        environment: Environment,
        pods: list[Pod],
    ) -> None:
        self.database = database
        self.proxy = proxy
        self.registry_dir = RegistryDirectory(directory / "registry.d")
        self.volume = SecretVolume(directory / "secrets")
        self.new_secret = directory / "new-secret"
        self.pods = pods
        self.prometheus: Prometheus
        self.address = {"host": proxy.host, "port": proxy.port}
        self.max_size = 10
        self._directory = directory
        self._variables = environment.shell_variables() | {"SECRETS": str(self.volume.directory)}
        self._snippets = [one for one in snippets(PAGE) if one.word == "walk"]

    def write(self, **more: Any) -> None:
        """Write the file as it is to be, into `registry.d`."""
        self.registry_dir.declare(
            "orders",
            self.database,
            connection={
                **self.address,
                "user": {"from_file": "${SECRETS}/username"},
                "password": {"from_file": "${SECRETS}/password"},
            },
            pool_settings={"min_size": 1, "max_size": self.max_size},
            timeout=0.5,
            **more,
        )

    def publish(self, *pods: Pod) -> None:
        """Bring the file to the processes, or to some of them."""
        text = self.registry_dir.file("orders").read_text()
        for pod in pods or self.pods:
            pod.registry_dir.write("orders", text)

    def publish_secret(self) -> None:
        """Bring the secret to the processes, and to this machine."""
        for volume in (self.volume, *(pod.volume for pod in self.pods)):
            write_credentials(volume, self.database)

    def step(self, section: str, *says: str) -> None:
        """Run the next command of the page; `$POD` is the process that gets its files last.

        Args:
            section: The heading under which it must stand.
            says: What each output must contain.
        """
        snippet = self._snippets.pop(0)
        assert self._section(snippet) == section
        eventually(lambda: self._succeeds(snippet, says), PATIENCE, snippet.text)

    def _succeeds(self, snippet: Snippet, says: tuple[str, ...]) -> bool:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", snippet.text],
            env=self._variables | {"POD": f"http://127.0.0.1:{self.pods[-1].port}"},
            cwd=self._directory,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        print(f"$ {snippet.text}{done.stdout}{done.stderr}")
        self.database.canary.check(done.stdout + done.stderr, snippet.place)
        expected = int(snippet.rest.removeprefix("exit=") or 0)
        return done.returncode == expected and all(one in done.stdout + done.stderr for one in says)

    @staticmethod
    def _section(snippet: Snippet) -> str:
        lines = PAGE.read_text().splitlines()[: snippet.line]
        return [line[3:] for line in lines if line.startswith("## ")][-1]

    def fires(self, alert: str) -> None:
        """Wait until an alert fires."""
        eventually(lambda: alert in self.prometheus.firing(), PATIENCE, f"{alert} fires")

    def is_over(self, alert: str) -> None:
        """Wait until an alert fires no more."""
        eventually(lambda: alert not in self.prometheus.firing(), PATIENCE, f"{alert} is over")

    def shows(self, expression: str) -> None:
        """Wait until an expression has a value for each process."""
        pods = len(self.pods)
        eventually(
            lambda: self.prometheus.value(f"count({expression})") == pods, PATIENCE, expression
        )

    def ended(self) -> bool:
        """Tell whether every command of the page has been run."""
        return not self._snippets


@pytest.fixture
def walk(
    tmp_path: Path,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    server: PostgresServer,
    canary: Canary,
) -> Iterator[Walk]:
    """Two processes that run, and a Prometheus that scrapes them."""
    pods = [Pod(tmp_path / f"pod-{number}", canary) for number in (1, 2)]
    shell = tmp_path / "shell"
    shell.mkdir()
    environment = Environment(shell, server, canary)
    walk = Walk(tmp_path, database, proxy, environment, pods)
    with ExitStack() as stack:
        walk.write()
        walk.publish()
        walk.publish_secret()
        processes = [stack.enter_context(pod.start()) for pod in pods]
        config = configuration(tmp_path, [pod.port for pod in pods], minute=MINUTE, at_once=True)
        walk.prometheus = stack.enter_context(Prometheus(tmp_path, config))
        for process in processes:
            process.wait_until(
                lambda process=process: "Running on" in process.text, 30, "it listens"
            )
        yield walk


def test_the_page_names_alerts_and_panels_that_exist() -> None:
    """Each section has an alert and a panel; every bold word of these lines is a panel's title."""
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    for section in PAGE.read_text().split("\n## ")[1:]:
        line = section.split("\n\n")[1].replace("\n", " ")
        alerts, panels = line.split("Panels: ")
        assert "](alerts.md#pgmonkey" in alerts
        assert set(re.findall(r"\*\*([\w ]+)\*\*", panels)) <= titles, section


@pytest.mark.slow
@pytest.mark.prometheus
@pytest.mark.timeout(240)
def test_the_runbook(walk: Walk) -> None:
    """The commands of the page do what it says; its alerts fire and are over; panels have data."""
    began = time.time()
    rotate(walk)
    rotate_in_the_wrong_order(walk)
    disagree(walk)
    have_too_many(walk)
    move(walk)
    assert walk.ended()
    walk.prometheus.check_rules()
    walk.prometheus.check_dashboard(began)


# Commands come before the wait for an alert: Prometheus begins to scrape five seconds after its start,
# and looks twice a second.


def rotate(walk: Walk) -> None:
    """Rotate a password as the page says it."""
    section = "A password is about to rotate"
    walk.step(section)
    walk.database.rotate()
    write_credentials(SecretVolume(walk.new_secret), walk.database)
    walk.step(section, "secrets")
    walk.publish_secret()
    walk.shows('pgmonkey_config_version{database="orders"} == 2')


def rotate_in_the_wrong_order(walk: Walk) -> None:
    """Publish a secret that the server does not accept yet."""
    database, alert = walk.database, "PgmonkeySecretNotInForce"
    database.password = database.canary.secret()
    walk.publish_secret()
    walk.fires(alert)
    database.server.set_password(database.user, database.password)
    walk.is_over(alert)
    walk.shows('pgmonkey_config_version{database="orders"} == 3')


def disagree(walk: Walk) -> None:
    """Publish a file to one process only."""
    section, alert = "Pods disagree", "PgmonkeyConfigDiffers"
    walk.write(revision="2")
    walk.publish(walk.pods[0])
    walk.step(section, "revision")
    walk.fires(alert)
    (query,) = re.findall(r"```promql\n\s*(.*)\n", PAGE.read_text())
    assert len(set(walk.prometheus.query(query).values())) == len(walk.pods)
    walk.publish()
    walk.is_over(alert)


def have_too_many(walk: Walk) -> None:
    """Let the role have fewer connections than both processes want."""
    section, alert = "Too many connections", "PgmonkeyServerFull"
    walk.database.connection_limit(6)
    walk.database.terminate_backends()
    walk.step(section, "20    22 ")
    walk.fires(alert)
    walk.max_size = 2
    walk.write(revision="2")
    walk.publish()
    walk.step(section, f"role {walk.database.user}  4     6         6        0 ")
    walk.is_over(alert)


def move(walk: Walk) -> None:
    """Let the server be gone from its address."""
    section, alert = "The database moved", "PgmonkeyDatabaseDown"
    walk.proxy.set("refuse")
    walk.proxy.kill()
    walk.step(section, "Connection refused")
    walk.fires(alert)
    walk.address = {"host": walk.database.host, "port": walk.database.port}
    walk.write(revision="2")
    walk.step(section, "cutover")
    walk.step(section, "works")
    walk.publish()
    walk.step(section)
    walk.is_over(alert)
