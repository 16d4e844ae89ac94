"""The JSON of /api/v1, which the status page and `pgmonkey status` show.

It is made of status records and events alone, which hold no secret. Keys are added within a version
of the API; none is renamed or removed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pgmonkey.config.explain import Value
from pgmonkey.errors import Problem
from pgmonkey.registry.reload import ReloadReport
from pgmonkey.telemetry.events import Event
from pgmonkey.telemetry.status import DatabaseStatus, PoolStatus, RegistryStatus
from pgmonkey.version import __version__

#: Characters of a foreign text that are shown: the message of a server can have any length.
LONGEST_TEXT: Final = 300

# Characters that could rearrange a line, or control a terminal.
_CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+"
)


def overview(status: RegistryStatus) -> dict[str, Any]:
    """Return the body of /api/v1/databases."""
    return {
        "at": time.time(),
        "pgmonkey": __version__,
        "registry": {
            "path": status.path,
            "only": status.only,
            "watching": status.watching,
            "polling": status.polling,
            "last_reload_successful": status.last_reload_successful,
            "last_reload_success_at": status.last_reload_success_at,
            "problems": _problems(status.problems),
        },
        "databases": [_summary(one) for one in status.databases if one.state],
    }


def details(
    database: DatabaseStatus, values: Iterable[Value], events: Iterable[Event]
) -> dict[str, Any]:
    """Return the body of /api/v1/databases/NAME, with those of the events that name it."""
    return {
        "at": time.time(),
        "pgmonkey": __version__,
        **_summary(database),
        "checkouts": [
            {
                "connection_type": pool.connection_type,
                "holder": plain(one.holder),
                "seconds": round(one.seconds, 3),
                "place": plain(one.place),
            }
            for pool in database.pools
            for one in sorted(pool.checkouts, key=lambda checkout: -checkout.seconds)
        ],
        "settings": [
            {"key": one.key, "value": one.value, "source": one.source._asdict()} for one in values
        ],
        "reloads": [
            {
                "outcome": record.outcome,
                "at": record.at,
                "version": record.version,
                "details": [plain(text) for text in record.details],
            }
            for record in reversed(database.history)
        ],
        "reload_outcomes": dict(database.outcomes),
        "events": [
            _event(event)
            for event in reversed(list(events))
            if event.fields.get("database") == database.name
        ],
    }


def event_list(events: Iterable[Event], after: int = 0) -> dict[str, Any]:
    """Return the body of /api/v1/events, newest first: events with a number above `after`."""
    shown = [_event(event) for event in events if event.id > after]
    return {"at": time.time(), "pgmonkey": __version__, "events": shown[::-1]}


def reload_result(report: ReloadReport) -> dict[str, Any]:
    """Return the body of POST /-/reload."""
    return {
        "applied": list(report.applied),
        "rejected": [
            {**problem, "database": problem["database"] or name}
            for name, problems in report.rejected.items()
            for problem in _problems(problems)
        ],
        "unchanged": list(report.unchanged),
        "removed": list(report.removed),
    }


def plain(text: str) -> str:
    """Return a foreign text as one line of bounded length, without control characters."""
    line = _CONTROL.sub(" ", text).strip()
    if len(line) > LONGEST_TEXT:
        line = line[: LONGEST_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return line


def _event(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "at": event.at,
        "event": event.name,
        "level": event.level,
        "fields": {name: _jsonable(value) for name, value in event.fields.items()},
    }


def _jsonable(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(key): _jsonable(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_jsonable(item) for item in value]
        case _:
            return plain(str(value))


def _summary(database: DatabaseStatus) -> dict[str, Any]:
    reload = None
    if database.last_reload is not None:
        reload = {"outcome": database.last_reload, "at": database.last_reload_at}
    return {
        "name": database.name,
        "description": plain(database.description),
        "connection_type": database.connection_type,
        "required": database.required,
        "state": database.state,
        "reached": database.reached,
        "version": database.version,
        "last_reload": reload,
        "error": _error(database),
        "problems": _problems(database.problems),
        "pools": [_pool(pool) for pool in database.pools],
    }


def _error(database: DatabaseStatus) -> dict[str, str | None] | None:
    """Return why connects fail now: the reason, the server's message and a hint."""
    if database.last_error is None:
        return None
    return {
        "reason": database.last_error_reason,
        "text": plain(database.last_error),
        "hint": plain(database.last_error_hint or "") or None,
    }


def _pool(pool: PoolStatus) -> dict[str, Any]:
    return {
        "connection_type": pool.connection_type,
        "version": pool.version,
        "opened": pool.opened,
        "idle": pool.idle,
        "used": pool.used,
        "retired": pool.retired,
        "waiting": pool.waiting,
        "min_size": pool.min_size,
        "max_size": pool.max_size,
        "longest_checkout": round(pool.longest_checkout, 3),
        "requests": pool.requests,
        "queued": pool.queued,
        "request_errors": dict(pool.errors),
        "connect_attempts": pool.connect_attempts,
        "connect_failures": dict(pool.connect_failures),
        "wait_seconds": {"count": pool.waits.count, "sum": round(pool.waits.sum, 6)},
        "leaks": pool.leaks,
        "listeners": pool.listeners,
    }


def _problems(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [
        {**one.as_dict(), "message": plain(one.message), "hint": one.hint and plain(one.hint)}
        for one in problems
    ]
