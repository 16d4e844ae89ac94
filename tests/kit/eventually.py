"""Wait for an outcome instead of sleeping for a guess."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


def eventually(predicate: Callable[[], T], timeout: float = 5.0, message: str = "") -> T:
    """Call `predicate` until it returns something true, and return that.

    Args:
        predicate: Looked at again and again; an exception of it is not caught.
        timeout: Seconds after which the test fails.
        message: The awaited condition, for the failure; by default the name of the predicate.

    Raises:
        AssertionError: It was still false at the end; says what it returned last.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_failure(predicate, timeout, message, value))
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


async def aeventually(
    predicate: Callable[[], T | Awaitable[T]], timeout: float = 5.0, message: str = ""
) -> T:
    """Do as `eventually` does while the event loop runs on; the predicate may be a coroutine function."""
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return cast("T", value)
        if time.monotonic() > deadline:
            raise AssertionError(_failure(predicate, timeout, message, value))
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _failure(predicate: Callable[[], object], timeout: float, message: str, value: object) -> str:
    what = message or getattr(predicate, "__qualname__", repr(predicate))
    return f"not within {timeout:g} s: {what}; at last {value!r}"
