"""The service as systemd starts, watches, reloads and ends it; a socket of the test stands in."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import prometheus_client
import pytest

from pgmonkey import Registry
from pgmonkey.registry.maintenance import Maintenance
from pgmonkey.service.runner import Service, ServiceOptions
from pgmonkey.service.server import listen
from pgmonkey.service.systemd import notify, watchdog_interval
from tests.docs.commands import complaint
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.components import need
from tests.kit.process import Process
from tests.service.serving import Serving

UNIT = Path(__file__).parents[2] / "docs" / "pgmonkey.service"
GOOD = "connection_settings: {host: 127.0.0.1, port: 1, dbname: orders, user: app}\n"


class Systemd:
    """What systemd is to a service: a datagram socket that takes its messages.

    Args:
        address: A path, or an abstract name that begins with @.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        # Few datagrams fit into the socket: a sender waits until somebody takes them.
        self._socket.settimeout(0.05)
        self._ended = False
        self._reading = threading.Thread(target=self._read, name="systemd")

    def __enter__(self) -> Self:
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._reading.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._ended:
            with suppress(TimeoutError):
                text = self._socket.recv(4096).decode()
                self.messages.append(dict(line.split("=", 1) for line in text.split("\n")))

    def all(self, key: str) -> list[dict[str, str]]:
        """Return the messages that have an assignment."""
        return [message for message in list(self.messages) if key in message]

    def states(self) -> list[str]:
        """Return what the messages say about the state of the service, without its heartbeat."""
        return [
            key
            for message in list(self.messages)
            for key in message
            if key in ("READY", "RELOADING", "STOPPING")
        ]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A systemd that waits for messages."""
    with Systemd(str(tmp_path / "notify")) as systemd:
        yield systemd


def unit() -> dict[str, list[str]]:
    """Return the settings of the unit file's service, each with its values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_life_of_the_service_under_its_unit(
    systemd: Systemd, registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Ready once it listens, reloading at SIGHUP and ready again, alive all the while, then stopping.

    The password is a credential of systemd, which the file names by ${CREDENTIALS_DIRECTORY}.
    """
    credentials = registry_dir.path.parent / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "orders-password").write_text(database.password)
    registry_dir.declare(
        "orders",
        database,
        connection={"password": {"from_file": "${CREDENTIALS_DIRECTORY}/orders-password"}},
    )
    environment = {
        "PGMONKEY_REGISTRY": str(registry_dir),  # as the unit has it
        "NOTIFY_SOCKET": systemd.address,
        "WATCHDOG_USEC": "200000",
        "CREDENTIALS_DIRECTORY": str(credentials),
    }
    (start,) = unit()["ExecStart"]
    words = [*shlex.split(start)[1:], "--listen", "127.0.0.1:0", "--grace", "0"]
    with Serving(*words, canary=canary, env=environment) as service:
        service.wait_until(lambda: systemd.all("READY"), 20, "it is ready")
        (ready,) = systemd.all("READY")
        assert ready == {"READY": "1", "STATUS": f"listening on {service.url}"}
        eventually(lambda: service.get("/readyz").status == 200, 20)

        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        service.send(signal.SIGHUP)
        service.wait_until(lambda: len(systemd.all("READY")) == 2, 20, "it is ready again")
        (reloading,) = systemd.all("RELOADING")
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert systemd.all("READY")[1]["STATUS"].startswith("reloaded: 0 applied, 0 rejected")

        beats = len(systemd.all("WATCHDOG"))
        service.wait_until(lambda: len(systemd.all("WATCHDOG")) > beats + 2, 20, "its heart beats")

        service.send(signal.SIGTERM)
        assert service.code() == 0
    eventually(lambda: systemd.states() == ["READY", "RELOADING", "READY", "STOPPING"])


@contextmanager
def served(registry: Registry) -> Iterator[str]:
    """Run a service in a thread of this process; yield its address."""
    loops: list[asyncio.AbstractEventLoop] = []

    def run() -> None:
        with asyncio.Runner() as runner:
            loops.append(runner.get_loop())
            runner.run(service.run())

    with listen("127.0.0.1:0") as listener:
        service = Service(
            registry,
            listener,
            metrics=prometheus_client.CollectorRegistry(),
            options=ServiceOptions(grace=0.0),
        )
        thread = threading.Thread(target=run, name="served")
        thread.start()
        try:
            yield service.url
        finally:
            eventually(lambda: loops)
            loops[0].call_soon_threadsafe(service.stop)
            thread.join(10)


def healthy(url: str) -> bool:
    """Ask /healthz."""
    return httpx.get(f"{url}/healthz").status_code == 200


def test_the_watchdog_is_fed_only_while_the_watcher_lives(
    systemd: Systemd, registry_dir: RegistryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the thread that watches the files has ended, /healthz is 503 and systemd hears no more."""
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    registry_dir.write("orders", GOOD)
    ended = threading.Event()
    tick = Maintenance._tick

    def end_soon(self: Maintenance, moved: Any) -> None:
        tick(self, moved)
        if ended.is_set():
            self.stopping.set()  # now the thread ends

    monkeypatch.setattr(Maintenance, "_tick", end_soon)
    with Registry(registry_dir, metrics=None) as registry, served(registry) as url:
        eventually(lambda: len(systemd.all("WATCHDOG")) > 2)
        assert healthy(url)
        ended.set()
        eventually(lambda: not healthy(url))
        beats = len(systemd.all("WATCHDOG"))
        time.sleep(0.1)  # five times as long as systemd waits
        assert len(systemd.all("WATCHDOG")) <= beats + 1  # one may have been on its way
    eventually(lambda: systemd.states() == ["READY", "STOPPING"])


def test_without_systemd_nothing_is_sent(
    registry_dir: RegistryDirectory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without NOTIFY_SOCKET nothing happens; a socket that has gone is a warning, and no error."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert caplog.text == ""
    monkeypatch.setenv("NOTIFY_SOCKET", str(registry_dir.path / "gone"))
    notify("READY=1")
    assert "cannot notify systemd" in caplog.text


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that begins with @ is a socket without a file, as containers of systemd have it."""
    if sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    with Systemd(f"@pgmonkey-{os.getpid()}-{time.monotonic_ns()}") as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
        notify("READY=1", "STATUS=well")
        eventually(lambda: systemd.messages == [{"READY": "1", "STATUS": "well"}])


@pytest.mark.parametrize(
    "variables, seconds",
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_when_the_watchdog_wants_to_hear(variables: dict[str, str], seconds: float | None) -> None:
    """Only the process that systemd means feeds its watchdog, within the time that it says."""
    assert watchdog_interval(variables) == seconds


def test_the_unit_file() -> None:
    """It waits for what the service sends, watches it, and starts it with options that exist."""
    service = unit()
    assert service["Type"] == ["notify-reload"]
    assert service["WatchdogSec"] == ["30s"]
    (start,) = service["ExecStart"]
    program, *words = shlex.split(start)
    assert complaint([Path(program).name, *words]) is None
    assert "LoadCredential" in service


def test_systemd_understands_the_unit_file(tmp_path: Path) -> None:
    """`systemd-analyze verify` has no complaint; before 253 it does not know the type."""
    program = need(shutil.which("systemd-analyze"), "systemd-analyze (.ci/install-servers)")
    text = UNIT.read_text(encoding="utf-8").replace("notify-reload", "notify")
    text = text.replace(shlex.split(unit()["ExecStart"][0])[0], sys.executable)
    (tmp_path / UNIT.name).write_text(text)
    with Process([program, "verify", "--man=no", str(tmp_path / UNIT.name)]) as verifying:
        assert verifying.code() == 0
        assert verifying.text == ""
