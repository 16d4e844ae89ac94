"""How sync code waits: locks, pauses, sockets, background work. `_async/waiting.py` is its twin."""

from __future__ import annotations

import inspect
import select
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from psycopg import Connection as SyncDriverConnection
from psycopg_pool import ConnectionPool as SyncDriverPool

__all__ = [
    "Cancelled",
    "Lock",
    "Loop",
    "LoopStandsStillError",
    "Signal",
    "SyncDriverConnection",
    "SyncDriverPool",
    "acquire",
    "aside",
    "call_all",
    "called",
    "cancel_again",
    "current_owner",
    "end_tasks",
    "finish_in",
    "in_thread",
    "is_closed",
    "is_elsewhere",
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

Cancelled = CancelledError
#: There is one pool for all threads.
Loop: TypeAlias = None
Lock = threading.Lock
sleep = time.sleep
current_owner = threading.get_ident


#: Seconds for which a cancellation of a statement may take, and until the next one.
_CANCEL: Final = 1.0
_CANCEL_AGAIN: Final = 0.2
#: Seconds for which `aside` waits.
_ASIDE: Final = 0.2
#: The most seconds for which `let_queue` waits, and between two looks.
_LONGEST_WAY: Final = 0.2
_LOOK_AGAIN: Final = 0.001


class LoopStandsStillError(Exception):
    """An event loop did not turn. A thread always does."""


def called(function: Callable[[Any], object], connection: Any, seconds: float) -> bool:
    """Call a function of the application with a connection, and tell whether it ended in time.

    When the time is over, each statement that it runs is cancelled. Nothing ends Python code.

    Args:
        function: The function.
        connection: Its argument.
        seconds: How long it may take.

    Raises:
        TypeError: it returned an awaitable, and nothing can wait for that here.
    """
    ended = threading.Event()
    # Taken by what is first: the end of the function, or that of its time.
    first = threading.Lock()

    def watch() -> None:
        if ended.wait(seconds) or not first.acquire(blocking=False):
            return
        while not ended.is_set() and not connection.closed:
            with suppress(Exception):  # the server may be gone, or the connection
                connection.cancel_safe(timeout=_CANCEL)
            ended.wait(_CANCEL_AGAIN)

    # At the end of a program there is no new thread: then nothing limits the function.
    with suppress(RuntimeError):
        threading.Thread(target=watch, name="pgmonkey-configure", daemon=True).start()
    try:
        result = function(connection)
    except Exception:
        if first.acquire(blocking=False):
            raise
        return False
    finally:
        ended.set()
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # else Python warns that it was never awaited
        raise TypeError("it is async, and the connection is a sync one")
    return first.acquire(blocking=False)


class Signal:
    """Wake those who wait for something to change."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Wake everybody who waits."""
        self._event.set()

    def clear(self) -> None:
        """Forget what was set before."""
        self._event.clear()

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, and tell whether that happened in time."""
        if seconds <= 0.0:
            return False
        woken = self._event.wait(seconds)
        self._event.clear()
        return woken


def running_loop() -> None:
    """Return the key of the one pool."""


def wait_readable(descriptor: int, seconds: float) -> bool:
    """Wait until a socket has something to read, and tell whether it has."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(seconds > 0 and poll.poll(seconds * 1000))


def acquire(lock: threading.Lock, seconds: float) -> bool:
    """Take a lock, and tell whether that was possible in time."""
    return lock.acquire(timeout=seconds)


# Background work


def start(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run something in a thread of its own."""
    threading.Thread(
        target=function, args=args, kwargs=kwargs, name="pgmonkey-call", daemon=True
    ).start()


def soon(_loop: None, function: Callable[[], object]) -> bool:
    """Call something now."""
    function()
    return True


start_in = soon


def release_in(_loop: None, function: Callable[[], object]) -> bool:
    """Run what may wait, or the end of a handle that was dropped, or is left at the exit.

    The garbage collector may have interrupted a thread that holds a lock, so this takes a thread
    of its own. At the exit no thread can be started, and no other one runs.
    """
    if threading.main_thread().is_alive():
        start(function)
    else:
        function()
    return True


def call_all(
    calls: Mapping[None, Callable[[], T]],
    *,
    late: bool = False,  # noqa: ARG001 - as its twin
    drop: Callable[[None, T], object] | None = None,  # noqa: ARG001 - as its twin
) -> dict[None, T | BaseException]:
    """Call something now, and return its result or its error."""
    results: dict[None, T | BaseException] = {}
    for key, function in calls.items():
        try:
            results[key] = function()
        except Exception as error:  # noqa: BLE001 - the caller raises it, after it has cleaned up
            results[key] = error
    return results


def finish_in(_loop: None, _thread: int, function: Callable[[], object]) -> bool:
    """Call something now."""
    function()
    return True


def in_thread(function: Callable[[], T]) -> T:
    """Call something that blocks."""
    return function()


def aside(function: Callable[[], object]) -> None:
    """Call something of the application's, which may wait for the thread that calls this.

    A processor of an event may use the database that the event is about.
    """
    thread = threading.Thread(target=function, name="pgmonkey-call", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread can be started
        function()
    else:
        thread.join(_ASIDE)


# Cancellation, and the end of a loop: threads have neither


def cancel_again() -> None:
    """Do nothing."""


def is_closed(_loop: None) -> bool:
    """Tell that threads can always run."""
    return False


def is_elsewhere(_loop: None) -> bool:
    """Tell that a pool serves all threads."""
    return False


def let_queue(driver: SyncDriverPool[Any], clients: set[Any]) -> None:
    """Wait until the clients that are on their way into the queue of a psycopg_pool are in it.

    psycopg_pool looks whether it is closed before it takes the lock of its queue. A client that is
    between the two when it is closed would wait in the queue in vain, until its timeout. Clients that
    gave up may still be in the queue, and cannot be told from the others. So each that ever gave up
    counts as one of them, and if that leaves a doubt, a client gets all of the time that there is.

    Args:
        driver: What is about to be closed; no other client may call its `getconn`.
        clients: Those that wait for a connection.
    """
    before = [one for one in clients.copy() if one.owner != threading.get_ident()]
    deadline = time.monotonic() + _LONGEST_WAY
    while time.monotonic() < deadline:
        stats = driver.get_stats()
        queued = stats["requests_waiting"] - stats.get("requests_errors", 0)
        if not (waiting := sum(one in clients for one in before)) or waiting <= queued:
            return
        time.sleep(_LOOK_AGAIN)


def open_driver(driver: SyncDriverPool[Any]) -> None:
    """Open a psycopg_pool."""
    driver.open()


def end_tasks(_loop: None) -> None:
    """Do nothing."""
