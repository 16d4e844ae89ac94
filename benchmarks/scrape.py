"""A scrape of 100 open databases: its time, its size, and what prometheus_client takes for it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import thread_time

import prometheus_client
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from benchmarks.comparison import Race, Result, number
from pgmonkey import Registry
from pgmonkey.telemetry.exposition import expose
from pgmonkey.telemetry.metrics import RegistryCollector
from tests.kit.server import PostgresServer

DATABASES = 100
#: What Prometheus asks for.
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
#: Milliseconds that one scrape may take, with histograms and without.
BARS = {True: 60, False: 15}

TEXT = """\
connection_type: pool
connection_settings: {{host: {host}, port: {port}, dbname: app, user: app, password: bench}}
pool_settings: {{min_size: 1, max_size: 2}}
"""


def run() -> list[Result]:
    """Compare a scrape with one that prometheus_client writes, in both formats."""
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
            return [*_scrape(registry, histograms=False), *_scrape(registry, histograms=True)]


def _scrape(registry: Registry, *, histograms: bool) -> list[Result]:
    collector = RegistryCollector(histograms=histograms)
    collector.add(registry)
    metrics = prometheus_client.CollectorRegistry()
    metrics.register(collector)
    race = Race(
        {
            "pgmonkey": lambda: expose(metrics=metrics),
            "its samples alone": lambda: list(collector.collect()),
            "prometheus_client": lambda: prometheus_client.generate_latest(metrics),
            "pgmonkey, OpenMetrics": lambda: expose(OPENMETRICS, metrics),
            "prometheus_client, OpenMetrics": lambda: generate_openmetrics(metrics),
        },
        rounds=21,
        clock=thread_time,
    )
    what = f"a scrape of {DATABASES} open databases, histograms {'on' if histograms else 'off'}"
    text, _ = expose(metrics=metrics)
    size = f"{len(text) // 1024} KiB, {sum(len(one.samples) for one in metrics.collect())} samples"
    print(race.table(f"{what}: {size}", base="prometheus_client"))
    milliseconds = [seconds * 1e3 for seconds in race.seconds["pgmonkey"]]
    return [
        number(what, milliseconds, "ms", bar=BARS[histograms]),
        race.result(f"{what} / written by prometheus_client", "pgmonkey", "prometheus_client"),
    ]
