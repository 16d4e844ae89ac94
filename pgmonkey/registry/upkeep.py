"""The upkeep of a registry: the threads that watch its files and probe its databases."""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pgmonkey.registry.prober import Probed, Prober
from pgmonkey.registry.watcher import Source, Watcher
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from pgmonkey.registry.reloader import Reloader


class Maintained(Probed, Protocol):
    """What the upkeep needs of a registry; a `Registry` is one."""

    path: Path


class Upkeep:
    """Run the threads of one registry until it is closed, dropped, or the process ends.

    They start with the registry and, in a forked child, which inherits no thread, with the first
    checkout there. A registry that nobody holds any more is not kept alive by them.

    Args:
        registry: Whose threads they are.
        reloader: What looks at its files.
        watch: Whether the files are watched.
        source: Where file events come from.
        rescan_interval: Seconds after which the files are looked at even if no event came.
        probe_interval: Seconds between two background probes of a database, or `None`.
    """

    def __init__(
        self,
        registry: Maintained,
        reloader: Reloader,
        *,
        watch: bool,
        source: Source,
        rescan_interval: float,
        probe_interval: float | None,
    ) -> None:
        self._registry = weakref.ref(registry)
        self._reloader = reloader
        self._watch = watch
        self._source = source
        self._rescan_interval = rescan_interval
        self._next_rescan = 0.0
        self._probe_interval = probe_interval
        self._watcher: Watcher | None = None
        self._prober: Prober | None = None
        # Guards the start of the two. Never held while waiting.
        self._lock = threading.Lock()
        #: In a child process that has not used a database yet: the process that it comes from.
        self._forked_from: list[int] = []
        #: Set when the threads are to end.
        self.stopping = threading.Event()
        weakref.finalize(registry, self.stop)

    @property
    def watched(self) -> bool:
        """Tell whether changes are to be seen as they happen; not in a child that is idle yet."""
        return self._watch and not self._forked_from

    @property
    def watching(self) -> bool:
        """Tell whether changes are seen as they happen."""
        watcher = self._watcher
        return watcher is not None and watcher.alive

    @property
    def polling(self) -> bool:
        """Tell whether the files are looked at all the time, for no events are to be had."""
        watcher = self._watcher
        return watcher is not None and watcher.polling

    @property
    def watcher_errors(self) -> int:
        """Return how often no events were to be had."""
        watcher = self._watcher
        return watcher.errors if watcher is not None else 0

    def ensure_running(self) -> None:
        """Start the threads that are to run, unless they do."""
        registry = self._registry()
        if registry is None:
            return
        if self._forked_from:
            with suppress(IndexError):  # another thread has said it
                parent = self._forked_from.pop()
                events.emit(
                    "fork.detected", path=str(registry.path), pid=os.getpid(), parent=parent
                )
        if registry.closed:
            return
        if self._probe_interval is not None:
            with self._lock:
                if self._prober is None:
                    self._prober = Prober(registry, interval=self._probe_interval)
                    self._prober.start()
        if not self._watch:
            return
        with self._lock:
            if self._watcher is not None:
                return
            this = weakref.ref(self)  # no cycle: what is dropped closes its connections at once
            watcher = self._watcher = Watcher(
                self._reloader.watched_directories,
                lambda: (upkeep := this()) is not None and upkeep._look(),
                lambda: (upkeep := this()) is not None and upkeep._tick(),
                self._source,
            )
            self._next_rescan = time.monotonic() + self._rescan_interval
        watcher.start()

    def look_soon(self) -> None:
        """Look at the files now, in a thread, if they are watched."""
        if self._watch:
            threading.Thread(target=self._look, name="pgmonkey-look", daemon=True).start()

    def _look(self) -> bool:
        """Look at the files; tell whether there is a registry that wants it."""
        if not self._is_wanted():
            return False
        self._next_rescan = time.monotonic() + self._rescan_interval
        self._reloader.look()
        return True

    def _tick(self) -> bool:
        """Do what is due; tell whether there is a registry that wants it."""
        if not self._is_wanted():
            return False
        if time.monotonic() >= self._next_rescan:
            self._look()
        self._reloader.tick()
        return True

    def _is_wanted(self) -> bool:
        registry = self._registry()
        return registry is not None and not registry.closed

    def forget(self) -> None:
        """Start anew in a child process: threads are not inherited."""
        self._lock = threading.Lock()
        self._forked_from = [os.getppid()]
        self._watcher = None
        self._prober = None

    def stop(self) -> None:
        """Let the threads end, and wait a moment for the watcher."""
        self.stopping.set()
        if self._prober is not None:
            self._prober.stop()
        if self._watcher is not None:
            self._watcher.stop()
