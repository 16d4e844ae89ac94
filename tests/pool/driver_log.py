"""Do something in the middle of psycopg_pool: at the moment at which it logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def whenever_it_logs(beginning: str, act: Callable[..., object]) -> Iterator[None]:
    """Do something whenever psycopg_pool logs a message, in its thread, before it goes on.

    Args:
        beginning: What the message begins with.
        act: Called with the values of the message, of which the first is the name of the pool; what
            it raises, psycopg_pool meets.
    """
    before = logging.getLogRecordFactory()

    def factory(
        name: str, level: int, path: str, line: int, message: str, values: Any, *more: Any
    ) -> Any:
        if name == "psycopg.pool" and message.startswith(beginning):
            act(*values)
        return before(name, level, path, line, message, values, *more)

    logger = logging.getLogger("psycopg.pool")
    level = logger.level
    logger.setLevel(logging.INFO)
    logging.setLogRecordFactory(factory)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
        logger.setLevel(level)
