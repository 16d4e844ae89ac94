"""Connections and tasks of one handle in one event loop, and how they end.

A loop may be closed at any moment. What it had is closed by the next look at any handle, or when a
registry or manager is closed.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar

from pgmonkey.pool import fault_points
from pgmonkey.pool.connection import AsyncPool, AsyncPooledConnection
from pgmonkey.pool.generation import Generation
from pgmonkey.pool.limits import Gate

T = TypeVar("T")
P = ParamSpec("P")


class _Later(Coroutine[Any, Any, T]):
    """A coroutine that is made at its first step.

    Another thread may ask a loop for work just before the loop ends: then a task is made that
    never runs. Python would warn of a coroutine that was never awaited.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]], name: str) -> None:
        self._make = make
        self._made: Coroutine[Any, Any, T] | None = None
        self.__qualname__ = name  # for debuggers

    # The attributes of a coroutine that `inspect` documents.

    @property
    def cr_frame(self) -> FrameType | None:
        return None if self._made is None else self._made.cr_frame  # type: ignore[attr-defined]  # `make` is an `async def`

    @property
    def cr_await(self) -> Any:
        return None if self._made is None else self._made.cr_await  # type: ignore[attr-defined]  # as above

    def send(self, value: Any, /) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made.send(value)

    def throw(self, *error: Any) -> Any:
        if self._made is None:
            raise error[0]
        return self._made.throw(*error)

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._make().__await__()


def loop_task(
    work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> asyncio.Task[T]:
    """Begin a task in the running loop, without a warning if the loop ends before it has run.

    Args:
        work: The coroutine function; it may never run.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    later = _Later(partial(work, *args, **kwargs), work.__qualname__)
    task = asyncio.get_running_loop().create_task(later)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does to its own
    return task


#: How often to close the coroutine of a task that goes on after it was closed.
_MOST_ENDS: Final = 3


class LoopResources:
    """The connections and tasks of a handle in one event loop.

    Args:
        loop: The loop.
        gate: The limit that counts its connections.
        generations: The generations whose pools are open.
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
        #: The tasks that close connections, and those of the pools.
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
        """Close all of it at once, after the end of the loop; from any thread."""
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
    """End a task of a closed loop, and release what it holds."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does to its own
    if task.done():
        return
    coroutine: Any = task.get_coro()
    inner = _task_of_wait_for(coroutine)
    for _ in range(_MOST_ENDS):
        with suppress(RuntimeError):  # it used its loop, which is closed
            coroutine.close()
            break
    if inner is not None:
        _end(inner)


def _task_of_wait_for(coroutine: Any) -> asyncio.Task[Any] | None:
    """Return the task in which `asyncio.wait_for` runs what this coroutine waits for.

    Before Python 3.12 `wait_for` makes such a task, which cannot be found otherwise. psycopg and
    psycopg_pool wait with it.
    """
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        if frame.f_code is asyncio.wait_for.__code__:
            inner = frame.f_locals["fut"]
            return inner if isinstance(inner, asyncio.Task) else None
        coroutine = coroutine.cr_await
    return None


#: What loops were asked to close, by identity. Adding and taking are atomic, so there is no lock:
#: the garbage collector may add one, in any thread and at any moment.
_orders: Final[dict[int, LoopResources]] = {}
#: In a forked child: the connections of the parent, which the child must not close.
_inherited: Final[list[LoopResources]] = []


def close_soon(resources: LoopResources, close: Callable[[], object]) -> None:
    """Let a loop close its connections at its next turn; from any thread.

    Args:
        resources: The connections and tasks to close.
        close: Called in the loop; what it begins may end with the loop.
    """
    _orders[id(resources)] = resources
    running = resources.loop()
    try:
        if running is not None:
            running.call_soon_threadsafe(close)
    except RuntimeError:  # it is closed
        close_stranded()


def close_stranded() -> None:
    """Close what loops that have ended did not close; from any thread."""
    for key, resources in list(_orders.items()):
        if resources.is_over():
            if _orders.pop(key, None) is not None:
                resources.abandon()
        elif resources.is_empty():
            _orders.pop(key, None)


def hang_up(generation: Generation[AsyncPool]) -> None:
    """Retire a generation and close what is idle, in one step.

    psycopg_pool waits for its workers first. In a loop that is ending it would never close the
    connections.
    """
    if not generation.retired:
        generation.retire()
    idle = generation.pool._pool
    while idle:
        idle.popleft().hang_up()


async def close_generation(generation: Generation[AsyncPool]) -> None:
    """Close the pool of a generation; what is out is closed when it comes back."""
    hang_up(generation)
    try:
        await fault_points.reach_async("before_close")
    finally:
        # Not waiting for its worker, which may be stuck in a connect: clients that wait for this
        # pool are told only when `close` returns.
        await generation.pool.close(timeout=0)
    while seed := generation.dialer.uproot():  # the pool never got to take it
        assert isinstance(seed, AsyncPooledConnection)
        await seed.close()


def close_resources(resources: LoopResources) -> None:
    """Close what a dropped handle has left open, on the loop that it belongs to."""
    if resources.is_empty():
        return

    async def close(left: list[Generation[AsyncPool]]) -> None:
        for generation in left:
            await close_generation(generation)
            resources.generations.discard(generation)

    def begin() -> None:
        for task in resources.connecting.copy():
            task.cancel()
        left = list(resources.generations)
        for generation in left:
            hang_up(generation)
        resources.keep(loop_task(close, left))

    close_soon(resources, begin)


def _after_fork() -> None:
    _inherited.extend(_orders.values())
    _orders.clear()


os.register_at_fork(after_in_child=_after_fork)
