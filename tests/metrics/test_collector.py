"""The metrics that a scrape sees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import prometheus_client
import pytest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pgmonkey import Registry
from pgmonkey.metrics import export
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory

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
    assert value("pgmonkey_registry_databases", {"state": "idle"}) == 2
    assert value("pgmonkey_cache_size", {"type": "pool"}) == 0
    assert value("pgmonkey_config_generation", POOL) == 1
    assert value("pgmonkey_config_stale", POOL) == 0
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
    assert value("pgmonkey_registry_databases", {"state": "ready"}) == 1


def test_counters_never_go_back_over_swaps(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """Counts belong to the database: ten swaps under use, and no counter is ever smaller."""
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
    assert value("pgmonkey_config_generation", POOL) == 11
    assert value("pgmonkey_config_reloads_total", POOL | {"outcome": "applied"}) == 10
    assert value("pgmonkey_pool_requests_total", POOL) == 20
    assert value("pgmonkey_reload_duration_seconds_count") == 10


def test_a_retired_connection_is_counted_as_retiring_until_it_is_returned(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
) -> None:
    """What a checkout of an older generation still holds has a state of its own."""
    retiring = POOL | {"state": "retiring"}
    with registry.get("orders"):
        registry_dir.declare("orders", database, connection={"application_name": "next"})
        registry.reload()
        assert numbers.get_sample_value("pgmonkey_pool_connections", retiring) == 1
        assert not registry.wait_drained(timeout=0)

    assert registry.wait_drained(timeout=5)
    assert numbers.get_sample_value("pgmonkey_pool_connections", retiring) == 0


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
        assert numbers.get_sample_value("pgmonkey_registry_databases", {"state": "idle"}) == 3

    assert numbers.get_sample_value("pgmonkey_registry_databases", {"state": "idle"}) == 2
    del registry


def test_the_output_parses_as_openmetrics_with_histograms_on(
    registry: Registry, numbers: prometheus_client.CollectorRegistry
) -> None:
    """With histograms the durations have buckets, and the whole output is valid OpenMetrics."""
    with registry.get("orders"):
        pass
    export(registry, numbers, histograms=True)
    text = generate_openmetrics(numbers).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}

    buckets = [
        sample.value
        for sample in families["pgmonkey_pool_wait_seconds"].samples
        if sample.name.endswith("_bucket")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1
    assert families["pgmonkey_pool_requests"].type == "counter"


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
