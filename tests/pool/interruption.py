"""Raise an exception at one chosen line of a checkout, as a signal handler does."""

from __future__ import annotations

import asyncio
import gc
import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psycopg_pool

import pgmonkey

T = TypeVar("T")

_OURS = str(Path(pgmonkey.__file__).parent / "pool")
#: The end of a `with`, a `try`, and the first line of a `finally` that releases a lock.
_SKIPPED = ("with ", "async with ", "try:", "self._lock.release()")
_THEIRS = str(Path(psycopg_pool.__file__).parent)


class SoftTimeLimit(Exception):
    """An interrupt that is an `Exception`, such as Celery's SoftTimeLimitExceeded."""


class Interruption:
    """Raise at one line of a block, counted from its beginning; only in this thread and task.

    Lines count that are in `pgmonkey/pool`, in psycopg_pool, and in the file of the test, so that an
    interrupt also comes between the body of its `with` and `__exit__`. Elsewhere, lines are left out
    at which a signal does not come, because nothing is called between them and the line before.

    Args:
        number: The line; 1 is the first.
        error: What is raised there.
        file: The file of the test.
        everywhere: Whether the lines of psycopg_pool count, too.
    """

    def __init__(
        self, number: int, error: type[BaseException], file: str, *, everywhere: bool = True
    ) -> None:
        self._left = number
        self._error = error
        self._files = (_OURS, _THEIRS, file) if everywhere else (_OURS, file)
        #: Where it was raised; empty if the block has fewer lines.
        self.at = ""

    def __enter__(self) -> None:
        gc.disable()  # else the garbage of others may be collected inside of the block
        self._task = _current_task()
        self._trace_before = sys.gettrace()
        self._hook_before = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        sys.settrace(self._trace)

    def __exit__(self, *_exc_info: object) -> None:
        sys.settrace(self._trace_before)
        sys.unraisablehook = self._hook_before
        gc.enable()

    def _unraisable(self, unraisable: Any) -> None:
        # Python drops what is raised in a destructor.
        if not isinstance(unraisable.exc_value, self._error):
            self._hook_before(unraisable)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._files):
            return None
        if (
            event == "line"
            and not self.at
            and _current_task() is self._task
            and not (
                frame.f_code.co_filename != self._files[-1]
                and _is_skipped(frame.f_code.co_filename, frame.f_lineno)
            )
        ):
            self._left -= 1
            if self._left == 0:
                path = Path(frame.f_code.co_filename)
                self.at = f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
                self.interrupt()
        return self._trace

    def interrupt(self) -> None:
        """Do what the signal handler does."""
        raise self._error


@contextmanager
def at_each_line(file: str, act: Callable[[FrameType], object]) -> Iterator[None]:
    """Do something before each line that this thread runs of a file.

    Args:
        file: The file.
        act: Called with the frame; its own lines do not count.
    """

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename != file:
            return None
        if event == "line":
            act(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def in_a_thread(work: Callable[[], T]) -> T:
    """Run something in a thread of its own, and return what it returns.

    Python may keep an exception whose handler was interrupted for the rest of the life of a thread:
    as the context of all that is raised there later, in other tests, too. A thread that hangs is left
    behind when the test has its timeout.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


@cache
def _is_skipped(path: str, number: int) -> bool:
    line = linecache.getline(path, number).lstrip()
    before = linecache.getline(path, number - 1).lstrip()
    # The thread would keep the exception that was caught for the rest of its life.
    caught = before.startswith("except ") and line.startswith("return")
    return caught or line.startswith(_SKIPPED)


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return None
