"""The metrics that a scrape sees."""

from __future__ import annotations

import gc
import inspect
import math
import re
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import prometheus_client
import pytest
import structlog
import watchfiles
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pgmonkey import PgmonkeyError, Registry
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.errors import Reason
from pgmonkey.pool._sync.checkout import SyncCheckout
from pgmonkey.telemetry.metrics import export
from pgmonkey.telemetry.status import PoolStatus
from tests.docs.snippets import ROOT
from tests.kit import Canary, ChaosProxy
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.prometheus import check_metrics
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.pool.interruption import at_each_line

ORDERS = {"database": "orders"}
POOL = {"database": "orders", "type": "pool"}


@pytest.fixture
def numbers() -> prometheus_client.CollectorRegistry:
    """A Prometheus registry of this test."""
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def registry(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> Iterator[Registry]:
    """A registry with a pool and an idle database."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 2})
    registry_dir.declare("reports", database, "normal")
    with Registry(registry_dir, metrics=numbers, watch=False) as registry:
        yield registry


def counters(numbers: prometheus_client.CollectorRegistry) -> dict[tuple[str, Any], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in numbers.collect()
        for sample in metric.samples
        if metric.type in ("counter", "histogram", "summary")
    }


def test_an_unused_database_has_no_pool_series_and_a_scrape_opens_nothing(
    registry: Registry,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Registering and scraping touch no pool; a database that was never opened has no pool series."""
    value = numbers.get_sample_value

    assert value("pgmonkey_pool_connections_max", POOL) is None
    assert value("pgmonkey_registry_databases") == 2
    assert value("pgmonkey_database_state", ORDERS | {"state": "idle"}) == 1
    assert value("pgmonkey_cache_size", {"type": "pool"}) == 0
    assert value("pgmonkey_config_version", ORDERS) == 1
    assert value("pgmonkey_config_stale", ORDERS) == 0
    assert value("pgmonkey_config_last_reload_successful") == 1
    assert database.backends() == []
    del registry


def test_the_pool_series_say_what_the_pool_does(
    registry: Registry, numbers: prometheus_client.CollectorRegistry
) -> None:
    """Idle, used and waiting connections, requests and times are those of the handle."""
    value = numbers.get_sample_value
    handle = registry.get("orders")
    with ExitStack() as stack:
        stack.enter_context(handle)
        stack.enter_context(handle)
        assert value("pgmonkey_pool_connections", POOL | {"state": "used"}) == 2
        assert value("pgmonkey_pool_connections", POOL | {"state": "idle"}) == 0
        assert value("pgmonkey_pool_requests_total", POOL) == 2
        assert (value("pgmonkey_pool_longest_checkout_seconds", POOL) or 0) > 0
        with pytest.raises(Exception, match="no connection within"), handle.connection(timeout=0.1):
            pass

    assert value("pgmonkey_pool_connections", POOL | {"state": "idle"}) == 2
    assert value("pgmonkey_pool_requests_total", POOL) == 3
    assert value("pgmonkey_pool_request_errors_total", POOL | {"reason": "timeout"}) == 1
    assert value("pgmonkey_pool_wait_seconds_count", POOL) == 2
    assert value("pgmonkey_pool_use_seconds_count", POOL) == 2
    assert (value("pgmonkey_pool_use_seconds_sum", POOL) or 0) >= 0.1
    assert value("pgmonkey_pool_connect_attempts_total", POOL) == 2
    assert value("pgmonkey_cache_size", {"type": "pool"}) == 1
    assert value("pgmonkey_database_state", ORDERS | {"state": "ready"}) == 1
    assert value("pgmonkey_database_state", ORDERS | {"state": "idle"}) == 0


def test_who_waits_for_a_new_connection_has_waited(registry: Registry) -> None:
    """A pool that grows, or opens, for a checkout lets it wait for a connect, however short."""
    handle = registry.get("orders")
    opened = handle.status()
    with handle:
        first = handle.status()
        with handle:
            pass
        second = handle.status()
    ended = handle.status()

    assert second.waits.sum - first.waits.sum >= second.connects.sum - first.connects.sum > 0
    assert ended.waits.sum - second.waits.sum >= first.connects.sum - opened.connects.sum > 0


async def test_a_task_that_waits_for_a_new_connection_has_waited(registry: Registry) -> None:
    """The same on an event loop."""
    handle = registry.get("orders", "async_pool")
    opened = handle.status()
    async with handle:
        first = handle.status()
        async with handle:
            pass
        second = handle.status()
    ended = handle.status()
    await handle.close()

    assert second.waits.sum - first.waits.sum >= second.connects.sum - first.connects.sum > 0
    assert ended.waits.sum - second.waits.sum >= first.connects.sum - opened.connects.sum > 0


def test_counters_never_go_back_over_rotations(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Counts belong to the database: ten rotations under use, and no counter is ever smaller."""
    handle = registry.get("orders")
    last: dict[tuple[str, Any], float] = {}
    for number in range(10):
        with handle, handle:
            pass
        registry_dir.declare(
            "orders",
            database,
            connection={"application_name": f"app-{number}"},
            pool_settings={"min_size": 1, "max_size": 2},
        )
        assert registry.reload().applied == ("orders",)
        now = counters(numbers)
        assert {key: value for key, value in last.items() if now[key] < value} == {}
        last = now

    value = numbers.get_sample_value
    assert value("pgmonkey_config_version", ORDERS) == 11
    assert value("pgmonkey_config_reloads_total", ORDERS | {"outcome": "applied"}) == 10
    assert value("pgmonkey_pool_requests_total", POOL) == 20
    assert value("pgmonkey_reload_duration_seconds_count") == 10


def test_a_retired_connection_is_counted_until_it_is_returned(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """What a checkout of an older version still holds has a state of its own."""
    retired = POOL | {"state": "retired"}
    with registry.get("orders"):
        registry_dir.declare("orders", database, connection={"application_name": "next"})
        registry.reload()
        assert numbers.get_sample_value("pgmonkey_pool_connections", retired) == 1
        assert not registry.wait_drained(timeout=0)

    assert registry.wait_drained(timeout=5)
    assert numbers.get_sample_value("pgmonkey_pool_connections", retired) == 0


def test_two_registries_share_one_collector_and_a_closed_one_leaves(
    registry: Registry,
    tmp_path: Any,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """A second registry in the process adds its databases; one that is closed takes its own away."""
    other_dir = RegistryDirectory(tmp_path / "other.d")
    other_dir.declare("billing", database)
    with Registry(other_dir, metrics=numbers, watch=False):
        assert numbers.get_sample_value("pgmonkey_registry_databases") == 3

    assert numbers.get_sample_value("pgmonkey_registry_databases") == 2
    del registry


def test_the_output_parses_as_openmetrics(
    registry: Registry, numbers: prometheus_client.CollectorRegistry
) -> None:
    """Durations have 9 buckets, and one without a bound; the whole output is valid OpenMetrics."""
    with registry.get("orders"):
        pass
    text = generate_openmetrics(numbers).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}

    buckets = [
        sample.value
        for sample in families["pgmonkey_pool_wait_seconds"].samples
        if sample.name.endswith("_bucket")
    ]
    assert len(buckets) == 10
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1
    assert families["pgmonkey_pool_requests"].type == "counter"


@pytest.mark.prometheus
@pytest.mark.parametrize("histograms", [True, False])
def test_promtool_finds_nothing_wrong_with_a_scrape(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
    canary: Canary,
    histograms: bool,
) -> None:
    """Names, kinds and help of all metrics pass `promtool check metrics`; no secret is in them."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=numbers, histograms=histograms) as registry:
        with registry.get("orders"):
            pass
        registry.probe("orders")
        text = prometheus_client.generate_latest(numbers).decode()
    canary.check(text, "a scrape")
    check_metrics(text)


def test_without_histograms_a_duration_is_a_count_and_a_sum(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """`histograms=False` exports waits, uses, connects and reloads as summaries."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=numbers, watch=False, histograms=False) as registry:
        with registry.get("orders"):
            pass
        shown = {
            metric.name: (metric.type, [sample.name for sample in metric.samples])
            for metric in numbers.collect()
        }
    pools = [f"pgmonkey_pool_{what}_seconds" for what in ("wait", "use", "connect")]
    for name in (*pools, "pgmonkey_reload_duration_seconds"):
        assert shown[name] == ("summary", [f"{name}_count", f"{name}_sum"])


def test_the_page_says_how_many_series_a_database_has(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """docs/metrics.md has their number with histograms and without, for one database and a hundred."""
    registry_dir.declare("orders", database)
    series = []
    for histograms in (False, True):
        numbers = prometheus_client.CollectorRegistry()
        with Registry(
            registry_dir, metrics=numbers, watch=False, histograms=histograms
        ) as registry:
            with registry.get("orders"):
                pass
            series.append(
                sum(
                    "database" in one.labels
                    for metric in numbers.collect()
                    for one in metric.samples
                )
            )
    without, with_them = series
    page = " ".join((ROOT / "docs" / "metrics.md").read_text().split())
    assert f"{without} instead of {with_them} series for each database in use" in page
    assert f"{100 * with_them:,} series" in page
    assert f"without histograms {100 * without:,} series" in page


def test_the_reloads_of_a_database_are_one_series_whatever_its_type(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """A change of the connection type, applied or rejected, is an increase of the same counter."""

    def reloads() -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for metric in numbers.collect()
            for sample in metric.samples
            if sample.name == "pgmonkey_config_reloads_total"
            and sample.labels["database"] == "orders"
        }

    assert reloads() == {"applied": 0, "rejected": 0, "removed": 0}
    registry_dir.declare("orders", database, "normal")
    registry.reload()
    assert reloads() == {"applied": 1, "rejected": 0, "removed": 0}
    registry_dir.declare("orders", database, "async", pool_settings={"max_sise": 1})
    registry.reload()
    assert reloads() == {"applied": 1, "rejected": 1, "removed": 0}


def test_a_removed_database_has_counters_and_no_state(
    registry: Registry,
    registry_dir: RegistryDirectory,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Its gauges are gone, and it is not counted as declared; what it has counted stays."""
    with registry.get("orders"):
        pass
    registry_dir.remove("orders")
    registry.reload()
    value = numbers.get_sample_value
    assert value("pgmonkey_registry_databases") == 1
    assert value("pgmonkey_config_reloads_total", ORDERS | {"outcome": "removed"}) == 1
    assert value("pgmonkey_pool_requests_total", POOL) == 1
    for gauge in ("config_version", "config_stale", "config_hash"):
        assert value(f"pgmonkey_{gauge}", ORDERS) is None
    for state in ("ready", "idle", "stale", "down", "failed"):
        assert value("pgmonkey_database_state", ORDERS | {"state": state}) is None


def test_a_database_whose_last_connect_failed_is_down_until_one_succeeds(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Without background probes the connects of its pool decide; the status has the reason."""
    registry_dir.declare("orders", database, connection={"port": proxy.port}, timeout=5)

    def state() -> str:
        shown = {
            sample.labels["state"]: sample.value
            for metric in numbers.collect()
            for sample in metric.samples
            if sample.name == "pgmonkey_database_state"
        }
        assert sorted(shown.values()) == [0, 0, 0, 0, 1]
        return max(shown, key=shown.__getitem__)

    with Registry(registry_dir, metrics=numbers, watch=False) as registry:
        handle = registry.get("orders")
        assert state() == "idle"
        proxy.set("refuse")
        with pytest.raises(PgmonkeyError, match="refused"), handle.connection(timeout=1):
            pass
        assert state() == "down"
        assert registry.status().databases[0].last_error_reason == "refused"
        proxy.set("pass")
        with handle.connection(timeout=10):
            assert state() == "ready"
        assert registry.status().databases[0].last_error is None


def test_processes_with_the_same_configuration_have_the_same_hash(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """The hash of a database changes with `revision`, not with the password, and fits a float."""

    def hashes() -> tuple[float | None, float | None]:
        value = numbers.get_sample_value
        return (
            value("pgmonkey_config_hash", ORDERS),
            value("pgmonkey_config_hash", {"database": "reports"}),
        )

    pool_settings = {"min_size": 1, "max_size": 2}
    first = hashes()
    with Registry(registry_dir, metrics=None, watch=False) as other:
        same = prometheus_client.CollectorRegistry()
        export(other, same, histograms=True)
        assert same.get_sample_value("pgmonkey_config_hash", ORDERS) == first[0]
    registry_dir.declare(
        "orders", database, pool_settings=pool_settings, connection={"password": "other"}
    )
    registry.reload()
    assert hashes() == first
    registry_dir.declare("orders", database, pool_settings=pool_settings, revision="two")
    registry.reload()
    second = hashes()
    assert second[0] != first[0]
    assert second[1] == first[1]
    assert all(number is not None and 0 < number < 2**48 for number in second)


def test_events_that_are_lost_are_counted(
    registry: Registry, numbers: prometheus_client.CollectorRegistry
) -> None:
    """An event that a processor of the application refuses raises nothing, and is a dropped event."""

    def full_disk(_logger: Any, _method: str, _event: Any) -> Any:
        raise OSError("no space left on device")

    before = numbers.get_sample_value("pgmonkey_events_dropped_total")
    assert before is not None
    structlog.configure(processors=[full_disk])
    try:
        registry.get("orders").open()
    finally:
        structlog.reset_defaults()
    assert numbers.get_sample_value("pgmonkey_events_dropped_total") == before + 1


def test_a_scrape_does_not_wait_for_a_server_that_hangs(
    registry: Registry,
    registry_dir: RegistryDirectory,
    proxy: Any,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """While a first connection hangs on a silent network, a scrape answers."""
    path = registry_dir.file("orders")
    text = path.read_text()
    proxy.set("blackhole")
    lines = [
        f"  port: {proxy.port}" if line.startswith("  port:") else line for line in text.split("\n")
    ]
    registry_dir.write("orders", "\n".join(lines))
    registry.reload()
    handle = registry.get("orders")
    with pytest.raises(Exception, match="no connection within"), handle.connection(timeout=0.2):
        pass
    began = time.monotonic()
    assert prometheus_client.generate_latest(numbers)
    assert time.monotonic() - began < 5
    registry.close()
    proxy.close()
    eventually(lambda: not handle.is_open(), 5, "nothing is open")


def test_a_database_that_never_could_connect_shows_why(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """A refused login counts though nothing was ever open; every other reason is 0."""
    registry_dir.declare("orders", database, connection={"password": "wrong"})
    with Registry(registry_dir, metrics=numbers, watch=False) as registry:
        with pytest.raises(Exception, match="auth"), registry.get("orders"):
            pass

        value = numbers.get_sample_value
        failures = "pgmonkey_pool_connect_failures_total"
        assert value(failures, POOL | {"reason": "auth"}) == 1
        for reason in set(get_args(Reason)) - {"auth"}:
            assert value(failures, POOL | {"reason": reason}) == 0
        assert value("pgmonkey_pool_connections", POOL | {"state": "idle"}) == 0
        assert value("pgmonkey_cache_size", {"type": "pool"}) == 0


def test_connections_that_a_reload_replaces_are_evicted_for_a_rotation(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Idle and used connections of the old version count as evicted, once each."""
    handle = registry.get("orders")
    with handle:
        with handle:
            pass
        registry_dir.declare("orders", database, connection={"application_name": "next"})
        assert registry.reload().applied == ("orders",)
    assert registry.wait_drained(5)

    evicted = "pgmonkey_pool_connections_evicted_total"
    assert numbers.get_sample_value(evicted, POOL | {"reason": "rotation"}) == 2
    for reason in ("dead", "lifetime", "check", "standby"):
        assert numbers.get_sample_value(evicted, POOL | {"reason": reason}) == 0


def test_probes_without_the_service(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: Any,
    numbers: prometheus_client.CollectorRegistry,
    events: CapturedEvents,
) -> None:
    """With `probe_interval` a registry says whether its databases are up, used or not.

    An outage is one event when it begins and one when it ends.
    """
    registry_dir.declare("orders", database, connection={"port": proxy.port})
    with Registry(registry_dir, metrics=numbers, watch=False):
        assert numbers.get_sample_value("pgmonkey_up", ORDERS) is None
    with Registry(registry_dir, metrics=numbers, watch=False, probe_interval=0.1) as registry:
        eventually(lambda: numbers.get_sample_value("pgmonkey_up", ORDERS) == 1)
        assert (numbers.get_sample_value("pgmonkey_probe_duration_seconds", ORDERS) or 0) > 0
        proxy.set("refuse")
        eventually(lambda: numbers.get_sample_value("pgmonkey_up", ORDERS) == 0)
        registry.probe("orders")
        proxy.set("pass")
        eventually(lambda: numbers.get_sample_value("pgmonkey_up", ORDERS) == 1)
        assert numbers.get_sample_value("pgmonkey_cache_size", {"type": "pool"}) == 0
        events.wait("connect.recovered")
        (failed,) = events.named("connect.failed")
        assert (failed["database"], failed["reason"]) == ("orders", "refused")
        assert len(events.named("connect.recovered")) == 1


@pytest.mark.parametrize("seconds", [0, math.nan, math.inf])
def test_a_probe_interval_that_is_no_time_is_refused(
    seconds: float, registry_dir: RegistryDirectory
) -> None:
    """No pause at all would be a load of its own; NaN and infinity would never end."""
    with pytest.raises(ValueError, match="above 0"):
        Registry(registry_dir, metrics=None, probe_interval=seconds)


def test_a_registry_that_is_dropped_stops_its_probes(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Background probes do not keep a registry alive."""
    registry_dir.declare("orders", database)
    registry = Registry(registry_dir, metrics=None, watch=False, probe_interval=0.05)
    alive = weakref.ref(registry)
    del registry
    eventually(lambda: gc.collect() >= 0 and alive() is None)


def test_two_registries_of_one_directory_are_one_series(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Where two registries declare the same database their numbers are added; no series is double."""
    with Registry(registry_dir, metrics=numbers, watch=False) as other:
        for one in (registry, other, other):
            with one.get("orders"):
                pass
        samples = [
            (sample.name, tuple(sorted(sample.labels.items())))
            for metric in numbers.collect()
            for sample in metric.samples
        ]
        assert len(samples) == len(set(samples))
        value = numbers.get_sample_value
        assert value("pgmonkey_pool_requests_total", POOL) == 3
        assert value("pgmonkey_pool_connections_max", POOL) == 4
        assert value("pgmonkey_pool_wait_seconds_count", POOL) == 3
        assert value("pgmonkey_registry_databases") == 2
        assert value("pgmonkey_database_state", ORDERS | {"state": "ready"}) == 1
        registry_dir.declare("orders", database, pool_settings={"max_sise": 2})
        other.reload()
        assert value("pgmonkey_database_state", ORDERS | {"state": "ready"}) == 0
        assert value("pgmonkey_database_state", ORDERS | {"state": "stale"}) == 1
        assert value("pgmonkey_config_stale", ORDERS) == 1
        assert value("pgmonkey_config_last_reload_successful") == 0


def test_a_registry_that_does_not_watch_has_no_watcher_to_be_down(
    registry: Registry,
    registry_dir: RegistryDirectory,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """`pgmonkey_watcher_up` is there only where files are to be watched."""
    assert numbers.get_sample_value("pgmonkey_watcher_up") is None
    with Registry(registry_dir, metrics=numbers):
        eventually(lambda: numbers.get_sample_value("pgmonkey_watcher_up") == 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watcher_that_has_ended_is_down(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the thread that watches ends by a defect, `pgmonkey_watcher_up` is 0."""
    registry_dir.declare("orders", database)

    def source(*_directories: str, **_: Any) -> Any:
        raise LookupError("a defect")

    monkeypatch.setattr(watchfiles, "watch", source)
    with Registry(registry_dir, metrics=numbers):
        eventually(lambda: numbers.get_sample_value("pgmonkey_watcher_up") == 0)


def test_a_secret_that_the_server_does_not_take_is_newer_than_what_runs(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Its time is later than that of the last good reload until the server takes it."""
    registry_dir.declare("orders", database, volume=volume)
    with Registry(registry_dir, metrics=numbers, watch=False) as registry:

        def newer() -> bool:
            return secret_modified(numbers) > reload_success(numbers)

        registry.get("orders").open()
        assert not newer()
        password = f"{database.password}x"
        volume.write({"username": database.user, "password": password})
        assert set(registry.reload().rejected) == {"orders"}
        assert newer()
        assert numbers.get_sample_value("pgmonkey_config_stale", ORDERS) == 1
        database.server.set_password(database.user, password)
        eventually(lambda: registry.reload().applied == ("orders",), 10)
        assert not newer()


def test_a_secret_that_comes_during_a_rotation_is_newer_than_what_runs(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """The time of a reload is that of its files: a secret that they did not have yet is later."""
    registry_dir.declare("orders", database, volume=volume)
    with Registry(registry_dir, metrics=numbers, watch=False) as registry:
        registry.get("orders").open()
        database.rotate()
        write_credentials(volume, database)

        def spoil(_connection: object) -> None:
            volume.write({"username": database.user, "password": f"{database.password}x"})

        registry.configure("orders", spoil)
        assert registry.reload().applied == ("orders",)
        assert set(registry.reload().rejected) == {"orders"}
        assert secret_modified(numbers) > reload_success(numbers)


def test_a_secret_that_is_being_read_when_a_rotation_ends_is_newer_than_what_runs(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    numbers: prometheus_client.CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look at the files that is not over says nothing of what is in force."""
    registry_dir.declare("orders", database, volume=volume)
    scan, reads, applied = DirectoryLoader.scan, threading.Event(), threading.Event()

    def slow_scan(*arguments: Any) -> Any:
        found = scan(*arguments)
        reads.set()
        assert applied.wait(10)
        return found

    with (
        Registry(registry_dir, metrics=numbers, watch=False) as registry,
        ThreadPoolExecutor() as threads,
    ):
        registry.get("orders").open()
        database.rotate()
        write_credentials(volume, database)
        later: list[Future[Any]] = []

        def spoil(_connection: object) -> None:
            if not later:
                volume.write({"username": database.user, "password": f"{database.password}x"})
                monkeypatch.setattr(DirectoryLoader, "scan", slow_scan)
                later.append(threads.submit(registry.reload))
                assert reads.wait(10)

        registry.configure("orders", spoil)
        assert registry.reload().applied == ("orders",)
        applied.set()
        assert set(later[0].result().rejected) == {"orders"}
        assert secret_modified(numbers) > reload_success(numbers)


def secret_modified(numbers: prometheus_client.CollectorRegistry) -> float:
    value = numbers.get_sample_value("pgmonkey_secret_modified_timestamp_seconds", ORDERS)
    assert value is not None
    return value


def reload_success(numbers: prometheus_client.CollectorRegistry) -> float:
    value = numbers.get_sample_value("pgmonkey_config_last_reload_success_timestamp_seconds")
    assert value is not None
    return value


def test_a_checkout_that_is_just_ending_is_neither_lost_nor_waiting(registry: Registry) -> None:
    """Read at each line of a return, the count of checkouts does not fall by one."""
    handle = registry.get("orders").open()
    seen: list[PoolStatus] = []

    checkout = handle.connection()
    checkout.__enter__()
    with at_each_line(inspect.getfile(SyncCheckout), lambda _frame: seen.append(handle.status())):
        checkout.__exit__(None, None, None)

    assert len(seen) > 10, "there were lines to look at"
    assert {status.requests for status in seen} == {1}
    assert {status.waiting for status in seen} == {0}
    assert handle.status().requests == 1


def test_counters_are_exact_when_threads_have_come_and_gone(registry: Registry) -> None:
    """Scraped without pause under load and forced reloads, no checkout is counted twice or never."""
    handle = registry.get("orders")
    stop = threading.Event()
    done = [0] * 4

    def work(number: int) -> None:
        while not stop.is_set():
            with handle:
                pass
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(done))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        last = 0
        for number in range(500):
            if number % 100 == 99:
                registry.get("orders", force_reload=True)
            status = handle.status()
            assert status.requests >= last
            last = status.requests
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for thread in threads:
            thread.join()
    assert handle.status().requests == sum(done)


def test_the_documentation_lists_every_metric_and_no_other(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Names, kinds and labels of the page are those of a registry with everything on."""
    registry_dir.declare("orders", database, volume=volume)
    registry_dir.declare("down", database, "normal", connection={"port": 1})
    with Registry(registry_dir, metrics=numbers, probe_interval=5) as registry:
        with registry.get("orders"):
            pass
        registry.get("orders", force_reload=True)
        with pytest.raises(Exception, match="refused"), registry.get("down"):
            pass
        eventually(lambda: all(one.probe for one in registry.status().databases))
        metrics = list(numbers.collect())
    exported = {
        metric.name + ("_total" if metric.type == "counter" else ""): (
            metric.type,
            {label for sample in metric.samples for label in sample.labels} - {"le"},
        )
        for metric in metrics
    }
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    documented = {}
    for name, kind, labels in re.findall(
        r"^\| `(pgmonkey_\w+)` \| (gauge|counter|histogram) \| ([^|]*)\|", page, re.MULTILINE
    ):
        documented[name] = (kind, set(re.findall(r"`(\w+)`", labels)))
    assert documented == exported
    values = dict(re.findall(r"^\| `(pgmonkey_\w+)` \| (`.*)$", page, re.MULTILINE))
    for metric in metrics:
        for sample in metric.samples:
            for label in {"state", "reason", "outcome"} & sample.labels.keys():
                assert f"`{sample.labels[label]}`" in values[sample.name], sample
