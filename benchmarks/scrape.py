"""A scrape of 100 open databases: its time and its size, with histograms and without."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import thread_time

import prometheus_client
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from benchmarks.comparison import Race, Result, number
from pgmonkey import Registry
from pgmonkey.telemetry.metrics import RegistryCollector
from tests.kit.server import PostgresServer

DATABASES = 100
#: Milliseconds that one scrape may take, with histograms and without.
BARS = {True: 60, False: 40}

TEXT = """\
connection_type: pool
connection_settings: {{host: {host}, port: {port}, dbname: app, user: app, password: bench}}
pool_settings: {{min_size: 1, max_size: 2}}
"""


def run() -> list[Result]:
    """Measure a scrape in both formats, and the part of it that is ours."""
    with (
        PostgresServer(settings={"max_connections": str(DATABASES + 50)}) as server,
        tempfile.TemporaryDirectory() as name,
    ):
        server.create_role("app", "bench")
        server.create_database("app", owner="app")
        for index in range(DATABASES):
            text = TEXT.format(host=server.host, port=server.port)
            Path(name, f"db-{index}.yaml").write_text(text, encoding="utf-8")
        with Registry(name, metrics=None, watch=False, trust="off") as registry:
            for database in registry:
                with registry.get(database) as connection:
                    connection.execute("SELECT 1")
            return [_scrape(registry, histograms=on) for on in (True, False)]


def _scrape(registry: Registry, *, histograms: bool) -> Result:
    collector = RegistryCollector()
    collector.add(registry, histograms=histograms)
    metrics = prometheus_client.CollectorRegistry()
    metrics.register(collector)
    race = Race(
        {
            "text": lambda: prometheus_client.generate_latest(metrics),
            "OpenMetrics": lambda: generate_openmetrics(metrics),
            "the samples alone": lambda: list(collector.collect()),
        },
        rounds=21,
        clock=thread_time,
    )
    what = f"a scrape of {DATABASES} open databases, histograms {'on' if histograms else 'off'}"
    size = len(prometheus_client.generate_latest(metrics)) // 1024
    samples = sum(len(one.samples) for one in metrics.collect())
    print(race.table(f"{what}: {size} KiB, {samples} samples", base="text"))
    milliseconds = [seconds * 1e3 for seconds in race.seconds["text"]]
    return number(what, milliseconds, "ms", bar=BARS[histograms])
