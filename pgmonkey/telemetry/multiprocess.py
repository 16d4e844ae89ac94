"""The files of prometheus_client's multi-process mode: what each worker of gunicorn has counted."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from prometheus_client import Metric, values

from pgmonkey.telemetry.forks import no_fork

#: Seconds between two writes. A worker that is killed loses what it has counted since the last.
INTERVAL: Final = 1.0
#: How a scrape puts the gauges of all workers together; the others are summed. A worker that is
#: gone counts no more in any of them, once `mark_process_dead` was called for it.
_MODES: Final[Mapping[str, str]] = {
    "pgmonkey_build_info": "livemax",
    "pgmonkey_config_generation": "livemax",
    "pgmonkey_config_hash": "livemax",
    "pgmonkey_config_last_reload_success_timestamp_seconds": "livemin",
    "pgmonkey_config_last_reload_successful": "livemin",
    "pgmonkey_config_stale": "livemax",
    "pgmonkey_pool_longest_checkout_seconds": "livemax",
    "pgmonkey_probe_duration_seconds": "livemax",
    "pgmonkey_registry_databases": "livemax",
    "pgmonkey_secret_modified_timestamp_seconds": "livemax",
    "pgmonkey_up": "livemin",
    "pgmonkey_watcher_up": "livemin",
}
_SUM: Final = "livesum"
_FILE_SIZE: Final = 1 << 16  # what prometheus_client begins with


class _Key(NamedTuple):
    """Name one number in the files, with what they keep beside it."""

    kind: str
    metric: str
    name: str
    labels: tuple[str, ...]
    values: tuple[str, ...]
    help: str


class MetricFiles:
    """Write what a collector yields into the files that `MultiProcessCollector` reads.

    A scrape that gunicorn hands to one worker answers for all of them from these files. They
    are written by a thread, once a second and at the end of the process: no checkout pays.

    Args:
        collect: Yields the metrics of this process.
    """

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect
        self._values: dict[_Key, Any] = {}
        self._written: dict[_Key, float] = {}
        # Guards the two above. Never held by a checkout.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Guards the thread. Checkouts take it, so it is never held while anything is written.
        self._starting = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.write)

    @staticmethod
    def wanted() -> bool:
        """Tell whether `PROMETHEUS_MULTIPROC_DIR` was set when prometheus_client was imported."""
        return bool(values.ValueClass._multiprocess)

    def ensure_thread(self) -> None:
        """Start the thread that writes, unless it runs in this process."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="pgmonkey-metrics", daemon=True
                )
                self._thread.start()

    def write(self) -> None:
        """Write what has changed since the last time."""
        with no_fork(), self._lock:
            now = {
                key: number
                for family in self._collect()
                for key, number in _numbers(family)  # a histogram's buckets one by one
            }
            written = self._written
            for key, number in now.items():
                before = written.get(key)
                if number == before:
                    continue
                if key.kind == "gauge":
                    self._value(key).set(number)
                else:
                    self._value(key).inc(max(0.0, number - (before or 0.0)))
                written[key] = number
            for key in written.keys() - now.keys():
                # A registry was closed. Its counts stay, and its gauges count no more; a file
                # cannot forget a series.
                if key.kind == "gauge" and _MODES.get(key.metric, _SUM) != "livemin":
                    self._value(key).set(0.0)
                del written[key]

    def _value(self, key: _Key) -> Any:
        value = self._values.get(key)
        if value is None:
            mode = _MODES.get(key.metric, _SUM) if key.kind == "gauge" else ""
            _make_file(f"gauge_{mode}" if mode else key.kind)
            value = self._values[key] = values.ValueClass(*key, multiprocess_mode=mode)
        return value

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            with suppress(OSError):  # a full disk: what is left is written when there is room
                self.write()
            pause.wait(INTERVAL)

    def _forget(self) -> None:
        """Start anew in a child process, which counts from zero into files of its own."""
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._thread = None
        self._written = {}


def _make_file(prefix: str) -> None:
    """Make one file of this process, unless it is there.

    prometheus_client makes it empty and then longer. A scrape in between fails, and of a disk
    that is full it learns by a signal that ends the process.
    """
    path = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / f"{prefix}_{os.getpid()}.db"
    if path.exists():
        return
    new = path.with_suffix(".new")
    new.write_bytes(bytes(_FILE_SIZE))
    with suppress(FileExistsError):  # the application's own metrics were first
        os.link(new, path)
    new.unlink()


def _numbers(family: Metric) -> Iterator[tuple[_Key, float]]:
    """Yield the numbers of one metric as the files keep them."""
    cumulated = 0.0
    for sample in family.samples:
        number = sample.value
        if family.type == "histogram":
            # The files hold each bucket by itself, and no count: it is their sum.
            if sample.name.endswith("_count"):
                continue
            if sample.name.endswith("_bucket"):
                number, cumulated = number - cumulated, number
                if sample.labels["le"] == "+Inf":
                    cumulated = 0.0
        yield (
            _Key(
                family.type,
                family.name,
                sample.name,
                tuple(sample.labels),
                tuple(sample.labels.values()),
                family.documentation,
            ),
            number,
        )
