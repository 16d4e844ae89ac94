"""Let a database lead somewhere else for a block, or roll back all that its blocks do: for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from pgmonkey.errors import OverrideError
from pgmonkey.pool._async.waiting import complete_in, is_running_here
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from pgmonkey.config.overrides import Overrides
    from pgmonkey.pool.handle import Closing, Database


class Override:
    """Override a database from entering `with` or `async with` to leaving it.

    What `Registry.override` and `PGConnectionManager.override` return. It gives the handle. It may
    be entered again after it was left.

    Args:
        name: The name of the database.
        given: The settings that take the place of those of the file.
        rollback: Whether all blocks share a transaction that is rolled back.
        begin: Puts it in force, and returns what closes the connections that there are.
        end: The reverse.
        handle: Returns what the block gets.
    """

    def __init__(
        self,
        name: str,
        given: Overrides,
        *,
        rollback: bool,
        begin: Callable[[Override], Sequence[Closing]],
        end: Callable[[Override], Sequence[Closing]],
        handle: Callable[[], Database],
    ) -> None:
        self.name = name
        self.given = given
        self.rollback = rollback
        self._begin = begin
        self._end = end
        self._handle = handle
        # Guards whether it is entered.
        self._entered = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}: {', '.join(self.shown) or 'nothing'}>"

    @property
    def shown(self) -> tuple[str, ...]:
        """Return what is overridden, without values."""
        return (*self.given.names, *(["rollback"] if self.rollback else []))

    def __enter__(self) -> Database:
        handle, closings = self._enter()
        complete(closings)
        return handle

    async def __aenter__(self) -> Database:
        handle, closings = self._enter()
        await complete_async(closings)
        return handle

    def __exit__(self, *exc_info: object) -> None:
        closings, left = self._leave()
        complete(closings)
        self._report(left, exc_info)

    async def __aexit__(self, *exc_info: object) -> None:
        closings, left = self._leave()
        await complete_async(closings)
        self._report(left, exc_info)

    def _enter(self) -> tuple[Database, Sequence[Closing]]:
        handle = self._handle()
        if not self._entered.acquire(blocking=False):
            raise RuntimeError(f"{self!r} is entered already; make another one")
        try:
            closings = self._begin(self)
        except BaseException:
            self._entered.release()
            raise
        self._emit("database.overridden")
        return handle, closings

    def _leave(self) -> tuple[Sequence[Closing], list[str]]:
        closings = self._end(self)
        self._entered.release()
        left = [place for one in closings for place in one.open_blocks]
        self._emit("database.override_ended")
        return closings, left

    def _emit(self, name: str) -> None:
        events.emit(name, database=self.name, overridden=list(self.shown))

    def _report(self, left: list[str], exc_info: tuple[object, ...]) -> None:
        """Raise an error for blocks that are still open, unless another error is on its way."""
        if left and exc_info[0] is None:
            raise OverrideError(
                f"{self.name}: the override ended while a block was open, begun at"
                f" {' and '.join(left)}; it was rolled back"
            )


def complete(closings: Sequence[Closing]) -> None:
    """Close connections, and wait for that; not in the running loop, which does it soon."""
    with ExitStack() as stack:  # an interrupt of one is raised after the others have begun
        for one in closings:
            stack.callback(partial(_complete, one))


async def complete_async(closings: Sequence[Closing]) -> None:
    """Close connections, and wait for that."""
    here: list[Any] = [one for one in closings if one.loop and is_running_here(one.loop)]
    complete([one for one in closings if one not in here])
    for one in here:
        await one.run()


def _complete(closing: Closing) -> None:
    if closing.loop is None:
        closing.run()
    else:
        complete_in(closing.loop, closing.thread, closing.run)
