"""Files of prometheus_client's multi-process mode, from which one scrape answers for all workers."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from prometheus_client import Metric, values

from pgmonkey.telemetry.status import STATES

#: Seconds between two writes. A worker that is killed loses what it has counted since the last.
INTERVAL: Final = 1.0
#: How one value is made of those of all workers; `worst` is for the state of a database. Counters of
#: a worker that ended stay in the sum; `mark_process_dead` takes its gauges away.
Workers = Literal["sum", "max", "min", "worst"]
#: The same in prometheus_client's words.
_MODES: Final[Mapping[Workers, str]] = {
    "sum": "livesum",
    "max": "livemax",
    "min": "livemin",
    # Shows the value with the highest timestamp. Our timestamp is how bad the state is that a worker
    # sees: so all series of a database are those of one worker, and exactly one of them is 1.
    "worst": "livemostrecent",
}
_FILE_SIZE: Final = 1 << 16  # prometheus_client's initial size

# Held while a value of prometheus_client is used, for microseconds. It has one lock for all its files
# and keeps it in a child process: forked while our thread holds it, the child could never count again.
_using: Final = threading.RLock()


class _Key(NamedTuple):
    """Identify one number in the files, in the order of `values.ValueClass`'s arguments."""

    kind: str
    metric: str
    name: str
    labels: tuple[str, ...]
    values: tuple[str, ...]
    help: str


class MetricFiles:
    """Write what a collector yields into the files that `MultiProcessCollector` reads.

    A thread writes them, once a second and at the end of the process: no checkout pays.
    prometheus_client has no public way to write a custom collector or the buckets of a histogram
    into its files; `values.ValueClass` is what its own metrics use.

    Args:
        collect: Yields the metrics of this process.
        workers: How the values of several workers become one, by the name of the gauge.
    """

    def __init__(
        self, collect: Callable[[], Iterable[Metric]], workers: Mapping[str, Workers]
    ) -> None:
        self._collect = collect
        self._workers = workers
        self._values: dict[_Key, Any] = {}
        #: Value and timestamp of each number in the files.
        self._written: dict[_Key, tuple[float, float]] = {}
        # Guards the two above. Never held by a checkout.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Guards the thread. Checkouts take it, so it is never held while anything is written.
        self._starting = threading.Lock()
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
        """Write the numbers that have changed since the last time."""
        with self._lock:
            now = {
                key: (number, timestamp)
                for family in self._collect()
                for key, number, timestamp in self._numbers(family)
            }
            for key, (number, timestamp) in now.items():
                before = self._written.get(key)
                if before == (number, timestamp):
                    continue
                value = self._value(key)
                with _using:
                    if key.kind == "gauge":
                        value.set(number, timestamp)
                    else:
                        value.inc(max(0.0, number - (before[0] if before else 0.0)))
                self._written[key] = number, timestamp
            for key in self._written.keys() - now.keys():
                # A registry was closed, or a database removed. Counters stay. A file cannot forget
                # a gauge: 0 adds nothing, is no maximum, and without a timestamp is no state.
                if key.kind == "gauge" and self._workers[key.metric] != "min":
                    value = self._value(key)
                    with _using:
                        value.set(0.0)
                del self._written[key]

    def _numbers(self, family: Metric) -> Iterator[tuple[_Key, float, float]]:
        """Yield the numbers of one metric as the files keep them, each with its timestamp."""
        badness: dict[str, int] = {}
        if self._workers.get(family.name) == "worst":
            badness = {
                sample.labels["database"]: len(STATES) - STATES.index(sample.labels["state"])
                for sample in family.samples
                if sample.value
            }
        cumulated = 0.0
        for name, labels, value, *_ in family.samples:
            number = value
            if family.type == "histogram":
                # The files hold each bucket by itself, and no count, which is their sum.
                if name.endswith("_count"):
                    continue
                if name.endswith("_bucket"):
                    number, cumulated = value - cumulated, value
                    if labels["le"] == "+Inf":
                        cumulated = 0.0
            yield (
                _Key(
                    family.type,
                    family.name,
                    name,
                    tuple(labels),
                    tuple(labels.values()),
                    family.documentation,
                ),
                number,
                float(badness.get(labels.get("database", ""), 0)),
            )

    def _value(self, key: _Key) -> Any:
        value = self._values.get(key)
        if value is None:
            mode = _MODES[self._workers[key.metric]] if key.kind == "gauge" else ""
            _make_file(f"gauge_{mode}" if mode else key.kind)
            with _using:
                value = self._values[key] = values.ValueClass(*key, multiprocess_mode=mode)
        return value

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            with suppress(OSError):  # a full disk: the rest is written when there is room
                self.write()
            pause.wait(INTERVAL)

    def forget(self) -> None:
        """Begin with no files in a child process, which counts from zero into its own."""
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._thread = None
        self._written = {}


def _make_file(prefix: str) -> None:
    """Make one file of this process, unless it exists.

    prometheus_client makes it empty and then extends it. A scrape in between fails, and a full disk
    ends the process by a signal.
    """
    path = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / f"{prefix}_{os.getpid()}.db"
    if path.exists():
        return
    new = path.with_suffix(".new")
    new.write_bytes(bytes(_FILE_SIZE))
    with suppress(FileExistsError):  # the application's own metrics were first
        os.link(new, path)
    new.unlink()


def before_fork() -> None:
    """Let a fork come between two uses of prometheus_client's files."""
    _using.acquire()


def after_fork() -> None:
    """Let the files be used again, in both processes."""
    _using.release()
