"""Events: what happened, through structlog. The one writer of logs.

The library configures no logging. Events reach the structlog configuration of the application
if it has one, else the standard library's logger `pgmonkey`. Emitting never raises into the
caller, and is never done while a lock is held or on the way of a checkout: what writes events is
the application's, and may call the very registry that has something to say.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import structlog

from pgmonkey.telemetry.forks import no_fork

#: Every event, with its level and what it says.
CATALOGUE: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "registry.loaded": ("info", "the directory was read; how many databases, how many are bad"),
        "registry.closed": ("info", "the registry closed its handles"),
        "config.applied": ("info", "a changed configuration is in force; the changed keys"),
        "config.rejected": ("warning", "files that cannot be used; file, line, key, code"),
        "config.removed": ("info", "the file of a database is gone"),
        "database.opened": ("info", "the first generation of a handle connected"),
        "database.swapped": ("info", "a new generation took over; old, new, duration"),
        "database.drained": ("info", "the last checkout of a retired generation ended"),
        "database.drain_timeout": ("warning", "checkouts of a retired generation are still out"),
        "database.probe_failed": ("warning", "a candidate could not connect; reason, retry_in"),
        "database.given_up": (
            "warning",
            "a generation is of no use any more; the next checkout opens another; reason",
        ),
        "connect.failed": ("warning", "connects began to fail; reason"),
        "connect.recovered": ("info", "connects work again; outage in seconds"),
        "checkout.leaked": ("warning", "a checkout is held longer than leak_detection"),
        "checkout.abandoned": ("warning", "an interrupt left a checkout that nobody could end"),
        "checkout.returned_late": ("info", "a checkout that was reported came back"),
        "file.untrusted": ("warning", "other accounts can change a file; once for each file"),
        "watch.started": ("info", "the directories are watched"),
        "watch.degraded": ("warning", "no file events: the directories are polled"),
        "watch.lost": ("warning", "a watched directory is gone"),
        "watch.restored": ("info", "a lost directory is watched again"),
        "http.denied": ("warning", "a reload over HTTP was refused; why, at most once a second"),
        "fork.detected": ("info", "a child process starts with connections of its own"),
    }
)


class Event(NamedTuple):
    """Describe one event that was emitted in this process.

    Args:
        id: Its number, counted from 1 in this process.
        at: Unix time.
        name: Its name in the catalogue.
        level: Its level there.
        fields: What it said.
    """

    id: int
    at: float
    name: str
    level: str
    fields: Mapping[str, Any]


#: How many of the last events are kept for the status page.
KEPT: Final = 500
#: What is not kept: it is large, and the page shows it at its own place.
_NOT_KEPT: Final = ("config",)

# Appending to a deque, copying it and counting are one step each for the interpreter: no lock.
_recent: deque[Event] = deque(maxlen=KEPT)
_numbers = count(1)

_stdlib_logger = logging.getLogger("pgmonkey")
_dropped = count()
_dropped_so_far = 0

_wrapped_stdlib = structlog.wrap_logger(
    _stdlib_logger,
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.processors.KeyValueRenderer(key_order=["event", "database"], drop_missing=True),
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    context_class=dict,
    cache_logger_on_first_use=False,
)


class _HeldBack(threading.local):
    """What this thread writes when it holds no lock any more; `None`: at once."""

    events: list[tuple[str, str, dict[str, Any]]] | None = None


_held_back = _HeldBack()


@contextmanager
def held_back() -> Iterator[None]:
    """Write the events of a block when it ends, in their order: the block holds a lock.

    Enter it before the lock. Inside of another such block it does nothing.

    Example:
        >>> with held_back(), threading.Lock():
        ...     emit("config.removed", database="orders")
    """
    if _held_back.events is not None:
        yield
        return
    held = _held_back.events = []
    try:
        yield
    finally:
        _held_back.events = None
        for level, event, known in held:
            _write(level, event, known)


def emit(event: str, **fields: Any) -> None:
    """Emit one event of the catalogue.

    Costs some microseconds: never on the way of a checkout.

    Args:
        event: The name, `area.verb`.
        fields: What to say; never a secret, never an exception. `None` says nothing.
    """
    level, _ = CATALOGUE[event]
    known = {name: value for name, value in fields.items() if value is not None}
    kept = {name: value for name, value in known.items() if name not in _NOT_KEPT}
    _recent.append(Event(next(_numbers), time.time(), event, level, kept))
    if _held_back.events is None:
        _write(level, event, known)
    else:
        _held_back.events.append((level, event, known))


def _write(level: str, event: str, known: dict[str, Any]) -> None:
    logger = structlog.get_logger("pgmonkey") if structlog.is_configured() else _wrapped_stdlib
    try:
        with no_fork():
            getattr(logger, level)(event, **known)
    except Exception:  # noqa: BLE001 - a full disk or a closed pipe must not break the caller
        global _dropped_so_far
        _dropped_so_far = next(_dropped) + 1


def recent() -> tuple[Event, ...]:
    """Return the last events of this process, oldest first, whatever became of them in the logs.

    Example:
        >>> "registry.loaded" in {event.name for event in recent()}
        True
    """
    return tuple(_recent.copy())


def dropped() -> int:
    """Return how many events could not be written."""
    return _dropped_so_far


class _OursFilter(logging.Filter):
    """Drop psycopg_pool's records of our pools: it warns at every attempt, in its own words."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        return not any("pgmonkey" in repr(argument) for argument in arguments)


def _after_fork() -> None:
    """Forget in a child process what its parent emitted and lost."""
    global _dropped, _dropped_so_far
    _recent.clear()
    _dropped, _dropped_so_far = count(), 0


logging.getLogger("psycopg.pool").addFilter(_OursFilter())
os.register_at_fork(after_in_child=_after_fork)
