"""Forks that come while another thread is inside a library that locks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.core import GaugeMetricFamily

import pgmonkey.registry.fork  # noqa: F401 - registers the hook
from pgmonkey.telemetry.multiprocess import MetricFiles
from tests.kit.process import in_a_child

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
