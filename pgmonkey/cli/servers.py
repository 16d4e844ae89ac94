"""Connect to servers as applications do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import Problem
    from pgmonkey.pool._sync.connection import SyncPooledConnection

_WORKERS: Final = 8

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Collection[T]) -> list[R]:
    """Call a function with each item, a few at a time, and return the results in their order.

    The threads are daemons: Ctrl-C must not wait for a server that does not answer, as the end of
    an executor would.
    """
    waiting: SimpleQueue[tuple[T, Future[R]]] = SimpleQueue()
    outcomes = []
    for item in items:
        outcome: Future[R] = Future()
        outcomes.append(outcome)
        waiting.put((item, outcome))

    def work() -> None:
        while True:
            try:
                item, outcome = waiting.get_nowait()
            except Empty:
                return
            try:
                outcome.set_result(function(item))
            except BaseException as error:  # noqa: BLE001 - raised where the outcome is asked for
                outcome.set_exception(error)

    threads = [
        threading.Thread(target=work, name=f"pgmonkey-connect-{number}", daemon=True)
        for number in range(min(_WORKERS, len(outcomes)))
    ]
    for thread in threads:
        thread.start()
    results = [outcome.result() for outcome in outcomes]
    for thread in threads:
        thread.join()
    return results


def connected(config: DatabaseConfig) -> SyncPooledConnection | Problem:
    """Connect once, with the type of the file; return the problem if that fails."""
    # Late: what looks at files alone must not wait for the import of the pool.
    from pgmonkey.config.failed_probes import failed_probe
    from pgmonkey.pool._sync.connecting import connect
    from pgmonkey.pool.failures import ConnectFailure

    connection = connect(config, config.connection_type)
    if isinstance(connection, ConnectFailure):
        return failed_probe(config, connection.error(config.name))
    return connection
