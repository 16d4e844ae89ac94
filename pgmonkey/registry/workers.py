"""A few threads for what may take long: reloads and probes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

Job: TypeAlias = Callable[[], object]


class Workers:
    """Run jobs side by side, in threads that end when there is nothing to do.

    The threads are daemons: a server that does not answer must not keep a program from ending.

    Args:
        name: What the names of the threads begin with.
        most: How many jobs run at once.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self.forget()

    def submit(self, job: Job) -> threading.Event:
        """Run a job as soon as a thread is free, and return the event that is set when it has ended.

        Raises:
            RuntimeError: no thread runs, and none can be started.
        """
        ended = threading.Event()
        with self._lock:
            self._jobs.append((job, ended))
            if self._running >= self._most:
                return ended
            self._running += 1
            number = self._running
        thread = threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._jobs.remove((job, ended))
                    raise
        return ended

    def _run(self) -> None:
        try:
            while (found := self._next()) is not None:
                job, ended = found
                try:
                    job()
                finally:
                    ended.set()
        except BaseException:
            with self._lock:
                self._running -= 1
            raise

    def _next(self) -> tuple[Job, threading.Event] | None:
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            self._running -= 1
            return None

    def forget(self) -> None:
        """Begin without threads, in a child process."""
        # Guards the two below.
        self._lock = threading.Lock()
        self._jobs: deque[tuple[Job, threading.Event]] = deque()
        self._running = 0
