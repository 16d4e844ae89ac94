"""A comparison: two ways of doing one thing, measured in turn, as a ratio beside a bar."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True, slots=True)
class Result:
    """Hold the ratio of one comparison: median and quartiles over its rounds.

    Args:
        what: What was measured, ours first.
        ratio: Median of ours to the alternative, round by round.
        quartiles: The first and the third quartile.
        bar: The highest ratio that meets the bar, or `None` where there is no bar.
        base: Median of the alternative, in seconds for one operation.
    """

    what: str
    ratio: float
    quartiles: tuple[float, float]
    bar: float | None
    base: float

    @property
    def verdict(self) -> str:
        """Return `met`, `missed`, or nothing where there is no bar."""
        if self.bar is None:
            return ""
        return "met" if self.ratio <= self.bar else "missed"


def compare(
    what: str,
    ours: Callable[[], object],
    alternative: Callable[[], object],
    *,
    bar: float | None = None,
    rounds: int = 15,
    operations: int = 1,
) -> Result:
    """Measure two callables in turn, in random order, and return the ratio.

    Args:
        what: What is measured.
        ours: One round of ours.
        alternative: One round of the other.
        bar: The highest ratio that is good enough.
        rounds: How often each is run, after one warm-up.
        operations: How many operations one round does.
    """
    ours()
    alternative()
    ratios, bases = [], []
    for _ in range(rounds):
        seconds = {}
        for act in random.sample((ours, alternative), 2):
            began = perf_counter()
            act()
            seconds[act] = perf_counter() - began
        ratios.append(seconds[ours] / seconds[alternative])
        bases.append(seconds[alternative] / operations)
    first, median, third = statistics.quantiles(ratios, n=4)
    return Result(what, median, (first, third), bar, statistics.median(bases))


def table(results: list[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| what | ratio | quartiles | bar | | alternative, one operation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one.what} | {one.ratio:.3g} | {one.quartiles[0]:.3g} to {one.quartiles[1]:.3g}"
        f" | {'' if one.bar is None else one.bar} | {one.verdict} | {_seconds(one.base)} |"
        for one in results
    ]
    return "\n".join(lines)


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
