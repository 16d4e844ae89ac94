"""Events: what happened, through structlog. The library writes no other logs, and configures none.

Emitting never raises into the caller. It is never done while a lock is held or during a checkout:
a processor of the application may use the registry that the event is about.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from inspect import iscoroutine, iscoroutinefunction
from itertools import count
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import structlog

# fmt: off
#: Level and meaning of every event.
CATALOGUE: Final[Mapping[str, tuple[str, str]]] = MappingProxyType({
    "registry.loaded": ("info", "the directory was read"),
    "registry.closed": ("info", "the registry closed its handles"),
    "config.applied": ("info", "a changed configuration was applied"),
    "config.rejected": ("warning", "files cannot be used, or the probe failed"),
    "config.removed": ("info", "the file of a database was removed"),
    "database.opened": ("info", "a handle made its first connection"),
    "database.pooler_found": ("warning", "a pooler answers where the file says that there is none"),
    "database.rotated": ("info", "new connections replaced the old ones"),
    "database.rotation_failed": ("warning", "a rotation was broken off: old connections are closed as they come back"),
    "database.drained": ("info", "the last checkout of a replaced configuration ended"),
    "database.drain_timeout": ("warning", "checkouts of a replaced configuration are still in progress"),
    "database.overridden": ("info", "a test leads a database somewhere else, or rolls it back"),
    "database.override_ended": ("info", "an override ended"),
    "database.probe_failed": ("warning", "the probe of a new configuration could not connect"),
    "connect.failed": ("warning", "connects began to fail"),
    "connect.recovered": ("info", "connects work again"),
    "credentials.not_renewed": ("warning", "a user has expired, and its resolver returns no new one"),
    "listen.resumed": ("warning", "a listener listens again, and may have missed notifications"),
    "checkout.leaked": ("warning", "a checkout is held longer than leak_detection"),
    "checkout.abandoned": ("warning", "a checkout was interrupted, or its connection dropped, and was not given back"),
    "checkout.rolled_back": ("warning", "a block succeeded but was rolled back, because it swallowed an error"),
    "checkout.used_after_return": ("warning", "a connection was used after its block; that was rolled back"),
    "checkout.returned_late": ("info", "a checkout that was reported as leaked was returned"),
    "file.untrusted": ("warning", "other accounts can change a file"),
    "subscriber.failed": ("warning", "a function given to Registry.subscribe raised an exception"),
    "watch.started": ("info", "the directories are watched"),
    "watch.degraded": ("warning", "there are no file events in these directories: they are polled, or not watched"),
    "watch.lost": ("warning", "a watched directory is gone"),
    "watch.restored": ("info", "a lost directory is watched again"),
    "metrics.failed": ("warning", "numbers cannot be written to the files of the multi-process mode"),
    "http.denied": ("warning", "a reload over HTTP was refused"),
    "fork.detected": ("info", "a child process starts with connections of its own"),
})
# fmt: on


class Event(NamedTuple):
    """Describe one event that was emitted in this process.

    Args:
        id: Its number, counted from 1 in this process.
        at: Unix time.
        name: Its name in the catalogue.
        level: Its level there.
        fields: Its fields, without the redacted configuration.
    """

    id: int
    at: float
    name: str
    level: str
    fields: Mapping[str, Any]


#: How many of the last events are kept for the status page.
KEPT: Final = 500
#: Fields that are too large to keep; the page shows the configuration elsewhere.
_NOT_KEPT: Final = ("config",)

#: How many places in the code are remembered, for events that are emitted once for each place.
_MOST_PLACES: Final = 1000
_places: Final[dict[object, object]] = {}

# Appending to a deque, copying it and counting are one step each for the interpreter: no lock.
_recent: deque[Event] = deque(maxlen=KEPT)
_numbers = count(1)
_dropped = count()
_dropped_so_far = 0

#: How many events may wait for a log that an async application has slowed down; more are lost.
_MOST_WAITING: Final = 1000


class _Writer:
    """A thread that writes the events of an application whose loggers are async, in their order.

    The methods of such a logger return coroutines. Most events come from threads without a loop, so
    nothing could await them, and what is written in the thread of a loop must not block it. The
    thread starts with the first event.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pgmonkey-events")
        self._room = threading.Semaphore(_MOST_WAITING)

    def write(self, level: str, event: str, known: dict[str, Any]) -> None:
        """Write an event soon; at once when the interpreter ends."""
        if not self._room.acquire(blocking=False):
            _count_lost()
            return
        write = copy_context().run  # processors find what is bound where the event came from
        try:
            self._thread.submit(write, self._write, level, event, known)
        except RuntimeError:  # its thread has ended, or cannot start
            write(self._write, level, event, known)

    def _write(self, level: str, event: str, known: dict[str, Any]) -> None:
        # The sync logger that AsyncBoundLogger wraps, with the application's processors and its
        # logger factory. AsyncBoundLogger itself cannot be made in a thread without a loop.
        logger = structlog.wrap_logger(
            None, wrapper_class=structlog.stdlib.BoundLogger, logger_factory_args=("pgmonkey",)
        )
        try:
            _write_to(logger, level, event, known)
        finally:
            self._room.release()


_writer = _Writer()

_wrapped_stdlib = structlog.wrap_logger(
    logging.getLogger("pgmonkey"),
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.processors.KeyValueRenderer(key_order=["event", "database"], drop_missing=True),
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    context_class=dict,
    cache_logger_on_first_use=False,
)


class _HeldBack(threading.local):
    """What this thread calls once it holds no lock; `None`: it calls the application at once."""

    calls: list[Callable[[], object]] | None = None


_held_back = _HeldBack()


@contextmanager
def held_back() -> Iterator[None]:
    """Write the events of a block when it ends, in their order: the block holds a lock.

    Enter it before the lock. Inside another such block it does nothing.

    Example:
        >>> with held_back(), threading.Lock():
        ...     emit("config.removed", database="orders")
    """
    if _held_back.calls is not None:
        yield
        return
    held = _held_back.calls = []
    try:
        yield
    finally:
        _held_back.calls = None
        for call in held:
            call()


def call_unlocked(call: Callable[[], object]) -> None:
    """Call something of the application's now, or when the outermost `held_back` block ends.

    Args:
        call: It raises nothing.
    """
    if _held_back.calls is None:
        call()
    else:
        _held_back.calls.append(call)


def emit(event: str, **fields: Any) -> None:
    """Emit one event of the catalogue. It costs some microseconds: never call it in a checkout.

    Args:
        event: The name, `area.verb`.
        fields: Its fields; never a secret or an exception. A field that is `None` is left out.
    """
    level, _ = CATALOGUE[event]
    known = {name: value for name, value in fields.items() if value is not None}
    kept = {name: value for name, value in known.items() if name not in _NOT_KEPT}
    _recent.append(Event(next(_numbers), time.time(), event, level, kept))
    call_unlocked(partial(_write, level, event, known))


def is_first(event: str, *place: object) -> bool:
    """Tell whether an event that comes once from each place in the code has not come from this one.

    Args:
        event: Its name.
        place: What tells this place from others.

    Example:
        >>> is_first("checkout.rolled_back", "orders.py", 57)
        True
        >>> is_first("checkout.rolled_back", "orders.py", 57)
        False
    """
    mine = object()
    if _places.setdefault((event, *place), mine) is not mine:
        return False
    if len(_places) > _MOST_PLACES:
        _places.clear()
    return True


def _write(level: str, event: str, known: dict[str, Any]) -> None:
    if not structlog.is_configured():
        _write_to(_wrapped_stdlib, level, event, known)
    elif iscoroutinefunction(getattr(structlog.get_config()["wrapper_class"], level, None)):
        _writer.write(level, event, known)
    else:
        _write_to(structlog.get_logger("pgmonkey"), level, event, known)


def _write_to(logger: Any, level: str, event: str, known: dict[str, Any]) -> None:
    try:
        written = getattr(logger, level)(event, **known)
    except Exception:  # noqa: BLE001 - a full disk or a closed pipe must not break the caller
        _count_lost()
    else:
        if iscoroutine(written):  # of a logger factory whose loggers are async: nothing awaits it
            written.close()
            _count_lost()


def _count_lost() -> None:
    global _dropped_so_far
    _dropped_so_far = next(_dropped) + 1


def recent() -> tuple[Event, ...]:
    """Return the last 500 events of this process, oldest first, whatever the level of the logs is.

    Example:
        >>> from pgmonkey.events import recent
        >>> "registry.loaded" in {event.name for event in recent()}
        True
    """
    return tuple(_recent.copy())


def dropped() -> int:
    """Return how many events of this process could not be written."""
    return _dropped_so_far


def reset() -> None:
    """Forget in a child process what its parent emitted and lost."""
    global _dropped, _dropped_so_far, _writer
    _recent.clear()
    _places.clear()
    _dropped, _dropped_so_far = count(), 0
    _writer = _Writer()  # what waits in that of the parent is written there


class _OursFilter(logging.Filter):
    """Drop psycopg_pool's records of our pools: it warns at every attempt; we emit one event."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        return not any("pgmonkey" in repr(argument) for argument in arguments)


logging.getLogger("psycopg.pool").addFilter(_OursFilter())
