"""Stranded connections: an event loop was told to close them, and ended before it came to it."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

from pgmonkey.gate import Gate


class _Order(NamedTuple):
    """Be what a loop was told: to close what has passed this gate."""

    loop: weakref.ref[asyncio.AbstractEventLoop]
    gate: Gate


#: By their identity, the orders that no loop has come to yet. Adding and taking are atomic, so no
#: lock: an order may be given by the garbage collector, in any thread and at any moment.
_orders: Final[dict[int, _Order]] = {}
#: What a child process got from its parent: the connections are not its own to close.
_inherited: Final[list[_Order]] = []


def close_soon(
    loop: weakref.ref[asyncio.AbstractEventLoop], gate: Gate, close: Callable[[], object]
) -> None:
    """Let a loop close its connections at its next turn; from any thread.

    Args:
        loop: The loop.
        gate: What its connections have passed.
        close: Called in the loop.
    """
    order = _Order(loop, gate)

    def turn() -> None:
        _orders.pop(id(order), None)
        close()

    _orders[id(order)] = order
    running = loop()
    try:
        if running is not None:
            running.call_soon_threadsafe(turn)
    except RuntimeError:  # it is closed
        close_stranded()


def close_stranded() -> None:
    """Close what loops that have ended never came to; from any thread."""
    for key, order in list(_orders.items()):
        running = order.loop()
        if (running is None or running.is_closed()) and _orders.pop(key, None) is not None:
            order.gate.abandon()


def _after_fork() -> None:
    _inherited.extend(_orders.values())
    _orders.clear()


os.register_at_fork(after_in_child=_after_fork)
