"""An abandonment: a checkout that nobody can end any more, for nobody but us knows of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Final


def abandoned(checkouts: set[Any]) -> list[Any]:
    """Return the checkouts that hold a connection and that nothing else refers to.

    The interpreter may raise an interrupt between the last line of a block and the first one of
    its `__exit__`: nothing that Python code does can catch that, and the checkout would hold its
    connection for ever. But as long as a block can end, it refers to its checkout. So one that is
    in our set alone has no block any more; and if nobody has its connection either, that may be
    taken back.

    Args:
        checkouts: Those of a generation.
    """
    if not _COUNTS_ARE_EXACT:
        return []
    return [one for one, *counts in _references(checkouts) if counts == _OURS]


def _references(checkouts: Iterable[Any]) -> list[tuple[Any, int, int]]:
    return [
        (one, sys.getrefcount(one), sys.getrefcount(one.connection))
        for one in set(checkouts)
        if one.connection is not None
    ]


class _Sample:
    """What is known to nobody else: what it is referred to by, differs from version to version."""

    def __init__(self) -> None:
        self.connection = object()


def _of_a_sample() -> list[int]:
    sample = {_Sample()}
    return list(_references(sample)[0][1:])


_OURS: Final = _of_a_sample()
#: Without the interpreter's lock a count is a guess.
_COUNTS_ARE_EXACT: Final = getattr(sys, "_is_gil_enabled", lambda: True)()
