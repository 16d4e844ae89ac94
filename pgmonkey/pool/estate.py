"""An estate: what a handle has in one event loop, to be closed when either of them ends."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import Any, Final

from pgmonkey.pool.connection import AsyncPool
from pgmonkey.pool.generation import Generation
from pgmonkey.pool.limits import Gate

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
        loop = self.loop()
        for generation in self.generations.copy():
            generation.dialer.stop()
            if loop is not None:
                of_pool = f"{generation.pool.name}-"
                self.tasks.update(
                    task for task in asyncio.all_tasks(loop) if task.get_name().startswith(of_pool)
                )
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
    inner = _task_of_wait_for(coroutine)
    for _ in range(_MOST_ENDS):
        with suppress(RuntimeError):  # it wanted something of its loop
            coroutine.close()
            break
    if inner is not None:
        _end(inner)


def _task_of_wait_for(coroutine: Any) -> asyncio.Task[Any] | None:
    """Return the task in which `asyncio.wait_for` runs what this coroutine waits for.

    Before Python 3.12 `wait_for` makes such a task, which nobody else can reach. psycopg and
    psycopg_pool wait with it.
    """
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        if frame.f_code is asyncio.wait_for.__code__:
            inner = frame.f_locals["fut"]
            return inner if isinstance(inner, asyncio.Task) else None
        coroutine = coroutine.cr_await
    return None
