"""A comparison: several ways of doing one thing, measured in turn, as ratios beside a bar."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

#: What a way returns that measures itself: its seconds, of another process for instance.
Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Result:
    """Hold one figure: a ratio of two ways, or a number with its unit.

    Args:
        what: What was measured, ours first.
        ratio: Median over the rounds.
        quartiles: The first and the third quartile.
        bar: The highest figure that meets the bar, or `None` where there is no bar.
        base: Median of the alternative, in seconds for one operation; 0 where there is none.
        unit: Of the figure; nothing for a ratio.
    """

    what: str
    ratio: float
    quartiles: tuple[float, float]
    bar: float | None
    base: float = 0.0
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Return `met`, `missed`, or nothing where there is no bar."""
        if self.bar is None:
            return ""
        return "met" if self.ratio <= self.bar else "missed"


def number(
    what: str, values: list[float] | float, unit: str, *, bar: float | None = None
) -> Result:
    """Return a figure that is no ratio: the median of its values."""
    several = values if isinstance(values, list) else [values]
    return Result(what, statistics.median(several), _quartiles(several), bar, 0.0, unit)


class Race:
    """Run ways in turn, in random order, round after round, and keep what each took.

    The machine is never quiet, and what disturbs it lasts longer than a round: so two ways are
    compared within each round, and the ratios of all rounds are what counts.

    Args:
        ways: One round of each, by name. A way that returns a `float` has measured itself.
        rounds: How many, after one that warms up.
        operations: How many operations one round of a way does.
        clock: `perf_counter`, or `thread_time` for what needs nothing but this thread.
    """

    def __init__(
        self,
        ways: Mapping[str, Way],
        *,
        rounds: int,
        operations: int = 1,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number_of_round in range(rounds + 1):
            for name in random.sample(list(ways), len(ways)):
                began = clock()
                measured = ways[name]()
                seconds = measured if isinstance(measured, float) else clock() - began
                if number_of_round:
                    self.seconds[name].append(seconds / operations)

    def ratio(self, ours: str, alternative: str) -> tuple[float, tuple[float, float]]:
        """Return the median of one to another, round by round, and the quartiles."""
        ratios = [a / b for a, b in zip(self.seconds[ours], self.seconds[alternative], strict=True)]
        return statistics.median(ratios), _quartiles(ratios)

    def result(self, what: str, ours: str, alternative: str, *, bar: float | None = None) -> Result:
        """Return one way to another, as a row of the table of bars."""
        median, quartiles = self.ratio(ours, alternative)
        base = statistics.median(self.seconds[alternative])
        return Result(what, median, quartiles, bar, base)

    def table(self, title: str, base: str) -> str:
        """Return all ways beside each other as a Markdown table."""
        lines = [
            f"\n{title}\n",
            "| way | median | ratio | quartiles |",
            "| --- | --- | --- | --- |",
        ]
        for name, seconds in self.seconds.items():
            median, (first, third) = self.ratio(name, base)
            lines.append(
                f"| {name} | {duration(statistics.median(seconds))} | {median:.3g}"
                f" | {first:.3g} to {third:.3g} |"
            )
        return "\n".join(lines)


def compare(
    what: str,
    ours: Way,
    alternative: Way,
    *,
    bar: float | None = None,
    rounds: int = 15,
    operations: int = 1,
    clock: Callable[[], float] = perf_counter,
) -> Result:
    """Measure two callables in turn, in random order, and return the ratio.

    Args:
        what: What is measured.
        ours: One round of ours.
        alternative: One round of the other.
        bar: The highest ratio that is good enough.
        rounds: How often each is run, after one warm-up.
        operations: How many operations one round does.
        clock: As in `Race`.
    """
    race = Race(
        {"ours": ours, "alternative": alternative},
        rounds=rounds,
        operations=operations,
        clock=clock,
    )
    return race.result(what, "ours", "alternative", bar=bar)


def table(results: list[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| what | figure | quartiles | bar | | alternative, one operation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one.what} | {one.ratio:.3g}{one.unit and f' {one.unit}'}"
        f" | {one.quartiles[0]:.3g} to {one.quartiles[1]:.3g}"
        f" | {'' if one.bar is None else f'{one.bar:.3g}'} | {one.verdict}"
        f" | {duration(one.base) if one.base else ''} |"
        for one in results
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a duration for people."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4)
    return first, third
