"""Output of events in the service and the demonstration. The library configures no logging."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Final, Literal, TextIO

import structlog

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

#: Fields that the console leaves out; JSON has them all. The line of a problem has the last four.
_LEFT_OUT: Final[tuple[str, ...]] = ("config",)
_IN_A_PROBLEM: Final[tuple[str, ...]] = ("file", "line", "key", "code")
#: How many problems of one file the console shows.
_MOST_PROBLEMS: Final = 5


def configure_logs(log_format: LogFormat, level: LogLevel) -> None:
    """Write events and the records of all standard loggers to standard error.

    Only for a process of our own. A full disk or a closed pipe raises nothing.

    Args:
        log_format: `json`, one object per line; `console`, for people; `auto`: `console` on a
            terminal, else `json`.
        level: The lowest level that is written.
    """
    stream = sys.stderr
    terminal = stream.isatty()
    console = log_format == "console" or (log_format == "auto" and terminal)
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(
            fmt="%H:%M:%S" if console else "iso", utc=not console, key="time"
        ),
    ]
    # Both render tracebacks without local variables: those of a connect hold the password.
    renderer: list[Any] = (
        [
            _for_people,
            structlog.dev.ConsoleRenderer(
                colors=terminal and "NO_COLOR" not in os.environ and os.getenv("TERM") != "dumb",
                exception_formatter=structlog.dev.plain_traceback,
                timestamp_key="time",
                pad_event_to=22,
                sort_keys=False,
                pad_level=False,
            ),
        ]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.raiseExceptions = False
    atexit.register(_let_go, stream)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    # It warns of every client that has gone before its answer: anybody could fill the log.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _let_go(stream: TextIO) -> None:
    """Flush the log at the end; a failure must not become the exit code."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            stream.close()  # fails again, and leaves nothing for the interpreter to flush


def _for_people(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Leave out long and empty fields, and put problems and their hints on lines of their own."""
    left_out = _LEFT_OUT
    if problems := event.pop("problems", None):
        left_out += _IN_A_PROBLEM
        shown = [line for problem in problems[:_MOST_PROBLEMS] for line in problem.split("\n")]
        if len(problems) > _MOST_PROBLEMS:
            shown.append(f"and {len(problems) - _MOST_PROBLEMS} more: see pgmonkey check")
        # The renderer writes a field of this name below the line. The text of a server may hold anything.
        event["stack"] = "\n".join(
            f"  {line if line.isprintable() else ascii(line)[1:-1]}" for line in shown
        )
    return {key: value for key, value in event.items() if value is not None and key not in left_out}
