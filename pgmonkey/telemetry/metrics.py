"""Metrics: one table declares each of them; the collector reads it at every scrape.

docs/metrics.md and the files of prometheus_client's multi-process mode are made from the same table.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, TypeVar

import prometheus_client
import psycopg
import psycopg_pool
from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from pgmonkey.telemetry import events
from pgmonkey.telemetry.multiprocess import MetricFiles, Workers
from pgmonkey.telemetry.status import OUTCOMES, STATES
from pgmonkey.telemetry.timings import BUCKETS, Durations
from pgmonkey.version import __version__

if TYPE_CHECKING:
    from pgmonkey.telemetry.status import DatabaseStatus, PoolStatus, RegistryStatus

Status = TypeVar("Status")
#: Value of a metric, or its values by those of its own label.
_Reading = float | Durations | Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Row(Generic[Status]):
    """Declare one metric.

    Args:
        name: The name in a scrape.
        kind: What Prometheus calls it; `histograms=False` makes a summary of a histogram.
        help: One line for people.
        read: Returns its value, given a status record; `None`: it has no series now.
        label: Its own label, beside those of its part of the table.
        workers: How the values of several processes become one; see `Workers`.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    read: Callable[[Status], _Reading | None]
    label: str | None = None
    workers: Workers = "sum"


def _open_handles(registries: Sequence[RegistryStatus]) -> dict[str, float]:
    types = ("normal", "pool", "async", "async_pool")
    opened = Counter(
        pool.connection_type
        for registry in registries
        for database in registry.databases
        for pool in database.pools
        if pool.opened
    )
    return {connection_type: opened[connection_type] for connection_type in types}


def _declared(registries: Sequence[RegistryStatus]) -> int:
    return len({one.name for registry in registries for one in registry.databases if one.state})


def _states(database: DatabaseStatus) -> dict[str, float] | None:
    return database.state and {state: float(state == database.state) for state in STATES}


def _if_declared(read: Callable[[DatabaseStatus], float | None]) -> Callable[..., float | None]:
    """Read only databases that are declared; of a removed one only the counters go on."""
    return lambda database: read(database) if database.state else None


_VERSIONS: Final = {
    "version": __version__,
    "psycopg": psycopg.__version__,
    "psycopg_pool": psycopg_pool.__version__,
    "libpq": str(psycopg.pq.version()),
}
# fmt: off
_BUILD: Final[tuple[Row[Sequence[RegistryStatus]], ...]] = (
    Row("pgmonkey_build_info", "gauge", "Versions, as labels.",
        lambda _: 1, workers="max"),
)
_PROCESS: Final[tuple[Row[Sequence[RegistryStatus]], ...]] = (
    Row("pgmonkey_cache_size", "gauge", "Open handles.",
        _open_handles, label="type"),
    Row("pgmonkey_registry_databases", "gauge", "Declared databases.",
        _declared, workers="max"),
    Row("pgmonkey_events_dropped_total", "counter", "Events that could not be written to the log.",
        lambda _: events.dropped()),
)
_REGISTRIES: Final[tuple[Row[RegistryStatus], ...]] = (
    Row("pgmonkey_config_last_reload_successful", "gauge",
        "Whether everything that the files say is applied.",
        lambda r: r.last_reload_successful, workers="min"),
    Row("pgmonkey_config_last_reload_success_timestamp_seconds", "gauge",
        "When the registry last read files that it then applied completely.",
        lambda r: r.last_reload_success_at or 0.0, workers="min"),
    Row("pgmonkey_reload_duration_seconds", "histogram", "Time from noticing a change to applying it.",
        lambda r: r.reload_durations),
    Row("pgmonkey_watcher_up", "gauge", "Whether changes of files are seen; absent with watch=False.",
        lambda r: r.watching if r.watched else None, workers="min"),
    Row("pgmonkey_watcher_errors_total", "counter", "Errors of the operating system's file events.",
        lambda r: r.watcher_errors),
)
_DATABASES: Final[tuple[Row[DatabaseStatus], ...]] = (
    Row("pgmonkey_database_state", "gauge", "1 for the state of the database, 0 for the other states.",
        _states, label="state", workers="worst"),
    Row("pgmonkey_config_version", "gauge", "Version of the applied config, 1 at load.",
        _if_declared(lambda db: db.version), workers="max"),
    Row("pgmonkey_config_stale", "gauge", "Whether the files differ from what runs.",
        _if_declared(lambda db: db.stale), workers="max"),
    Row("pgmonkey_config_hash", "gauge",
        "48 bits of what is not secret in the applied config, revision included.",
        _if_declared(lambda db: db.config_hash), workers="max"),
    Row("pgmonkey_config_reloads_total", "counter", "Reloads by outcome.",
        lambda db: {outcome: db.outcomes.get(outcome, 0) for outcome in OUTCOMES}, label="outcome"),
    Row("pgmonkey_secret_modified_timestamp_seconds", "gauge",
        "When the newest secret file was modified, applied or not yet.",
        _if_declared(lambda db: db.secret_modified), workers="max"),
    Row("pgmonkey_up", "gauge", "Whether the last background probe connected.",
        _if_declared(lambda db: db.probe and db.probe.up), workers="min"),
    Row("pgmonkey_probe_duration_seconds", "gauge", "Duration of the last background probe.",
        _if_declared(lambda db: db.probe and db.probe.seconds), workers="max"),
)
# Every reason is exported from the start, as 0: `increase()` does not see the first event of a series that
# begins with it.
_POOLS: Final[tuple[Row[PoolStatus], ...]] = (
    Row("pgmonkey_pool_connections", "gauge", "Server connections by state.",
        lambda p: {"idle": p.idle, "used": p.used, "retired": p.retired}, label="state"),
    Row("pgmonkey_pool_connections_min", "gauge", "Configured min_size.",
        lambda p: p.min_size),
    Row("pgmonkey_pool_connections_max", "gauge", "Configured max_size.",
        lambda p: p.max_size),
    Row("pgmonkey_pool_requests_waiting", "gauge", "Clients that wait for a connection.",
        lambda p: p.waiting),
    Row("pgmonkey_pool_longest_checkout_seconds", "gauge", "Age of the oldest checkout in progress.",
        lambda p: p.longest_checkout, workers="max"),
    Row("pgmonkey_pool_requests_total", "counter", "Checkouts requested.",
        lambda p: p.requests),
    Row("pgmonkey_pool_requests_queued_total", "counter", "Checkouts that had to wait in the queue.",
        lambda p: p.queued),
    Row("pgmonkey_pool_request_errors_total", "counter", "Checkouts that got no connection.",
        lambda p: p.errors, label="reason"),
    Row("pgmonkey_pool_wait_seconds", "histogram", "Time from requesting a connection to getting it.",
        lambda p: p.waits),
    Row("pgmonkey_pool_use_seconds", "histogram", "Time for which connections were checked out.",
        lambda p: p.uses),
    Row("pgmonkey_pool_connect_seconds", "histogram", "Time to make a new connection.",
        lambda p: p.connects),
    Row("pgmonkey_pool_connect_attempts_total", "counter", "Connects tried.",
        lambda p: p.connect_attempts),
    Row("pgmonkey_pool_connect_failures_total", "counter", "Connects that failed.",
        lambda p: p.connect_failures, label="reason"),
    Row("pgmonkey_pool_connections_evicted_total", "counter", "Connections that the pool closed.",
        lambda p: p.evicted, label="reason"),
    Row("pgmonkey_pool_leaks_total", "counter",
        "Checkouts held longer than leak_detection, or abandoned.",
        lambda p: p.leaks),
)
# fmt: on

#: Every metric, with the labels that all metrics of its part have.
TABLE: Final[tuple[tuple[tuple[str, ...], tuple[Row[Any], ...]], ...]] = (
    (tuple(_VERSIONS), _BUILD),
    ((), _PROCESS),
    ((), _REGISTRIES),
    (("database",), _DATABASES),
    (("database", "type"), _POOLS),
)

_BOUNDS: Final = (*map(str, BUCKETS), "+Inf")


class HasStatus(Protocol):
    """What is exported: a `Registry`, which is above this module."""

    def status(self) -> RegistryStatus:
        """Return status records."""


class RegistryCollector(Collector):
    """Export the registries of this process. Reads status records; never waits for a database."""

    def __init__(self) -> None:
        self._histograms = False
        # Replaced as a whole: a scrape may read it in another thread.
        self._registries: tuple[weakref.ref[HasStatus], ...] = ()

    def add(self, registry: HasStatus, *, histograms: bool) -> None:
        """Export one more registry; histograms of all of them if one wants histograms."""
        kept = [one for one in self._registries if one() not in (None, registry)]
        self._registries = (*kept, weakref.ref(registry))
        self._histograms = self._histograms or histograms

    def remove(self, registry: HasStatus) -> None:
        """Export a registry no more."""
        self._registries = tuple(one for one in self._registries if one() is not registry)

    def describe(self) -> Iterable[Metric]:
        """Return no metrics: without this method registering would collect, and read every pool."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that has a series now."""
        registries = [one for ref in self._registries if (one := ref()) is not None]
        statuses = [one.status() for one in registries]
        databases = [database for status in statuses for database in status.databases]
        described: tuple[list[tuple[tuple[str, ...], Any]], ...] = (
            [(tuple(_VERSIONS.values()), statuses)],
            [((), statuses)],
            [((), status) for status in statuses],
            [((database.name,), database) for database in databases],
            [
                ((pool.database, pool.connection_type), pool)
                for database in databases
                for pool in database.pools
                # One that never could connect was not opened, but its failures matter most.
                if pool.opened or pool.requests or pool.connect_attempts
            ],
        )
        for (scope, rows), series in zip(TABLE, described, strict=True):
            labels = {key: dict(zip(scope, key, strict=True)) for key, _ in series}
            for row in rows:
                kind: str = row.kind
                if kind == "histogram" and not self._histograms:
                    kind = "summary"
                metric = Metric(row.name.removesuffix("_total"), row.help, kind)
                for key, reading in _readings(row, series).items():
                    metric.samples += _samples(row, kind, labels[key], reading)
                if metric.samples:
                    yield metric


def _readings(
    row: Row[Any], series: Iterable[tuple[tuple[str, ...], Any]]
) -> dict[tuple[str, ...], _Reading]:
    """Return the readings of a metric by the labels of their series.

    Where two registries of a process declare the same database, their values become one as those
    of two workers do.
    """
    found: dict[tuple[str, ...], Any] = {}
    for key, status in series:
        reading = row.read(status)
        if reading is not None:
            found[key] = _combined(row.workers, found[key], reading) if key in found else reading
    return found


def _combined(workers: Workers, one: Any, other: Any) -> Any:
    if workers == "worst":  # the states are in their order, the worst first
        return max(one, other, key=lambda states: tuple(states.values()))
    if isinstance(one, Mapping):
        cases = {**one, **other}
        return {case: _combined(workers, one.get(case, 0), other.get(case, 0)) for case in cases}
    if workers == "sum":
        return one + other
    return max(one, other) if workers == "max" else min(one, other)


def _samples(
    row: Row[Any], kind: str, labels: dict[str, str], reading: _Reading
) -> Iterable[Sample]:
    if isinstance(reading, Durations):
        buckets = (
            Sample(f"{row.name}_bucket", {**labels, "le": bound}, total)
            for bound, total in zip(_BOUNDS, accumulate(reading.buckets), strict=True)
        )
        return (
            *(buckets if kind == "histogram" else ()),
            Sample(f"{row.name}_count", labels, reading.count),
            Sample(f"{row.name}_sum", labels, reading.sum),
        )
    if isinstance(reading, Mapping):
        assert row.label is not None
        return [
            Sample(row.name, {**labels, row.label: case}, number)
            for case, number in reading.items()
        ]
    return (Sample(row.name, labels, float(reading)),)


_collectors: Final[
    weakref.WeakKeyDictionary[prometheus_client.CollectorRegistry, RegistryCollector]
] = weakref.WeakKeyDictionary()
_for_files: Final = RegistryCollector()
# Guards the collectors' lists of registries, and the mapping above.
_lock = threading.Lock()
#: The files of the multi-process mode, if it is on.
_files: Final = (
    MetricFiles(_for_files.collect, {row.name: row.workers for _, rows in TABLE for row in rows})
    if MetricFiles.wanted()
    else None
)


def export(
    registry: HasStatus, target: prometheus_client.CollectorRegistry, *, histograms: bool
) -> None:
    """Export a registry through a `prometheus_client` registry; several share one collector.

    Where `PROMETHEUS_MULTIPROC_DIR` is set the numbers also go to its files. If one registry wants
    `histograms`, all that share the target have them.
    """
    with _lock:
        collector = _collectors.get(target)
        if collector is None:
            collector = _collectors[target] = RegistryCollector()
            target.register(collector)
        for one in (collector, _for_files):
            one.add(registry, histograms=histograms)


def ensure_files() -> None:
    """Start writing the files of the multi-process mode in this process, if it is on."""
    if _files is not None:
        _files.ensure_thread()


def write_files() -> None:
    """Write the files of the multi-process mode now, if it is on. Raises nothing."""
    if _files is not None:
        _files.write()


def withdraw(registry: HasStatus) -> None:
    """Export a registry no more: it is closed. The files keep what it has counted."""
    write_files()
    with _lock:
        for one in (*_collectors.values(), _for_files):
            one.remove(registry)


def reset() -> None:
    """Take new locks and begin new files in a child process."""
    global _lock
    _lock = threading.Lock()
    if _files is not None:
        _files.forget()
