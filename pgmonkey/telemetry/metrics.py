"""Metrics: the status records of the registries, as Prometheus reads them."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import prometheus_client
import psycopg
import psycopg_pool
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from pgmonkey.telemetry.exposition import Labels
from pgmonkey.telemetry.multiprocess import MetricFiles
from pgmonkey.telemetry.status import STATES, merged_databases, merged_pools
from pgmonkey.telemetry.timings import BUCKETS, NOTHING, Durations
from pgmonkey.version import __version__

if TYPE_CHECKING:
    from pgmonkey.telemetry.status import DatabaseStatus, PoolStatus, RegistryStatus

_OUTCOMES: Final = ("applied", "rejected", "unchanged", "removed")


class _Row(NamedTuple):
    """One metric of pools: kind, name without prefix, help, extra label, and how to read it."""

    kind: str
    name: str
    help: str
    label: str | None
    read: Callable[[PoolStatus], Any]


def _connections(pool: PoolStatus) -> dict[str, int]:
    return {"idle": pool.idle, "used": pool.used, "retired": pool.retired}


# Every reason is there from the start, with 0: the increase of a series that begins with its first
# event has never seen that event.
_POOL_ROWS: Final[tuple[_Row, ...]] = (
    _Row("gauge", "pool_connections", "Server connections by state.", "state", _connections),
    _Row("gauge", "pool_connections_min", "Configured min_size.", None, lambda p: p.min_size),
    _Row("gauge", "pool_connections_max", "Configured max_size.", None, lambda p: p.max_size),
    _Row(
        "gauge",
        "pool_requests_waiting",
        "Clients that wait for a connection.",
        None,
        lambda p: p.waiting,
    ),
    _Row(
        "gauge",
        "pool_longest_checkout_seconds",
        "Age of the oldest checkout.",
        None,
        lambda p: p.longest_checkout,
    ),
    _Row("counter", "pool_requests", "Checkouts asked for.", None, lambda p: p.requests),
    _Row(
        "counter", "pool_requests_queued", "Checkouts that had to queue.", None, lambda p: p.queued
    ),
    _Row(
        "counter",
        "pool_request_errors",
        "Checkouts that got no connection.",
        "reason",
        lambda p: p.errors,
    ),
    _Row(
        "timing",
        "pool_wait_seconds",
        "Time from asking for a connection to getting it.",
        None,
        lambda p: p.waits,
    ),
    _Row(
        "timing",
        "pool_use_seconds",
        "Time for which connections were checked out.",
        None,
        lambda p: p.uses,
    ),
    _Row(
        "timing",
        "pool_connect_seconds",
        "Time that new connections took.",
        None,
        lambda p: p.connects,
    ),
    _Row(
        "counter", "pool_connect_attempts", "Connections tried.", None, lambda p: p.connect_attempts
    ),
    _Row(
        "counter",
        "pool_connect_failures",
        "Connections that failed.",
        "reason",
        lambda p: p.connect_failures,
    ),
    _Row(
        "counter",
        "pool_connections_evicted",
        "Connections dropped.",
        "reason",
        lambda p: p.evicted,
    ),
    _Row(
        "counter",
        "pool_leaks",
        "Checkouts held longer than leak_detection.",
        None,
        lambda p: p.leaks,
    ),
)


class HasStatus(Protocol):
    """Tell what runs: a `Registry`, which is above this module."""

    @property
    def closed(self) -> bool:
        """Tell whether it ended: then it is not asked any more."""

    def status(self) -> RegistryStatus:
        """Return status records."""


class RegistryCollector(Collector):
    """Export the registries of this process. Reads status records; never waits for a database.

    A scrape costs about a tenth of a millisecond for each open pool, and twice that with
    histograms, if `expose` writes the text; prometheus_client takes several times as long for it.

    Args:
        histograms: Export waits, uses and connects as histograms instead of sum and count.
    """

    def __init__(self, *, histograms: bool = False) -> None:
        self.histograms = histograms
        self._registries: weakref.WeakSet[HasStatus] = weakref.WeakSet()
        self._series: dict[tuple[str, str], _Series] = {}

    def add(self, registry: HasStatus) -> None:
        """Export one more registry."""
        self._registries.add(registry)

    def describe(self) -> Iterable[Metric]:
        """Name no metrics: without this, registering would collect, and touch every pool."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as of now."""
        statuses = [one.status() for one in list(self._registries) if not one.closed]
        yield _build_info()
        if not statuses:
            return
        yield from _registry_metrics(statuses)
        databases = [database for status in statuses for database in status.databases]
        yield from _database_metrics(merged_databases(databases))
        pools = merged_pools(
            # One that never could connect has not been opened, and its failures matter most.
            pool
            for database in databases
            for pool in database.pools
            if pool.opened or pool.requests or pool.connect_attempts
        )
        series = self._series_of(pools)
        for row in _POOL_ROWS:
            yield self._pool_metric(row, pools, series)

    def _series_of(self, pools: list[PoolStatus]) -> list[_Series]:
        """Return the labels of each pool, those of the last scrape where they were there already."""
        before = self._series
        keys = [(pool.database, pool.connection_type) for pool in pools]
        self._series = {key: before.get(key) or _Series(*key) for key in keys}
        return list(self._series.values())

    def _pool_metric(self, row: _Row, pools: list[PoolStatus], series: list[_Series]) -> Metric:
        timing = "histogram" if self.histograms else "summary"
        metric = Metric(
            f"pgmonkey_{row.name}", row.help, timing if row.kind == "timing" else row.kind
        )
        name = f"{metric.name}_total" if row.kind == "counter" else metric.name
        values = zip(series, map(row.read, pools), strict=True)
        if row.kind == "timing":
            for labels, durations in values:
                _add_durations(metric, labels, durations)
        elif row.label is None:
            metric.samples += [Sample(name, labels.own, value) for labels, value in values]
        else:
            metric.samples += [
                Sample(name, labels.by(row.label, case), number)
                for labels, numbers in values
                for case, number in numbers.items()
            ]
        return metric


class _Series:
    """Keep the labels of one database, or of its pool: a scrape has dozens of samples of each.

    Args:
        database: The name, or `None` for what is of a whole registry.
        connection_type: The connection type.
    """

    __slots__ = ("_more", "own")

    def __init__(self, database: str | None = None, connection_type: str = "") -> None:
        self.own = Labels(
            {} if database is None else {"database": database, "type": connection_type}
        )
        self._more: dict[tuple[str, str], Labels] = {}

    def by(self, name: str, value: str) -> Labels:
        """Return the labels with one more."""
        found = self._more.get((name, value))
        if found is None:
            found = self._more[name, value] = Labels({**self.own, name: value})
        return found


def _add_durations(metric: Metric, labels: _Series, durations: Durations) -> None:
    if metric.type == "histogram":
        name = f"{metric.name}_bucket"
        metric.samples += [
            Sample(name, labels.by("le", bound), total)
            for bound, total in zip(_BOUNDS, accumulate(durations.buckets), strict=True)
        ]
    metric.samples += (
        Sample(f"{metric.name}_count", labels.own, durations.count),
        Sample(f"{metric.name}_sum", labels.own, durations.sum),
    )


_BOUNDS: Final = (*map(str, BUCKETS), "+Inf")


def _registry_metrics(statuses: list[RegistryStatus]) -> Iterator[Metric]:
    cache = GaugeMetricFamily("pgmonkey_cache_size", "Open handles.", labels=["type"])
    open_handles = Counter(
        pool.connection_type
        for status in statuses
        for database in status.databases
        for pool in database.pools
        if pool.opened
    )
    for connection_type in ("normal", "pool", "async", "async_pool"):
        cache.add_metric([connection_type], open_handles[connection_type])
    yield cache

    states = GaugeMetricFamily(
        "pgmonkey_registry_databases", "Declared databases by state.", labels=["state"]
    )
    counts = Counter(database.state for status in statuses for database in status.databases)
    for state in STATES:
        states.add_metric([state], counts[state])
    yield states

    yield GaugeMetricFamily(
        "pgmonkey_config_hash",
        "48 bits of what is not secret in all configurations; equal when pods agree.",
        value=_xor(status.config_hash for status in statuses),
    )
    yield GaugeMetricFamily(
        "pgmonkey_config_last_reload_successful",
        "Whether all that the files say is in force.",
        value=float(all(status.last_reload_successful for status in statuses)),
    )
    yield GaugeMetricFamily(
        "pgmonkey_config_last_reload_success_timestamp_seconds",
        "When the files were last brought into force.",
        value=min((status.last_reload_success_at or 0.0 for status in statuses), default=0.0),
    )
    durations = Metric(
        "pgmonkey_reload_duration_seconds",
        "Time from a change seen to its being in force.",
        "histogram",
    )
    _add_durations(
        durations, _Series(), sum((status.reload_durations for status in statuses), NOTHING)
    )
    yield durations
    watched = [status.watching for status in statuses if status.watched]
    if watched:  # without `watch` there is nothing that could be down
        yield GaugeMetricFamily(
            "pgmonkey_watcher_up",
            "Whether changes of files are seen.",
            value=float(all(watched)),
        )
    yield CounterMetricFamily(
        "pgmonkey_watcher_errors",
        "Times that file events could not be had.",
        value=sum(status.watcher_errors for status in statuses),
    )


def _database_metrics(databases: list[DatabaseStatus]) -> Iterator[Metric]:
    version = Metric(
        "pgmonkey_config_generation", "Version of the configuration in force.", "gauge"
    )
    stale = Metric("pgmonkey_config_stale", "Whether the files differ from what runs.", "gauge")
    reloads = Metric("pgmonkey_config_reloads", "Reloads by outcome.", "counter")
    secret = Metric(
        "pgmonkey_secret_modified_timestamp_seconds",
        "When the newest secret file was modified, in force or not yet.",
        "gauge",
    )
    up = Metric("pgmonkey_up", "Whether the last background probe reached the database.", "gauge")
    probe = Metric("pgmonkey_probe_duration_seconds", "Time that the last probe took.", "gauge")
    for database in databases:
        labels = {"database": database.name, "type": database.connection_type or "unknown"}
        if database.state is not None:
            version.add_sample(version.name, labels, database.version)
            stale.add_sample(stale.name, labels, float(database.stale))
            if database.secret_modified is not None:
                secret.add_sample(secret.name, labels, database.secret_modified)
            if database.probe is not None:
                up.add_sample(up.name, labels, float(database.probe.up))
                probe.add_sample(probe.name, labels, database.probe.seconds)
        counts = database.outcomes
        reloads.samples += [
            Sample("pgmonkey_config_reloads_total", {**labels, "outcome": one}, counts.get(one, 0))
            for one in _OUTCOMES
        ]
    yield from (version, stale, reloads, secret)
    if up.samples:  # somebody probes
        yield from (up, probe)


def _build_info() -> Metric:
    info = GaugeMetricFamily(
        "pgmonkey_build_info",
        "Versions, as labels.",
        labels=["version", "psycopg", "psycopg_pool", "libpq"],
    )
    info.add_metric(
        [
            __version__,
            psycopg.__version__,
            psycopg_pool.__version__,
            str(psycopg.pq.version()),
        ],
        1,
    )
    return info


def _xor(numbers: Iterable[int]) -> int:
    result = 0
    for number in numbers:
        result ^= number
    return result


_collectors: Final[
    weakref.WeakKeyDictionary[prometheus_client.CollectorRegistry, RegistryCollector]
] = weakref.WeakKeyDictionary()
#: Of this process, for the files of the multi-process mode; made when it is wanted.
_for_files: RegistryCollector | None = None
_files: MetricFiles | None = None
# Guards the three above.
_lock = threading.Lock()


def export(
    registry: HasStatus, target: prometheus_client.CollectorRegistry, *, histograms: bool = False
) -> None:
    """Export a registry through a `prometheus_client` registry; several share one collector.

    Where `PROMETHEUS_MULTIPROC_DIR` is set the numbers also go to its files.

    Args:
        registry: What to export.
        target: Where to.
        histograms: Export durations as histograms, of all registries that share the target.
    """
    global _for_files, _files
    with _lock:
        collector = _collectors.get(target)
        if collector is None:
            collector = _collectors[target] = RegistryCollector(histograms=histograms)
            target.register(collector)
        sharing = [collector]
        if MetricFiles.wanted():
            if _for_files is None:
                _for_files = RegistryCollector()
                _files = MetricFiles(_for_files.collect)
            sharing.append(_for_files)
        for one in sharing:
            one.histograms = one.histograms or histograms
            one.add(registry)


def ensure_files() -> None:
    """Let the files of the multi-process mode be written in this process, if it is on."""
    if _files is not None:
        _files.ensure_thread()


def write_files() -> None:
    """Write the files of the multi-process mode now, if it is on."""
    if _files is not None:
        _files.write()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
