"""A table: rows of text in aligned columns, for terminals."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with their columns aligned, two spaces apart; the last column is not padded.

    Args:
        rows: Each with the same number of columns, one line of text each.

    Example:
        >>> print(table([("NAME", "TYPE"), ("orders", "pool")]))
        NAME    TYPE
        orders  pool
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
