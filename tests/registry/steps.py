"""Block, fail or interrupt a reload between its steps.

A reload of a database prepares every handle, puts the version in force, and rotates every handle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, Self, get_args

Point = Literal["prepared", "adopted", "rotated"]

#: After a handle has connected with the new version, before it replaces its first connection, and
#: after it has replaced the idle ones.
POINTS: Final = get_args(Point)


@contextmanager
def acting(handle: Any, point: Point, action: Callable[[], object]) -> Iterator[None]:
    """Do something in every reload that comes to this point, in its thread.

    Args:
        handle: The handle that is reloaded.
        point: The point.
        action: What to do; it may block or raise.
    """
    prepare, rotate = handle.prepare, handle.rotate

    def prepare_and_act(version: Any) -> Any:
        prepared = prepare(version)
        try:
            action()
        except BaseException:
            handle.discard(prepared)
            raise
        return prepared

    def act_and_rotate(prepared: Any) -> None:
        try:
            action()
        except BaseException:
            handle.discard(prepared)
            raise
        rotate(prepared)

    def rotate_and_act(prepared: Any) -> None:
        rotate(prepared)
        action()

    if point == "prepared":
        handle.prepare = prepare_and_act
    else:
        handle.rotate = act_and_rotate if point == "adopted" else rotate_and_act
    try:
        yield
    finally:
        for name in ("prepare", "rotate"):
            vars(handle).pop(name, None)


class Pause:
    """Let every reload of a handle stand still at a point, until the block ends.

    Args:
        handle: The handle.
        point: The point.

    Example:
        >>> with Pause(handle, "prepared") as pause:
        ...     reloading = threading.Thread(target=registry.reload)
        ...     reloading.start()
        ...     pause.wait()
    """

    def __init__(self, handle: Any, point: Point) -> None:
        self._reached, self._go_on = threading.Event(), threading.Event()
        self._acting = acting(handle, point, self._stand_still)

    def _stand_still(self) -> None:
        self._reached.set()
        assert self._go_on.wait(30)

    def wait(self) -> None:
        """Wait until a reload stands still."""
        assert self._reached.wait(10)

    def go_on(self) -> None:
        """Let it go on, and later ones pass."""
        self._go_on.set()

    def __enter__(self) -> Self:
        self._acting.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        self._acting.__exit__(None, None, None)
