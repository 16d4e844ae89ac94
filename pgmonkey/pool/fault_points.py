"""Fault points: the moments of a reload at which a test can block, fail or cancel it.

They lie on the way of a reload, never on that of a checkout, and cost one look at an empty
dictionary where no test has set anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, Literal

Point = Literal["after_probe", "before_swap", "after_swap", "before_close"]

#: What happens at each point; empty but in tests.
actions: Final[dict[Point, Callable[[], Any]]] = {}


def reach(point: Point) -> None:
    """Do what a test wants to happen here."""
    if actions and (action := actions.get(point)) is not None:
        action()


async def reach_async(point: Point) -> None:
    """Do what a test wants to happen here, on an event loop."""
    if actions and (action := actions.get(point)) is not None:
        result: Awaitable[None] | None = action()
        if isawaitable(result):
            await result
