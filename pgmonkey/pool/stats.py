"""The counters of a handle."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final, get_args

from pgmonkey.errors import Reason
from pgmonkey.telemetry.timings import Durations, Timings

#: How many durations may be pending before a checkout that ends folds them: two of each.
FOLD_AT: Final = 1024
# Every reason is there from the start: `+= 1` then never calls `Counter.__missing__`, a call in which
# another thread can take its turn and a count get lost.
_ERRORS: Final = dict.fromkeys(("timeout", "too_many", "other"), 0)
_EVICTED: Final = dict.fromkeys(
    ("dead", "lifetime", "check", "used", "unclean", "standby", "rotation", "full"), 0
)
_FAILURES: Final[dict[str, int]] = dict.fromkeys(get_args(Reason), 0)


class Stats:
    """Count the checkouts of one handle.

    A checkout leaves its two durations, by extending a list, which the interpreter makes
    atomic: it pays some tens of nanoseconds and never waits. They are folded into sums when
    somebody reads, or by the checkout that finds too many of them.
    """

    __slots__ = (
        "_connects",
        "_lock",
        "_requests_before",
        "_uses",
        "_waits",
        "attempts",
        "errors",
        "evicted",
        "failures",
        "leaks",
        "queued",
        "records",
    )

    def __init__(self) -> None:
        #: How long each checkout waited for its connection, and how long it kept it, in turn.
        self.records: list[float] = []
        self._waits = Timings()
        self._uses = Timings()
        self._connects = Timings()
        # Guards the three timings and the total. A checkout that finds it taken does not wait for it.
        self._lock = threading.Lock()
        #: Checkouts that got no connection, by reason: timeout, too_many, other.
        self.errors: Counter[str] = Counter(_ERRORS)
        #: Connections that were dropped, by reason: dead, lifetime, check, used, unclean,
        #: standby, rotation, full.
        self.evicted: Counter[str] = Counter(_EVICTED)
        #: Checkouts that had to queue.
        self.queued = 0
        #: Connects: how many were tried, and why some failed.
        self.attempts = 0
        self.failures: Counter[str] = Counter(_FAILURES)
        #: Checkouts held longer than `leak_detection`.
        self.leaks = 0
        self._requests_before = 0

    def total(self, requests: int) -> int:
        """Return this number of requests, or the one that was returned before if it was higher.

        It adds the checkouts that have ended to those in progress. One that is just ending is in
        neither for some microseconds. To Prometheus a counter that falls by one is a restart: it
        would count everything once more.
        """
        with self._lock:
            self._requests_before = max(self._requests_before, requests)
            return self._requests_before

    def durations(self) -> tuple[Durations, Durations, Durations]:
        """Return waits, uses and connects, all of the same moment."""
        with self._lock:
            self._fold()
            return self._waits.read(), self._uses.read(), self._connects.read()

    def record_connect(self, seconds: float) -> None:
        """Record a connect that succeeded."""
        with self._lock:
            self._connects.record(seconds)

    def fold(self) -> None:
        """Fold the records that are pending, unless another thread is at it."""
        if self._lock.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def _fold(self) -> None:
        records = self.records
        taken = records[: len(records)]
        del records[: len(taken)]  # others go on, and extend the rest
        self._waits.record(*taken[::2])
        self._uses.record(*taken[1::2])
