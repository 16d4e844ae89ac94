"""Our text of a scrape, beside prometheus_client's."""

from __future__ import annotations

from collections.abc import Iterable

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pgmonkey import Registry
from pgmonkey.service.runner import collector_registry
from pgmonkey.telemetry.exposition import Labels, expose
from pgmonkey.telemetry.metrics import export
from tests.kit import RegistryDirectory, TemporaryDatabase

#: What clients ask for: nothing, Prometheus 2 and 3, and ways of escaping names.
ACCEPTS = (
    "",
    "*/*",
    "text/plain;version=0.0.4",
    "text/plain;version=1.0.0;escaping=allow-utf-8",
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4",
    "application/openmetrics-text;version=1.0.0;escaping=dots",
    "application/openmetrics-text;version=1.0.0;escaping=values",
    "text/plain;version=1.0.0;escaping=dots",
)


class Given(Collector):
    """Yield what a test says."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def check(metrics: prometheus_client.CollectorRegistry) -> None:
    """Compare the bytes and the content type, for every client."""
    for accept in ACCEPTS:
        encode, content_type = choose_encoder(accept)
        assert expose(accept, metrics) == (encode(metrics), content_type), accept


def holding(*metrics: Metric) -> prometheus_client.CollectorRegistry:
    """Return a registry with these metrics."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(Given(*metrics))
    return registry


@pytest.mark.parametrize("histograms", [False, True])
def test_a_registry_is_written_as_prometheus_client_writes_it(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, histograms: bool
) -> None:
    """The metrics of a registry in use, idle and broken, are the same bytes in every format."""
    registry_dir.declare("orders", database)
    registry_dir.declare("reports", database, "normal")
    registry_dir.declare("ledger", database, connection={"password": "wrong"})
    numbers = prometheus_client.CollectorRegistry()
    with Registry(registry_dir, metrics=numbers, watch=False) as registry:
        export(registry, numbers, histograms=histograms)
        with registry.get("orders"):
            check(holding(*numbers.collect()))
        with pytest.raises(Exception, match="auth"), registry.get("ledger"):
            pass
        check(holding(*numbers.collect()))


def test_everything_that_prometheus_client_knows_is_written_its_way() -> None:
    """Counters with their birth, exemplars, states, information, units: all of it, mixed with plain ones."""
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("jobs", 'Jobs "done"\\\n', ["kind"], registry=registry)
    counter.labels('a "quoted" \\ one\n').inc(1e6)
    counter.labels("exemplary").inc(exemplar={"trace_id": "abc"})
    histogram = prometheus_client.Histogram("took_seconds", "Time.", registry=registry)
    histogram.observe(0.25, exemplar={"trace_id": "abc"})
    prometheus_client.Summary("size_bytes", "Size.", registry=registry).observe(3)
    prometheus_client.Info("program", "What runs.", registry=registry).info({"version": "1"})
    prometheus_client.Enum("light", "Now.", states=["on", "off"], registry=registry)
    prometheus_client.Gauge("speed", "Fast.", unit="meters", registry=registry).set(-0.0)
    prometheus_client.Gauge("name.with.dots", "UTF-8.", registry=registry).set(1)
    prometheus_client.Gauge("colon:s", "A rule's name.", registry=registry).set(1)
    check(registry)
    check(holding(*collector_registry().collect()))  # as of one moment

    stamped = Metric("stamped", "With a time.", "gauge")
    stamped.add_sample("stamped", {"a": "b"}, 1, timestamp=1700000000.5)
    odd = Metric("odd", "Of no kind.", "unknown")
    odd.add_sample("odd", {}, 1)
    apart = Metric("apart", "With its birth.", "counter")
    apart.add_sample("apart_total", {}, 1)
    apart.add_sample("apart_created", {}, 1700000000.5)
    check(holding(stamped, odd, apart, Metric("empty", "Nothing.", "gauge")))


@given(
    st.lists(
        st.tuples(
            st.dictionaries(
                st.from_regex(r"[a-zA-Z_]{1,4}[0-9.]?", fullmatch=True), st.text(), max_size=3
            ),
            st.floats() | st.integers(-(2**60), 2**60),
            st.booleans(),
        ),
        max_size=4,
    ),
    st.sampled_from(["counter", "gauge", "summary", "histogram", "unknown"]),
    st.text(),
)
@settings(max_examples=150, deadline=None)
def test_any_number_and_any_text_is_written_its_way(
    rows: list[tuple[dict[str, str], float, bool]], kind: str, told: str
) -> None:
    """Numbers of every size, labels of every name and texts of every character are the same bytes."""
    metric = Metric("some", told, kind)
    for labels, value, kept in rows:
        plain = kept and all(name.isidentifier() and name[:2] != "__" for name in labels)
        metric.add_sample("some", Labels(labels) if plain else labels, value)
    check(holding(metric))


def test_the_default_registry_is_the_default() -> None:
    """Without a registry it is prometheus_client's own that is written."""
    text, content_type = expose()
    assert b"python_info" in text
    assert content_type.startswith("text/plain; version=0.0.4")
