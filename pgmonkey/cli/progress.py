"""A line on a terminal that says how far a copy is."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Final, Self

_EVERY: Final = 0.1  # seconds


class Progress:
    """Show rows and bytes on standard error while a block runs, if that is a terminal.

    Args:
        total: How many bytes there will be; `None` if that is not known.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._rows = self._bytes = 0
        self._shown = sys.stderr.isatty()
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._shown:
            self._write("")

    def add(self, *, rows: int = 0, octets: int = 0) -> None:
        """Count what was copied since the last call; it costs nothing but the sums in between."""
        self._rows += rows
        self._bytes += octets
        if self._shown and (now := time.monotonic()) - self._last >= _EVERY:
            self._last = now
            self._write(line(self._rows, self._bytes, self._total, now - self._began))

    def _write(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r{text[:width]:{width}}" if text else f"\r{'':{width}}\r")
        sys.stderr.flush()


def line(rows: int, octets: int, total: int | None, seconds: float) -> str:
    """Return how far a copy is.

    Example:
        >>> line(120_000, 25_000_000, 100_000_000, 0.5)
        '[#####               ]  25 %  120,000 rows  25.0 of 100.0 MB  50.0 MB/s'
        >>> line(120_000, 25_000_000, None, 0.5)
        '120,000 rows  25.0 MB  50.0 MB/s'
    """
    speed = f"{octets / 1e6 / max(seconds, 1e-9):.1f} MB/s"
    if not total:
        return f"{rows:,} rows  {octets / 1e6:.1f} MB  {speed}"
    share = min(octets / total, 1.0)
    bar = f"[{'#' * int(share * 20):20}]"
    amount = f"{octets / 1e6:.1f} of {total / 1e6:.1f} MB"
    return f"{bar} {share * 100:3.0f} %  {rows:,} rows  {amount}  {speed}"
