"""The peak: how many sessions of a role the server has at one moment, looked at all the time."""

from __future__ import annotations

import threading
from typing import Self

from tests.kit.server import PostgresServer


class Peak:
    """Count the sessions of a role, as another one, while the block runs.

    Args:
        server: The server.
        role: Whose sessions.
    """

    def __init__(self, server: PostgresServer, role: str) -> None:
        self._server = server
        self._role = role
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.highest = 0

    def _run(self) -> None:
        with self._server.connect() as connection:
            connection.autocommit = True
            while not self._stop.wait(0.002):
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [self._role]
                ).fetchone()
                assert row is not None
                self.highest = max(self.highest, row[0])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
