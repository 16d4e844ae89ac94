"""gunicorn with three workers: one scrape shows them all."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.docs.environment import Environment
from tests.docs.snippets import ROOT, snippets
from tests.kit import Canary, eventually
from tests.kit.prometheus import check_metrics
from tests.kit.server import PostgresServer

PAGE = ROOT / "docs" / "recipes" / "gunicorn.md"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Gunicorn:
    """The recipe of the documentation, as it is written, on a free port."""

    def __init__(self, environment: Environment, canary: Canary, *options: str) -> None:
        self._canary = canary
        directory = environment.directory
        self.files = Path(tempfile.mkdtemp(prefix="metrics-", dir="/dev/shm"))
        (self.files / "counter_1.db").write_bytes(b"what the last start left")
        for snippet in snippets(PAGE):
            name = re.match(r"# ([\w.]+\.py)\n", snippet.text)
            if name:
                text = snippet.text.replace("/dev/shm/shop-metrics", str(self.files))
                (directory / name[1]).write_text(text)
        self.output = directory / "output"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "--bind=127.0.0.1:0"),
                    *("--no-control-socket", *options, "application:app"),
                ],
                cwd=directory,
                stdout=file,
                stderr=file,
                env={**os.environ, **environment.shell_variables()},
            )
        self.port = 0

    def wait(self) -> None:
        """Wait until it listens."""
        self.port = eventually(self._port, 40, "gunicorn listens")

    def _port(self) -> int:
        text = self.output.read_text()
        assert self.process.poll() is None, text
        _, found, rest = text.partition("Listening at: http://127.0.0.1:")
        return int(rest.split()[0]) if found else 0

    def get(self, path: str = "/") -> str:
        """Ask once, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
        finally:
            connection.close()
        self._canary.check(text, path)
        return text

    def scrape(self) -> Samples:
        """Return every sample of one scrape."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics"))
            for sample in family.samples
        }

    def workers(self) -> list[int]:
        """Return the worker processes."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def stop(self) -> None:
        """End it, and look at what it printed."""
        children = psutil.Process(self.process.pid).children()
        self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            for child in children:
                if child.is_running():
                    child.kill()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.files)
        text = self.output.read_text()
        self._canary.check(text, "the output of gunicorn")
        assert "Traceback" not in text, text


@pytest.fixture(params=[(), ("--preload",)], ids=["", "preload"])
def gunicorn(
    request: pytest.FixtureRequest,
    server: PostgresServer,
    canary: Canary,
    tmp_path: Path,
) -> Iterator[Gunicorn]:
    """The server of the recipe, with the databases that the repository's registry declares."""
    environment = Environment(tmp_path, server, canary)
    with environment.databases():
        gunicorn = Gunicorn(environment, canary, *request.param)
        try:
            gunicorn.wait()
            yield gunicorn
        finally:
            gunicorn.stop()


def sample(samples: Samples, name: str, **labels: Any) -> float | None:
    return samples.get((name, frozenset(labels.items())))


@pytest.mark.slow
@pytest.mark.prometheus
def test_one_scrape_shows_all_workers_and_keeps_the_counts_of_those_that_died(
    gunicorn: Gunicorn,
) -> None:
    """Counts are summed over three workers, one killed later included; connections over the living."""
    orders = {"database": "orders", "type": "pool"}
    asked = 0

    def ask(number: int) -> None:
        nonlocal asked
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: gunicorn.get(), range(number)))
        asked += number

    def connected() -> set[str]:
        """The workers that have a connection: one backend at least for each."""
        ask(12)
        return {
            str(pid)
            for pid in gunicorn.workers()
            if any(
                c.raddr and c.status == "ESTABLISHED" for c in psutil.Process(pid).net_connections()
            )
        }

    eventually(lambda: len(connected()) == 3, 20, "all three workers have used the database")

    def requests() -> float | None:
        return sample(gunicorn.scrape(), "pgmonkey_pool_requests_total", **orders)

    def uses() -> float | None:  # written a moment after the requests
        return sample(gunicorn.scrape(), "pgmonkey_pool_use_seconds_count", **orders)

    eventually(
        lambda: requests() == uses() == asked, 10, "every request of every worker is counted"
    )
    samples = gunicorn.scrape()
    assert sample(samples, "pgmonkey_cache_size", type="pool") == 3
    assert sample(samples, "pgmonkey_config_stale", database="orders") == 0
    assert sample(samples, "pgmonkey_config_version", database="orders") == 1
    assert sample(samples, "pgmonkey_database_state", database="orders", state="ready") == 1
    states = Counter(
        dict(labels)["database"]
        for (name, labels), value in samples.items()
        if name == "pgmonkey_database_state" and value
    )
    assert set(states.values()) == {1}, "each database has one state, in three workers"
    assert len(states) == sample(samples, "pgmonkey_registry_databases")
    assert sample(samples, "pgmonkey_config_last_reload_successful") == 1
    assert sample(samples, "pgmonkey_watcher_up") == 1
    assert Counter(name for name, _ in samples)["pgmonkey_config_hash"] == len(states)
    limit = sample(samples, "pgmonkey_pool_connections_max", **orders)
    assert limit is not None
    assert limit % 3 == 0
    assert Counter(name for name, _ in samples)["pgmonkey_build_info"] == 1
    check_metrics(gunicorn.get("/metrics"))

    assert not (gunicorn.files / "counter_1.db").exists(), "the directory is emptied at the start"
    killed = gunicorn.workers()[0]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: "SIGKILL" in gunicorn.output.read_text(), 10, "gunicorn sees it")
    eventually(
        lambda: sample(gunicorn.scrape(), "pgmonkey_cache_size", type="pool") == 2,
        10,
        "its connections count no more",
    )
    assert {file.name for file in gunicorn.files.glob(f"*_{killed}.db")} == {
        f"counter_{killed}.db",
        f"histogram_{killed}.db",
    }
    assert requests() == asked
    eventually(lambda: len(gunicorn.workers()) == 3, 10, "gunicorn has replaced it")
    ask(12)
    os.kill(gunicorn.workers()[1], signal.SIGTERM)
    eventually(lambda: requests() == asked, 10, "what it counted last is written at its end")
    old = set(gunicorn.workers())
    gunicorn.process.send_signal(signal.SIGHUP)
    eventually(
        lambda: len(gunicorn.workers()) == 3 and not old & set(gunicorn.workers()),
        20,
        "gunicorn has reloaded",
    )
    eventually(lambda: requests() == asked, 10, "a reload keeps the files")
