"""A scrape of 100 open databases: its time, its size, and how much of it is ours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter

import prometheus_client
from prometheus_client.registry import Collector

from benchmarks.comparison import Result, compare
from pgmonkey import Registry
from pgmonkey.embedded_server import EmbeddedServer
from pgmonkey.metrics import RegistryCollector

DATABASES = 100
#: Milliseconds that one scrape may take, with histograms and without.
BARS = {True: 60, False: 15}

TEXT = """\
connection_type: pool
connection_settings: {{host: {host}, port: {port}, dbname: app, user: app, password: bench}}
pool_settings: {{min_size: 1, max_size: 2}}
"""


class Kept(Collector):
    """Yield the same samples again and again: what is left of a scrape is its text."""

    def __init__(self, metrics: Iterable[prometheus_client.Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[prometheus_client.Metric]:
        return self._metrics


def run() -> list[Result]:
    """Compare a scrape with the library's writing of the same samples, and print what it takes."""
    with (
        EmbeddedServer(settings={"max_connections": str(DATABASES + 50)}) as server,
        tempfile.TemporaryDirectory() as name,
    ):
        server.create_role("app", "bench")
        server.create_database("app", owner="app")
        for number in range(DATABASES):
            text = TEXT.format(host=server.host, port=server.port)
            Path(name, f"db-{number}.yaml").write_text(text, encoding="utf-8")
        with Registry(name, metrics=None, watch=False, trust="off") as registry:
            for database in registry:
                with registry.get(database) as connection:
                    connection.execute("SELECT 1")
            return [_scrape(registry, histograms=histograms) for histograms in (False, True)]


def _scrape(registry: Registry, *, histograms: bool) -> Result:
    collector = RegistryCollector(histograms=histograms)
    collector.add(registry)
    scraped = prometheus_client.CollectorRegistry()
    scraped.register(collector)
    kept = prometheus_client.CollectorRegistry()
    kept.register(Kept(collector.collect()))
    took = []
    for _ in range(21):
        began = perf_counter()
        text = prometheus_client.generate_latest(scraped)
        took.append(perf_counter() - began)
    milliseconds, bar = sorted(took)[len(took) // 2] * 1e3, BARS[histograms]
    what = f"scrape of {DATABASES} open databases, histograms {'on' if histograms else 'off'}"
    print(
        f"{what}: {milliseconds:.1f} ms (bar: {bar}, {'met' if milliseconds <= bar else 'missed'}),"
        f" {len(text) // 1024} KiB, {text.count(b'pgmonkey_') - 2 * text.count(b'# TYPE')} samples"
    )
    return compare(
        f"{what} / the text of the same samples",
        lambda: prometheus_client.generate_latest(scraped),
        lambda: prometheus_client.generate_latest(kept),
        rounds=21,
    )
