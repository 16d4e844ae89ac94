"""A task of an event loop that may end before it comes to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import FrameType
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class _Later(Coroutine[Any, Any, T]):
    """Be a coroutine that is made with its first step.

    What another thread asks of a loop may come to it in its very last turn: then a task is made
    that never runs. It is nobody's mistake, but Python warns of a coroutine that was not begun.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]], name: str) -> None:
        self._make = make
        self._made: Coroutine[Any, Any, T] | None = None
        self.__qualname__ = name  # for who looks at tasks

    # What a coroutine shows of itself: see `inspect`.

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
    """Begin a task in the running loop, without a complaint if the loop ends before it has run.

    Args:
        work: What to do; all that must not be left undone was done before.
        args: What it is called with.
        kwargs: Likewise.
    """
    later = _Later(partial(work, *args, **kwargs), work.__qualname__)
    task = asyncio.get_running_loop().create_task(later)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does to its own
    return task
