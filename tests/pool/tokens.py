"""Tokens that expire, and clients that need new connections all the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pgmonkey import Credentials
from tests.kit.database import TemporaryDatabase
from tests.pool.side import Client


class Mint:
    """A source of tokens: each call makes another password, and the one before is of no use any more.

    Args:
        database: Whose password it is.
        lifetime: Seconds until the expiry that it returns; `None`: it returns a text.
    """

    def __init__(self, database: TemporaryDatabase, lifetime: float | None = None) -> None:
        self._database = database
        self._lifetime = lifetime
        self.keys: list[str] = []
        self.times: list[float] = []
        #: When the last token expires, on the monotonic clock.
        self.expires_at = 0.0

    def __call__(self, key: str) -> str | Credentials:
        self.keys.append(key)
        self.times.append(time.monotonic())
        password = self._database.rotate()
        self.expires_at = time.monotonic() + (self._lifetime or 0.0)
        if self._lifetime is None:
            return password
        return Credentials(password, expires_at=time.time() + self._lifetime)

    @property
    def calls(self) -> int:
        """How often it was called."""
        return len(self.times)


class Churn:
    """Workers that borrow, and close every third connection so that new ones are made."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.errors: list[BaseException] = []
        self.made = 0
        self.stop = threading.Event()

    def work(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                self.client.run(lambda connection: connection.execute("SELECT 1"), timeout=20)
                if number % 3 == 0:
                    self.client.run(lambda connection: connection.close(), timeout=20)
                    self.made += 1
            except BaseException as error:
                self.errors.append(error)
                return


@contextmanager
def under_churn(client: Client, seconds: float) -> Iterator[Churn]:
    """Let four workers churn for that long."""
    churn = Churn(client)
    threads = [threading.Thread(target=churn.work, name="churns") for _ in range(4)]
    for thread in threads:
        thread.start()
    churn.stop.wait(seconds)
    churn.stop.set()
    for thread in threads:
        thread.join(30)
    yield churn
