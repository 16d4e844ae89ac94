"""Usage: what a handle has counted, over all its generations."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Final

from pgmonkey.timings import Durations, Timings

#: How many records may be pending before a checkout that ends folds them.
FOLD_AT: Final = 512


class Usage:
    """Count the checkouts of one handle. Counts belong to the handle: a swap sets none back.

    A checkout leaves one record, by one append to a deque, which the interpreter makes atomic:
    it pays some tens of nanoseconds and never waits. The records are folded into sums when
    somebody reads, or by the checkout that finds too many of them.
    """

    __slots__ = (
        "_connects",
        "_lock",
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
        #: How long each checkout waited for its connection, and how long it kept it.
        self.records: deque[tuple[float, float]] = deque()
        self._waits = Timings()
        self._uses = Timings()
        self._connects = Timings()
        # Guards the three timings. A checkout that finds it taken does not wait for it.
        self._lock = threading.Lock()
        #: Checkouts that got no connection, by reason: timeout, too_many, other.
        self.errors: Counter[str] = Counter()
        #: Connections that were dropped, by reason: dead, lifetime, check, standby.
        self.evicted: Counter[str] = Counter()
        #: Checkouts that had to queue, in generations that are gone.
        self.queued = 0
        #: Connects: how many were tried, and why some failed.
        self.attempts = 0
        self.failures: Counter[str] = Counter()
        #: Checkouts held longer than `leak_detection`.
        self.leaks = 0

    @property
    def requests(self) -> int:
        """Return how many checkouts have ended, or ended their wait in vain."""
        return self.waits.count + sum(self.errors.values())

    @property
    def waits(self) -> Durations:
        """Return how long the checkouts that have ended had waited for their connection."""
        with self._lock:
            self._fold()
            return self._waits.read()

    @property
    def uses(self) -> Durations:
        """Return how long the checkouts that have ended had kept their connection."""
        with self._lock:
            self._fold()
            return self._uses.read()

    @property
    def connects(self) -> Durations:
        """Return how long the connects that succeeded took."""
        with self._lock:
            return self._connects.read()

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
        for _ in range(len(records)):  # bounded: others go on appending
            wait, use = records.popleft()
            self._waits.record(wait)
            self._uses.record(use)
