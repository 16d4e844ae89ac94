"""How async code waits: locks, pauses, sockets, background work. `_sync/waiting.py` is its twin."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeAlias, TypeVar

from psycopg import AsyncConnection as AsyncDriverConnection
from psycopg_pool import AsyncConnectionPool

__all__ = [
    "AsyncDriverConnection",
    "AsyncDriverPool",
    "Cancelled",
    "Lock",
    "Loop",
    "LoopStandsStillError",
    "Signal",
    "acquire",
    "aside",
    "call_all",
    "called",
    "cancel_again",
    "complete_in",
    "current_owner",
    "current_task",
    "end_tasks",
    "finish_in",
    "in_thread",
    "is_closed",
    "is_elsewhere",
    "is_running_here",
    "let_queue",
    "open_driver",
    "release_in",
    "running_loop",
    "sleep",
    "soon",
    "start",
    "start_in",
    "wait_readable",
]

T = TypeVar("T")
P = ParamSpec("P")

Cancelled = asyncio.CancelledError
Loop: TypeAlias = asyncio.AbstractEventLoop
Lock = asyncio.Lock
running_loop = asyncio.get_running_loop
current_task = asyncio.current_task
current_owner = asyncio.current_task
sleep = asyncio.sleep

#: Seconds after which a loop that has not turned is taken to stand still.
_TURN: Final = 1.0
#: How often to look whether a loop still runs, while waiting for a result from it.
_LOOK: Final = 0.5
#: How often to close the coroutine of a task that goes on after it was closed.
_MOST_ENDS: Final = 3

#: Our tasks and those of psycopg_pool: the loop itself holds tasks only weakly.
_tasks: Final[set[asyncio.Task[Any]]] = set()


ConnectionT = TypeVar("ConnectionT", bound=AsyncDriverConnection[Any])

if sys.version_info < (3, 12) or TYPE_CHECKING:

    class AsyncDriverPool(AsyncConnectionPool[ConnectionT]):
        """A psycopg_pool that drops no cancellation.

        It waits with `asyncio.wait_for`, which does so before Python 3.12 if a connection comes
        in the same turn of the loop.
        """

        async def getconn(self, timeout: float | None = None) -> ConnectionT:
            """Borrow a connection, unless the task is cancelled meanwhile."""
            task = asyncio.current_task()
            before = task.cancelling() if task else 0
            connection = await super().getconn(timeout)
            if task and task.cancelling() > before:
                await self.putconn(connection)
                raise asyncio.CancelledError
            return connection

else:
    AsyncDriverPool = AsyncConnectionPool


class LoopStandsStillError(Exception):
    """An event loop did not turn, so nothing can run in it now."""


class _Task(asyncio.Task[Any]):
    """A task that does not complain when its loop was closed under it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], **options: Any) -> None:
        super().__init__(coroutine, **options)
        _tasks.add(self)
        self.add_done_callback(_tasks.discard)

    def __del__(self) -> None:
        if not self.get_loop().is_closed():
            super().__del__()


async def called(function: Callable[[Any], object], connection: Any, seconds: float) -> bool:
    """Call a function of the application with a connection, and tell whether it ended in time.

    What it returns is waited for, if that is awaitable, and cancelled when the time is over.

    Args:
        function: The function.
        connection: Its argument.
        seconds: How long it may take.

    Raises:
        RuntimeError: something in it was cancelled, and not this task, which has other work.
    """
    result = function(connection)
    if not inspect.isawaitable(result):
        return True
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await result
    except Cancelled:
        task = current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("it was cancelled") from None
    except Exception:
        if not limit.expired():
            raise
    return not limit.expired()


class Signal:
    """Wake those who wait for something to change. Set it in its own loop only."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake everybody who waits."""
        self._event.set()

    def clear(self) -> None:
        """Forget what was set before."""
        self._event.clear()

    async def wait(self, seconds: float) -> bool:
        """Wait to be woken, and tell whether that happened in time."""
        if seconds <= 0.0:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


async def wait_readable(descriptor: int, seconds: float) -> bool:
    """Wait until a socket has something to read, and tell whether it has."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    try:
        loop.add_reader(descriptor, _finish, readable)
        async with asyncio.timeout(seconds):
            await readable
        loop.remove_reader(descriptor)
    except BaseException as error:  # an interrupt may come at the line above
        loop.remove_reader(descriptor)
        if isinstance(error, TimeoutError):
            return False
        raise
    return True


async def acquire(lock: asyncio.Lock, seconds: float) -> bool:
    """Take a lock, and tell whether that was possible in time."""
    try:
        async with asyncio.timeout(seconds):
            return await lock.acquire()
    except TimeoutError:
        return False


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


# Background work


def start(
    function: Callable[P, Coroutine[Any, Any, object]], *args: P.args, **kwargs: P.kwargs
) -> None:
    """Run something in the background of the running loop."""
    _Task(function(*args, **kwargs), loop=asyncio.get_running_loop())


def soon(loop: Loop, function: Callable[[], object]) -> bool:
    """Call something at the next turn of a loop, from any thread; false if the loop is closed."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        return False
    return True


def start_in(loop: Loop, function: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    """Run something in the background of a loop, from any thread; false if the loop is closed."""
    return soon(loop, partial(start, function))


release_in = start_in


def call_all(
    calls: Mapping[Loop, Callable[[], Coroutine[Any, Any, T]]],
    *,
    late: bool = False,
    drop: Callable[[Loop, T], object] = lambda _loop, _result: None,
) -> dict[Loop, T | BaseException]:
    """Run something in each of several loops, side by side; from another thread.

    Args:
        calls: What to run, by loop.
        late: Run it also if the loop turns too late for its result to be waited for.
        drop: Called with each result that is not returned, because it came too late or the
            caller was interrupted.

    Returns:
        The results or errors; `LoopStandsStillError` of a loop that does not turn.
    """
    results: dict[Loop, T | BaseException] = {}
    waiting: dict[Loop, Future[T]] = {}
    for loop, function in calls.items():
        turns = loop.is_running() and not is_running_here(loop)
        future: Future[T] = Future()
        if (turns or late) and start_in(loop, partial(_run, function, future)) and turns:
            waiting[loop] = future
        else:
            results[loop] = LoopStandsStillError()
    deadline = monotonic() + _TURN
    returned: set[Loop] = set()
    try:
        for loop, future in waiting.items():
            results[loop] = _result(loop, future, deadline, late=late)
        returned = {loop for loop in waiting if not isinstance(results[loop], LoopStandsStillError)}
    finally:  # an interrupt, too
        for loop in waiting.keys() - returned:
            if not late:
                waiting[loop].cancel()
            waiting[loop].add_done_callback(partial(_drop, drop, loop))
    return results


def _drop(drop: Callable[[Loop, T], object], loop: Loop, future: Future[T]) -> None:
    if not future.cancelled() and future.exception() is None:
        drop(loop, future.result())


async def _run(function: Callable[[], Coroutine[Any, Any, T]], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return  # the caller does not wait any more
    try:
        future.set_result(await function())
    except asyncio.CancelledError:
        future.set_exception(LoopStandsStillError())
        raise
    except Exception as error:  # noqa: BLE001 - it is raised in the thread that waits
        future.set_exception(error)


def _result(loop: Loop, future: Future[Any], deadline: float, *, late: bool) -> Any:
    wait([future], max(0.0, deadline - monotonic()))
    if not future.done() and not future.running() and (late or future.cancel()):
        return LoopStandsStillError()
    while not future.done():
        if not loop.is_running():
            return LoopStandsStillError()
        wait([future], _LOOK)
    return future.exception() or future.result()


def finish_in(loop: Loop, thread: int, function: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    """Run something in a loop, and tell whether it has run when this returns.

    That is so for a loop of this thread that does not run, between two `run_until_complete`.

    Args:
        loop: The loop.
        thread: The thread that it belongs to.
        function: What to run.
    """
    if loop.is_closed():
        return False
    if thread != threading.get_ident() or loop.is_running() or _is_any_here():
        start_in(loop, function)
        return False
    loop.run_until_complete(function())
    return True


def complete_in(
    loop: Loop, thread: int, function: Callable[[], Coroutine[Any, Any, object]]
) -> None:
    """Run something in a loop, and wait for it; in a loop that runs in this thread it runs soon.

    Args:
        loop: The loop; if it is closed, nothing is run.
        thread: The thread that it belongs to.
        function: What to run.
    """
    if loop.is_running() and not is_running_here(loop):
        call_all({loop: function}, late=True)
    else:
        finish_in(loop, thread, function)


def is_running_here(loop: Loop) -> bool:
    """Tell whether a loop runs in this thread."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _is_any_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def in_thread(function: Callable[[], T]) -> T:
    """Call something that blocks in a thread of its own, and wait for its result."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        try:
            value = function()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            soon(loop, partial(_raise, result, error))
        else:
            soon(loop, partial(_return, result, value))

    threading.Thread(target=call, name="pgmonkey-call", daemon=True).start()
    return await result


async def aside(function: Callable[[], object]) -> None:
    """Call something of the application's, which waits for nothing in a loop."""
    function()


def _raise(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _return(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


# Cancellation, and the end of a loop


def cancel_again() -> None:
    """Cancel the running task once more, at the next turn of its loop.

    The worker of psycopg_pool takes a cancellation for a failed connect and goes on: a program
    that ends while its pool connects would never end.
    """
    if task := asyncio.current_task():
        asyncio.get_running_loop().call_soon(task.cancel)


def is_closed(loop: Loop) -> bool:
    """Tell whether nothing can run in a loop any more."""
    return loop.is_closed()


def is_elsewhere(loop: Loop) -> bool:
    """Tell whether a loop, which is not closed, is another one than this code runs in."""
    return loop is not asyncio.get_running_loop() and not loop.is_closed()


async def let_queue(_driver: AsyncDriverPool[Any], _clients: set[Any]) -> None:
    """Do nothing: a task comes into the queue of a psycopg_pool without a wait on its way."""


async def open_driver(driver: AsyncDriverPool[Any]) -> None:
    """Open a psycopg_pool whose tasks end quietly when their loop is closed under them."""
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    loop.set_task_factory(lambda loop, coroutine, **options: _Task(coroutine, loop=loop, **options))
    try:
        await driver.open()
    finally:
        loop.set_task_factory(factory)


def end_tasks(loop: Loop) -> None:
    """End our tasks, and those of psycopg_pool, in a loop that is closed."""
    for task in [task for task in _tasks.copy() if task.get_loop() is loop]:
        _tasks.discard(task)
        _end(task)


def _end(task: asyncio.Task[Any]) -> None:
    if task.done():
        return
    coroutine: Any = task.get_coro()
    inner = _task_of_wait_for(coroutine)
    for _ in range(_MOST_ENDS):
        with suppress(RuntimeError):  # it used its loop, which is closed
            coroutine.close()
            break
    if inner is not None:
        inner._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does; there is no public way, and before Python 3.12 only
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
