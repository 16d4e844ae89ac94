"""Files of prometheus_client's multi-process mode, from which one scrape answers for all workers.

Nothing in here raises: what cannot be written is not counted, and an event says so.

prometheus_client writes through mappings. Where a file has no room, because the disk is full, such a
write ends the process by a signal. So the room for each number is reserved in its file before
prometheus_client adds it; then the mapping has only pages that exist.
"""

from __future__ import annotations

import atexit
import errno
import json
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from prometheus_client import Metric, values

from pgmonkey.telemetry import events
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
#: The name in lower case is an older one, which prometheus_client still knows.
_VARIABLES: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
#: Bytes of a number in a file beside its key: its length, padding, the value and the timestamp.
_MOST_BESIDE_A_KEY: Final = 4 + 8 + 16

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
        #: The files of this process, and the process in which prometheus_client last used its own.
        self._files: set[Path] = set()
        self._pid = os.getpid()
        self._failing = False
        # Guards the five above. Never held by a checkout.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Guards the thread. Checkouts take it, so it is never held while anything is written.
        self._starting = threading.Lock()
        atexit.register(self.write)

    @staticmethod
    def wanted() -> bool:
        """Tell whether the mode was on when prometheus_client was imported."""
        return bool(values.ValueClass._multiprocess and _directory())

    def ensure_thread(self) -> None:
        """Start the thread that writes, unless it runs in this process."""
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="pgmonkey-metrics", daemon=True)
            with suppress(RuntimeError):  # no room for a thread: the next checkout tries again
                thread.start()
                self._thread = thread

    def write(self) -> None:
        """Write the numbers that have changed since the last time, as far as they can be written."""
        failure: Exception | None
        with self._lock:
            try:
                failure = self._write()
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not hurt the application
                failure = error
            first = failure is not None and not self._failing
            self._failing = failure is not None
        if first:
            events.emit("metrics.failed", directory=_directory(), error=_reason(failure))

    def _write(self) -> OSError | None:
        """Write what can be written: without room, the numbers that are in the files already.

        Returns:
            Why one could not be added.
        """
        failure: OSError | None = None
        now = {
            key: (number, timestamp)
            for family in self._collect()
            for key, number, timestamp in self._numbers(family)
        }
        if self._pid != os.getpid():
            self._take_over()
        for key, (number, timestamp) in now.items():
            before = self._written.get(key)
            if before == (number, timestamp):
                continue
            if key not in self._values:
                if failure is not None:  # it would fail again
                    continue
                try:
                    self._add(key)
                except OSError as error:
                    failure = error
                    continue
            value = self._values[key]
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
                with _using:
                    self._values[key].set(0.0)
            del self._written[key]
        for path in self._files:
            path.stat()  # prometheus_client goes on writing into a file that was deleted
        return failure

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

    def _add(self, key: _Key) -> None:
        """Let prometheus_client add a number to its file, once there is room for it."""
        mode = _MODES[self._workers[key.metric]] if key.kind == "gauge" else ""
        path = _path(f"gauge_{mode}" if mode else key.kind, os.getpid())
        labels = dict(zip(key.labels, key.values, strict=True))
        text = json.dumps(
            [key.metric, key.name, labels, key.help]
        )  # as prometheus_client writes it
        if path not in self._files:
            _make_file(path, mmap.PAGESIZE)
            self._files.add(path)
        _reserve(path, len(text) + _MOST_BESIDE_A_KEY)
        os.environ.setdefault(
            _VARIABLES[0], _directory()
        )  # prometheus_client would, with a warning
        with _using:
            self._values[key] = values.ValueClass(*key, multiprocess_mode=mode)

    def _take_over(self) -> None:
        """Make files that have room for all of the parent's numbers.

        At its first use in a child process prometheus_client adds them all to the child's files, those
        of the application too.
        """
        for kept in Path(_directory()).glob(f"*_{self._pid}.db"):
            path = _path(kept.name.removesuffix(f"_{self._pid}.db"), os.getpid())
            _make_file(path, kept.stat().st_size)
            self._files.add(path)
            _reserve(path, _used(kept) - _used(path))
        self._pid = os.getpid()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self.write()
            pause.wait(INTERVAL)

    def forget(self) -> None:
        """Begin with no files in a child process, which counts from zero into its own."""
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._thread = None
        self._written = {}
        self._files = set()
        self._failing = False


def _directory() -> str:
    """Return the directory that prometheus_client uses; empty if there is none."""
    return os.environ.get(_VARIABLES[0], os.environ.get(_VARIABLES[1], ""))


def _path(prefix: str, pid: int) -> Path:
    directory = _directory()
    if not directory:
        raise FileNotFoundError(errno.ENOENT, f"{_VARIABLES[0]} is not set any more")
    return Path(directory) / f"{prefix}_{pid}.db"


def _make_file(path: Path, size: int) -> None:
    """Make one file of this process, unless it exists.

    prometheus_client makes it empty and then extends it: a scrape in between fails.
    """
    if path.exists():
        return
    new = path.with_suffix(".new")
    try:
        new.write_bytes(b"")
        os.truncate(new, size)
        _reserve(new, 0)
        with suppress(FileExistsError):  # the application's own metrics were first
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    """Take the room for more bytes, one at least, from the disk; or raise an error."""
    used, size = _used(path), max(size, 1)
    descriptor = os.open(path, os.O_RDWR)
    try:
        length = os.fstat(descriptor).st_size
        while used + size > length:  # as prometheus_client does before it adds a number
            length *= 2
            os.ftruncate(descriptor, length)
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(descriptor, used, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # this file system reserves nothing
            raise
    finally:
        os.close(descriptor)


def _used(path: Path) -> int:
    """Return how many bytes of a file prometheus_client uses; the first four say it."""
    with path.open("rb", buffering=0) as file:
        return max(int.from_bytes(file.read(4), sys.byteorder), 8)


def _reason(failure: Exception | None) -> str:
    return getattr(failure, "strerror", None) or type(failure).__name__


def before_fork() -> None:
    """Let a fork come between two uses of prometheus_client's files."""
    _using.acquire()


def after_fork() -> None:
    """Let the files be used again, in both processes."""
    _using.release()
