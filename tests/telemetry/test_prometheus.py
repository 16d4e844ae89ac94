"""A real Prometheus scrapes a registry for a minute, over rotations and an outage, and is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from pgmonkey import PgmonkeyError, Registry
from pgmonkey.telemetry.metrics import RegistryCollector
from tests.kit import Canary, ChaosProxy, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.prometheus import Prometheus, check_metrics, configuration
from tests.kit.registry_dir import write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.telemetry.load import Load

SECONDS = 60  # of load
SLOT = 6  # seconds between two things that happen
ORDERS = '{database="orders", type="pool"}'
EVENTS = '{database="events", type="async_pool"}'

pytestmark = [pytest.mark.prometheus, pytest.mark.slow]


@pytest.fixture
def numbers() -> prometheus_client.CollectorRegistry:
    """A Prometheus registry of this test."""
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def exposed(numbers: prometheus_client.CollectorRegistry) -> Iterator[int]:
    """The port where the numbers are to be scraped."""
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", numbers)
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Story:
    """What happens to a registry while its clients work."""

    registry: Registry
    directory: RegistryDirectory
    database: TemporaryDatabase
    volume: SecretVolume
    proxy: ChaosProxy
    prometheus: Prometheus

    def version(self) -> int:
        """The version that `orders` runs."""
        return self._of("orders").version

    def _of(self, name: str) -> Any:
        return next(one for one in self.registry.status().databases if one.name == name)

    def rotate(self) -> None:
        """Give the server a new password, then the secret; both databases move to it."""
        before = self.version()
        self.database.rotate()
        write_credentials(self.volume, self.database)
        eventually(lambda: self.version() == before + 1, 15, "the new password is applied")

    def announce_too_early(self) -> None:
        """Publish a password before the server knows it: rejected, until it does."""
        good = self.database.password
        before = self.version()
        self.volume.write({"username": self.database.user, "password": f"{good}x"})
        eventually(lambda: self._of("orders").stale, 15, "a password that is not yet good")
        self.prometheus.scrapes(2)
        self.database.server.set_password(self.database.user, f"{good}x")
        self.database.password = f"{good}x"
        eventually(lambda: self.version() == before + 1, 30, "it became good")

    def break_a_file(self) -> None:
        """Write nonsense, and mend it."""
        text = self.directory.file("orders").read_text()
        self.directory.write("orders", "connection_type: [")
        eventually(lambda: self._of("orders").stale, 15, "a file that is broken")
        self.prometheus.scrapes(2)
        self.directory.write("orders", text)
        eventually(lambda: not self._of("orders").stale, 15, "a file that was mended")

    def outage(self) -> None:
        """Cut `orders` off until clients, probes and scrapes have felt it."""
        before = self._errors()
        self.proxy.set("refuse")
        self.proxy.kill()
        eventually(lambda: self._errors() > before, 15, "clients have got no connection")
        eventually(lambda: not self._of("orders").probe.up, 15, "a probe has failed")
        self.prometheus.scrapes(2)
        self.proxy.set("pass")

    def _errors(self) -> int:
        return sum(sum(pool.errors.values()) for pool in self._of("orders").pools)

    def leak(self) -> None:
        """Hold a connection for longer than leak_detection."""
        orders: Any = self.registry.get("orders")
        with orders:
            eventually(lambda: orders.status().leaks == 1, 10, "it is noticed")


@pytest.mark.timeout(240)
def test_what_prometheus_sees_is_what_happened(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    proxy: ChaosProxy,
    numbers: prometheus_client.CollectorRegistry,
    exposed: int,
    canary: Canary,
    tmp_path: Path,
) -> None:
    """No counter falls, sums are those of the load generator, and every panel and rule has its data."""
    registry_dir.declare(
        "orders",
        database,
        volume=volume,
        connection={"port": proxy.port, "connect_timeout": 10},
        pool_settings={"min_size": 1, "max_size": 3},
        timeout=1,
        leak_detection="3s",  # on a busy machine, a client's block takes a while
    )
    registry_dir.declare(
        "events",
        database,
        "async_pool",
        volume=volume,
        async_pool_settings={"min_size": 1, "max_size": 3},
        timeout=1,
    )
    with Registry(registry_dir, metrics=numbers, probe_interval=1) as registry:
        orders, events = registry.get("orders"), registry.get("events")
        with Prometheus(tmp_path, configuration(tmp_path, [exposed])) as prometheus:
            story = Story(registry, registry_dir, database, volume, proxy, prometheus)
            began = time.time()
            with Load(orders, events, clients=5, pause=0.04) as load:
                acts = [
                    story.rotate,
                    story.rotate,
                    story.break_a_file,
                    story.rotate,
                    story.outage,
                    story.announce_too_early,
                    story.rotate,
                    story.leak,
                    story.rotate,
                ]
                prometheus.scrapes(1)  # of open pools to which nothing has happened
                for number, act in enumerate(acts, 1):
                    act()
                    load.stop.wait(max(0.0, began + number * SLOT - time.time()))
                load.stop.wait(max(0.0, began + SECONDS - time.time()))
            # An act of the story borrowed one connection beside the load. A request counts from the
            # moment that it gets its connection, its times when it has ended.
            ended = {
                (("database", "orders"),): load.orders.got + 1,
                (("database", "events"),): load.events.got,
            }
            eventually(
                lambda: (
                    prometheus.query("sum by (database) (pgmonkey_pool_use_seconds_count)") == ended
                ),
                20,
                f"the last scrape has counted {ended} requests that have ended",
            )

            check_scrapes(prometheus, began)
            check_counters(prometheus, numbers)
            check_sums(prometheus, load)
            check_story(prometheus, story, began)
            check_rules(prometheus)
            prometheus.check_dashboard(began)
        text = prometheus_client.generate_latest(numbers).decode()
        canary.check(text, "a scrape")
        check_metrics(text)
        plain = prometheus_client.CollectorRegistry()
        collector = RegistryCollector()
        collector.add(registry, histograms=False)
        plain.register(collector)
        check_metrics(prometheus_client.generate_latest(plain).decode())


@pytest.mark.timeout(120)
def test_a_login_that_was_wrong_from_the_start_is_seen(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
    exposed: int,
    tmp_path: Path,
) -> None:
    """A counter that was never seen at 0 has no increase; the rules still see its first value."""
    registry_dir.declare("orders", database, connection={"password": "wrong"})
    failures = f'pgmonkey_pool_connect_failures_total{ORDERS[:-1]}, reason="auth"}}'
    with (
        Registry(registry_dir, metrics=numbers, watch=False) as registry,
        Prometheus(tmp_path, configuration(tmp_path, [exposed])) as prometheus,
    ):
        with pytest.raises(PgmonkeyError, match="auth"), registry.get("orders"):
            pass
        prometheus.scrapes(3)
        assert prometheus.value(failures) == 1
        assert prometheus.value(f"increase({failures}[1m]) > 0") is None
        for alert in ("PgmonkeyLoginRefused", "PgmonkeyCheckoutsFail"):
            (expression,) = (
                rule["query"]
                for rule in prometheus.api("rules")["groups"][0]["rules"]
                if rule["name"] == alert
            )
            assert prometheus.value(expression) == 1, alert


@pytest.mark.timeout(120)
def test_increase_sees_the_reload_that_changes_the_type_of_a_database(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    numbers: prometheus_client.CollectorRegistry,
    exposed: int,
    tmp_path: Path,
) -> None:
    """The counter of reloads is one series over every connection type, applied or rejected."""
    registry_dir.declare("orders", database, "pool")
    with (
        Registry(registry_dir, metrics=numbers, watch=False) as registry,
        Prometheus(tmp_path, configuration(tmp_path, [exposed])) as prometheus,
    ):
        prometheus.scrapes(2)
        registry_dir.declare("orders", database, "normal")
        assert registry.reload().applied == ("orders",)
        registry_dir.declare("orders", database, "async", pool_settings={"max_sise": 3})
        assert set(registry.reload().rejected) == {"orders"}
        prometheus.scrapes(3)
        for outcome in ("applied", "rejected"):
            reloads = f'pgmonkey_config_reloads_total{{database="orders", outcome="{outcome}"}}'
            assert prometheus.value(f"count({reloads})") == 1
            assert (prometheus.value(f"increase({reloads}[1m])") or 0) > 0, outcome


def check_scrapes(prometheus: Prometheus, began: float) -> None:
    """Every scrape succeeded, and there was one a second."""
    window = f"[{int(time.time() - began)}s]"
    assert prometheus.value(f"min_over_time(up{window})") == 1
    assert (prometheus.value(f"count_over_time(up{window})") or 0) > SECONDS * 0.8


def check_counters(prometheus: Prometheus, numbers: prometheus_client.CollectorRegistry) -> None:
    """No counter has ever fallen."""
    names = {
        sample.name
        for metric in numbers.collect()
        if metric.type in ("counter", "histogram", "summary")
        for sample in metric.samples
    }
    assert len(names) > 15
    for name in names:
        resets = prometheus.query(f"resets({name}[10m])")
        assert resets, name
        assert set(resets.values()) == {0.0}, (name, resets)


def check_sums(prometheus: Prometheus, load: Load) -> None:
    """What was counted is what the clients have counted; times lie between two that they measured."""
    for where, count, more in ((ORDERS, load.orders, 1), (EVENTS, load.events, 0)):
        got = count.got + more

        def value(name: str, where: str = where) -> float:
            found = prometheus.value(f"{name}{where}")
            assert found is not None, name
            return found

        failed = prometheus.value(f"sum(pgmonkey_pool_request_errors_total{where})")
        assert failed == count.failed
        assert value("pgmonkey_pool_requests_total") == got + count.failed
        assert value("pgmonkey_pool_wait_seconds_count") == got
        assert value("pgmonkey_pool_use_seconds_count") == got
        last = where.replace("}", ', le="+Inf"}')
        assert value("pgmonkey_pool_use_seconds_bucket", last) == got
        assert value("pgmonkey_pool_use_seconds_sum") >= count.held
        if not more:
            waited = value("pgmonkey_pool_wait_seconds_sum")
            assert value("pgmonkey_pool_use_seconds_sum") + waited <= count.spent
        assert value("pgmonkey_pool_requests_waiting") == 0
        assert prometheus.value(f'pgmonkey_pool_connections{where[:-1]}, state="used"}}') in (
            0,
            None,
        )
    assert load.orders.failed > 0, "the outage was felt"


def check_story(prometheus: Prometheus, story: Story, began: float) -> None:
    """What happened to files, server and connections can be read."""
    window = f"[{int(time.time() - began)}s]"

    def value(expression: str) -> float | None:
        return prometheus.value(
            expression.replace("WINDOW", window).replace("ORDERS", ORDERS[1:-1])
        )

    applied = story.version() - 1
    assert applied == 6
    assert value('pgmonkey_config_reloads_total{database="orders", outcome="applied"}') == applied
    assert value('pgmonkey_config_reloads_total{database="orders", outcome="rejected"}') == 2
    assert value('pgmonkey_config_version{database="orders"}') == applied + 1
    assert value('max_over_time(pgmonkey_config_stale{database="orders"}WINDOW)') == 1
    assert value('pgmonkey_config_stale{database="orders"}') == 0
    for state in ("ready", "stale", "down"):
        seen = f'max_over_time(pgmonkey_database_state{{database="orders", state="{state}"}}WINDOW)'
        assert value(seen) == 1, state
    assert value('pgmonkey_database_state{database="orders", state="ready"}') == 1
    # One state at a time, in every scrape.
    states = 'sum by (database) (pgmonkey_database_state{database="orders"})'
    for bound in ("max", "min"):
        assert value(f"{bound}_over_time({states}[{window[1:-1]}:1s])") == 1
    assert value("min_over_time(pgmonkey_config_last_reload_successfulWINDOW)") == 0
    assert value("pgmonkey_config_last_reload_successful") == 1
    assert value('min_over_time(pgmonkey_up{database="orders"}WINDOW)') == 0
    assert value('pgmonkey_up{database="orders"}') == 1
    assert value('pgmonkey_up{database="events"}') == 1
    # `increase()` sees the first failure, too.
    assert value('increase(pgmonkey_pool_connect_failures_total{ORDERS, reason="refused"}WINDOW)')
    assert value('increase(pgmonkey_pool_connect_failures_total{ORDERS, reason="auth"}WINDOW)')
    for counter in ("connect_failures", "connections_evicted", "request_errors"):
        first = prometheus.query(f"min_over_time(pgmonkey_pool_{counter}_total{window})")
        assert set(first.values()) == {0.0}, (counter, first)
    assert (value('pgmonkey_pool_connections_evicted_total{ORDERS, reason="rotation"}') or 0) > 0
    assert value("pgmonkey_pool_leaks_total{ORDERS}") == 1
    assert value('max_over_time(pgmonkey_pool_connections{ORDERS, state="used"}WINDOW)') == 3
    assert value("min_over_time(pgmonkey_watcher_upWINDOW)") == 1
    assert value('count(pgmonkey_config_hash{database="orders"})') == 1
    # Orders and events were both moved by each of them.
    assert (value("pgmonkey_reload_duration_seconds_count") or 0) >= 2 * applied


def check_rules(prometheus: Prometheus) -> None:
    """Every rule that ships can be evaluated on real data; the leak fires at once."""
    prometheus.check_rules()
    assert prometheus.firing() == {"PgmonkeyLeak"}
