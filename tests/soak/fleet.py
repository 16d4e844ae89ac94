"""gunicorn with many workers, whose clients always want more connections than their server has."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.kit import Canary
from tests.kit.process import Process
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.server import PostgresServer

_ROOT = Path(__file__).parents[2]

_CONFIGURATION = """
import os

os.environ["PROMETHEUS_MULTIPROC_DIR"] = {metrics!r}
workers = {workers}
preload_app = True

def post_worker_init(worker):
    import application
    application.begin()
"""

_APPLICATION = """
import json, os, threading, time
from pathlib import Path

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector

from pgmonkey import Registry

registry = Registry({directory!r})
counts = [0] * {threads}
errors = []

def work(number):
    while True:
        try:
            with registry.get("orders").connection(timeout=60) as connection:
                connection.execute("SELECT pg_sleep({seconds})")
            counts[number] += 1
        except Exception as error:
            errors.append(f"{{type(error).__name__}}: {{error}}")
            time.sleep(0.2)

def report():
    file = Path({reports!r}, f"{{os.getpid()}}.json")
    new = file.with_suffix(".new")
    while True:
        status = registry.status().databases[0]
        new.write_text(json.dumps({{
            "transactions": sum(counts),
            "held": sum(pool.idle + pool.used + pool.retired for pool in status.pools),
            "version": status.version,
            "stale": status.stale,
            "errors": errors[-20:],
        }}))
        new.rename(file)
        time.sleep(0.1)

def begin():
    for number in range(len(counts)):
        threading.Thread(target=work, args=[number], daemon=True).start()
    threading.Thread(target=report, daemon=True).start()

def app(environ, start_response):
    workers = CollectorRegistry()
    MultiProcessCollector(workers)
    return make_wsgi_app(workers)(environ, start_response)
"""


@dataclass
class Report:
    """What one worker has said last."""

    transactions: int
    held: int
    version: int
    stale: bool
    errors: list[str]


class Fleet(Process):
    """Run the workers until the block ends.

    Args:
        registry_dir: Declares `orders`.
        canary: Its secrets must not be in the output.
        workers: How many processes.
        threads: How many clients each has.
        seconds: How long each transaction takes.
    """

    def __init__(
        self,
        registry_dir: RegistryDirectory,
        canary: Canary,
        *,
        workers: int,
        threads: int,
        seconds: float,
    ) -> None:
        self._workers = workers
        self._directory = Path(tempfile.mkdtemp(prefix="fleet-", dir="/dev/shm"))
        self._reports = self._directory / "reports"
        metrics = self._directory / "metrics"
        for its in (self._reports, metrics):
            its.mkdir()
        (self._directory / "gunicorn.conf.py").write_text(
            _CONFIGURATION.format(metrics=str(metrics), workers=workers)
        )
        (self._directory / "application.py").write_text(
            _APPLICATION.format(
                directory=str(registry_dir),
                reports=str(self._reports),
                threads=threads,
                seconds=seconds,
            )
        )
        command = [sys.executable, "-m", "gunicorn", "--bind=127.0.0.1:0", "--no-control-socket"]
        super().__init__(
            [*command, "application:app"],
            canary=canary,
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )

    def __enter__(self) -> Self:
        self.wait_until(lambda: len(self.reports()) == self._workers, 40, "all workers run")
        return self

    def __exit__(self, *exception: object) -> None:
        workers = psutil.Process(self.process.pid).children()
        super().__exit__(*exception)
        for worker in workers:
            worker.kill()
        psutil.wait_procs(workers, 10)
        shutil.rmtree(self._directory)

    def reports(self) -> dict[str, Report]:
        """Return what each worker has said last."""
        return {
            file.stem: Report(**json.loads(file.read_text()))
            for file in self._reports.glob("*.json")
        }

    def transactions(self) -> dict[str, int]:
        """Return how many transactions each worker has committed."""
        return {name: one.transactions for name, one in self.reports().items()}

    def errors(self) -> Counter[str]:
        """Return what failed, with how many workers met it."""
        return Counter(text for one in self.reports().values() for text in set(one.errors))

    @property
    def port(self) -> int:
        """Where it listens."""
        match = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.text)
        assert match is not None, self.text
        return int(match[1])

    def metrics(self, name: str) -> list[Any]:
        """Scrape, and return the values of `pgmonkey_config_...` for `orders`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"pgmonkey_config_{name}"
            and sample.labels.get("database") == "orders"
        ]


#: Settings of a server whose log says when somebody connects, successful or not.
LOGS_CONNECTIONS = {"log_connections": "on", "log_line_prefix": "%n "}


def connects(server: PostgresServer, since: float, until: float) -> list[float]:
    """Return when somebody has asked the server for a connection, from its log."""
    found = re.findall(r"^(\d+\.\d+) LOG:  connection received", server.log_text(), re.MULTILINE)
    return [at for at in map(float, found) if since <= at < until]


def most_per_second(times: list[float]) -> int:
    """Return the most that fall into one second, wherever it begins."""
    return max((sum(at <= one < at + 1.0 for one in times) for at in times), default=0)
