"""Durations: parse them as people write them, and format them for people."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_WRITTEN: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *([A-Za-z]*)")
_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST: Final = 3650 * 86400.0  # ten years: a longer one has the wrong unit

EXPECTED: Final = (
    "expected a duration such as 500ms, 30s, 5min, 2h or 1d (a bare number is seconds)"
)


class DurationError(ValueError):
    """Report a text that is no duration. The message never holds the text."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@lru_cache(maxsize=1024)  # a thousand databases mostly have the same few
def parse_duration(text: str) -> float:
    """Return a duration in seconds: a number and `ms`, `s`, `min`, `h` or `d`; by default seconds.

    Raises:
        DurationError: It is no duration, its unit is `m` (minutes? months? milliseconds?), or it
            is longer than ten years.

    Example:
        >>> parse_duration("500ms"), parse_duration("2min"), parse_duration("1.5")
        (0.5, 120.0, 1.5)
    """
    match = _WRITTEN.fullmatch(text.strip(" "))
    if match is None:
        raise DurationError(EXPECTED)
    number, unit = match.groups()
    if unit == "m":
        raise DurationError(
            'the unit "m" is ambiguous', 'write "min" for minutes, "ms" for milliseconds'
        )
    factor = _SECONDS.get(unit)
    if factor is None:
        raise DurationError(EXPECTED)
    seconds = float(number) * factor
    if seconds > _LONGEST:
        raise DurationError("the duration is longer than ten years")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a duration for people, in its largest unit.

    Example:
        >>> format_duration(0.0042), format_duration(12), format_duration(300)
        ('4.2 ms', '12 s', '5 min')
    """
    if 0 < seconds < 5e-6:
        return "under 0.01 ms"
    if seconds < 1:
        return f"{round(seconds * 1000, 2 if seconds < 0.01 else None):g} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < most:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
