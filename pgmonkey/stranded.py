"""Stranded connections: those of event loops that ended before they had closed them."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from pgmonkey.gate import Gate
from pgmonkey.generation import AsyncPool, Generation

#: How often a task that takes its end for a failure of its work is ended again.
_MOST_ENDS: Final = 3


class Estate:
    """Be what a handle has in one event loop.

    Args:
        loop: The loop.
        gate: What its connections have passed.
        generations: Those whose pools are open.
    """

    __slots__ = ("connecting", "gate", "generations", "loop", "tasks")

    def __init__(
        self,
        loop: weakref.ref[asyncio.AbstractEventLoop],
        gate: Gate,
        generations: set[Generation[AsyncPool]],
    ) -> None:
        self.loop = loop
        self.gate = gate
        self.generations = generations
        #: The tasks that make connections, which may be cancelled.
        self.connecting: set[asyncio.Task[Any]] = set()
        #: The others: those that close, and those of the pools.
        self.tasks: set[asyncio.Task[Any]] = set()

    def keep(self, task: asyncio.Task[Any], *, connects: bool = False) -> None:
        """Hold a task until it is done: the loop itself holds tasks only weakly.

        Args:
            task: The task.
            connects: Whether it makes connections.
        """
        held = self.connecting if connects else self.tasks
        held.add(task)
        task.add_done_callback(held.discard)

    def is_over(self) -> bool:
        """Tell whether the loop is closed, so that nothing of this can be used any more."""
        loop = self.loop()
        return loop is None or loop.is_closed()

    def is_empty(self) -> bool:
        """Tell whether there is nothing to close."""
        return not (self.generations or self.connecting or self.tasks or self.gate.count)

    def abandon(self) -> None:
        """Let go of all of it at once, after the end of the loop; from any thread."""
        for generation in self.generations.copy():
            generation.dialer.stop()
            generation.pool._closed = True  # what comes back now is closed
        for held in (self.connecting, self.tasks):
            while held:
                with suppress(KeyError):  # another thread took the last one
                    _end(held.pop())
        self.gate.abandon()
        self.generations.clear()


def _end(task: asyncio.Task[Any]) -> None:
    """End a task of a closed loop, and with it what it has half made and what it keeps."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does to its own
    if task.done():
        return
    coroutine: Any = task.get_coro()
    for _ in range(_MOST_ENDS):
        with suppress(RuntimeError):  # it wanted something of its loop
            coroutine.close()
            return


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
