"""Timings: count, sum and histogram of durations."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import inf
from typing import Final

#: Upper bounds of the histograms' buckets, in seconds: those that OpenTelemetry advises for databases.
BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Durations:
    """Hold the durations of one kind that were measured so far.

    Attributes:
        count: How many.
        sum: Their sum, in seconds.
        buckets: How many fell into each bucket of the histogram; the last one has no upper bound.
    """

    count: int
    sum: float
    buckets: tuple[int, ...]

    def __add__(self, other: Durations) -> Durations:
        """Return both together."""
        return Durations(
            self.count + other.count,
            self.sum + other.sum,
            tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True)),
        )


class Timings:
    """Add up durations. One thread at a time records, or its owner holds a lock."""

    __slots__ = ("_buckets", "_count", "_sum")

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._buckets = [0] * (len(BUCKETS) + 1)

    def record(self, *durations: float) -> None:
        """Record durations; many at once cost a fraction of what they cost one by one."""
        self._count += len(durations)
        self._sum += sum(durations)
        ordered = sorted(durations)
        before = 0
        for bucket, bound in enumerate((*BUCKETS, inf)):
            upto = bisect_right(ordered, bound)
            self._buckets[bucket] += upto - before
            before = upto

    def read(self) -> Durations:
        """Return all durations recorded so far."""
        return Durations(self._count, self._sum, tuple(self._buckets))
