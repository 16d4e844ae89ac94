"""Stranded connections: those of event loops that ended before they had closed them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from pgmonkey.pool.estate import Estate

#: By their identity, what loops were told to close. Adding and taking are atomic, so no lock: an
#: order may be given by the garbage collector, in any thread and at any moment.
_orders: Final[dict[int, Estate]] = {}
#: What a child process got from its parent: the connections are not its own to close.
_inherited: Final[list[Estate]] = []


def close_soon(estate: Estate, close: Callable[[], object]) -> None:
    """Let a loop close its connections at its next turn; from any thread.

    Args:
        estate: What there is to close.
        close: Called in the loop; what it begins may end with the loop.
    """
    _orders[id(estate)] = estate
    running = estate.loop()
    try:
        if running is not None:
            running.call_soon_threadsafe(close)
    except RuntimeError:  # it is closed
        close_stranded()


def close_stranded() -> None:
    """Close what loops that have ended did not close; from any thread."""
    for key, estate in list(_orders.items()):
        if estate.is_over():
            if _orders.pop(key, None) is not None:
                estate.abandon()
        elif estate.is_empty():
            _orders.pop(key, None)


def _after_fork() -> None:
    _inherited.extend(_orders.values())
    _orders.clear()


os.register_at_fork(after_in_child=_after_fork)
