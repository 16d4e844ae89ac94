"""Forks that come while another thread is inside a library that locks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.core import GaugeMetricFamily

from pgmonkey import CheckoutTimeout, Registry
from pgmonkey.telemetry.multiprocess import MetricFiles
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.process import in_a_child
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory

FORKS = 20


@contextmanager
def again_and_again(act: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread all the time; it has begun when the block does."""
    begun, over = threading.Event(), threading.Event()

    def run() -> None:
        while not over.is_set():
            act()
            begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert begun.wait(10)
        yield
    finally:
        over.set()
        thread.join()


class Library:
    """Lock as a library does that knows nothing of forks, and let others have their turn."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def use(self) -> None:
        with self.lock:
            Path("/").stat()  # lets go of the interpreter

    def is_free(self) -> bool:
        return not self.lock.locked()


@pytest.mark.parametrize("number", range(FORKS))
def test_a_child_can_write_its_metrics_whatever_the_parent_wrote_in_that_moment(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """prometheus_client has one lock for all its files: no thread is in it when a fork comes."""
    library = Library()

    class Value:
        def __init__(self, *_arguments: object, **_options: object) -> None:
            pass

        def set(self, _number: float, _timestamp: float) -> None:
            library.use()

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr("prometheus_client.values.ValueClass", Value)
    readings = iter(range(number, 1_000_000))
    files = MetricFiles(
        lambda: [GaugeMetricFamily("pgmonkey_up", "", value=next(readings))], {"pgmonkey_up": "min"}
    )

    with again_and_again(files.write):
        assert in_a_child(library.is_free)


def ask(registry: Registry) -> object:
    """Return what a server answers."""
    with registry.get("orders").connection(timeout=10) as connection:
        return connection.execute("SELECT 1").fetchone()


@pytest.mark.usefixtures("no_log")
def test_a_fork_waits_for_the_connects_of_other_threads(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """OpenSSL holds locks while a thread connects; a child would inherit them, and never connect."""
    with ChaosProxy(database.host, database.port) as proxy:
        proxy.set("delay", delay=0.005)
        registry_dir.declare(
            "orders", database, connection={"port": proxy.port, "sslmode": "disable"}
        )
        with Registry(registry_dir, watch=False) as registry:
            thread = threading.Thread(target=ask, args=(registry,))
            thread.start()
            eventually(lambda: proxy.accepted > 0)
            # What the child sees of the parent's memory is what there was when it was forked.
            assert in_a_child(lambda: proxy.round_trips) > 0
            thread.join()


@pytest.mark.usefixtures("no_log")
def test_a_fork_does_not_wait_for_a_server_that_does_not_answer(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A connect that waits for its server holds no lock, so the fork comes, and the child works."""
    registry_dir.declare("orders", database)
    with ChaosProxy(database.host, database.port) as proxy:
        proxy.set("blackhole")
        registry_dir.declare("silent", database, connection={"port": proxy.port})
        with Registry(registry_dir, watch=False) as registry:
            silent = registry.get("silent")
            with pytest.raises(CheckoutTimeout), silent.connection(timeout=0.2):
                pass
            assert proxy.accepted == 1
            assert in_a_child(partial(ask, registry)) == (1,)
