"""Timings and stats: durations recorded from any thread add up."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmonkey.pool.stats import FOLD_AT, Stats
from pgmonkey.telemetry.timings import BUCKETS, Timings


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=500))
def test_counts_sums_and_buckets_are_those_of_what_was_recorded(seconds: list[float]) -> None:
    """Whatever is recorded, count, sum and buckets are exactly its own."""
    timings = Timings()
    half = len(seconds) // 2
    for one in seconds[:half]:
        timings.record(one)
    timings.record(*seconds[half:])
    durations = timings.read()

    bounds = (*BUCKETS, float("inf"))
    lower = (-1.0, *BUCKETS)
    assert durations.count == len(seconds)
    assert durations.sum == pytest.approx(sum(seconds))
    assert durations.buckets == tuple(
        sum(low < one <= high for one in seconds) for low, high in zip(lower, bounds, strict=True)
    )


def test_threads_lose_no_record_and_few_are_pending() -> None:
    """Eight threads that record while another one reads lose nothing, and the rest stays short."""
    stats = Stats()

    def record() -> None:
        for _ in range(5000):
            stats.records.extend((0.001, 0.002))
            if len(stats.records) >= FOLD_AT:
                stats.fold()

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    seen = [stats.durations()[0].count for _ in range(50)]
    for thread in threads:
        thread.join()
    pending = len(stats.records)

    assert seen == sorted(seen)
    assert pending < FOLD_AT + 2 * 8
    waits, uses, _ = stats.durations()
    assert waits.count == uses.count == 40_000
    assert uses.sum == pytest.approx(80)
