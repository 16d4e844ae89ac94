"""The background threads of a registry: they watch its files and probe its databases."""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pgmonkey.registry.prober import Probed, Prober
from pgmonkey.registry.watcher import Watcher
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from pgmonkey.registry.reloader import Reloader


class Maintained(Probed, Protocol):
    """The part of a `Registry` that `Upkeep` uses."""

    path: Path


class Upkeep:
    """Run the threads of one registry until it is closed, dropped, or the process ends.

    They start with the registry, and again in a forked child at its first checkout: a child
    inherits no threads. They hold the registry weakly, so that it can be dropped.

    Args:
        registry: The registry.
        reloader: Reads the files of the registry.
        watch: Whether to watch the files.
        rescan_interval: Seconds after which the files are read again even without a file event.
        probe_interval: Seconds between two background probes of a database, or `None`.
    """

    def __init__(
        self,
        registry: Maintained,
        reloader: Reloader,
        *,
        watch: bool,
        rescan_interval: float,
        probe_interval: float | None,
    ) -> None:
        self._registry = weakref.ref(registry)
        self._reloader = reloader
        self._watch = watch
        self._rescan_interval = rescan_interval
        self._next_rescan = 0.0
        self._probe_interval = probe_interval
        self._watcher: Watcher | None = None
        self._prober: Prober | None = None
        # Guards the start of the watcher and the prober. Never held while waiting.
        self._lock = threading.Lock()
        #: The pid of the parent, in a forked child that has not used a database yet.
        self._forked_from: list[int] = []
        #: Set when the threads are to end.
        self.stopping = threading.Event()
        weakref.finalize(registry, self.stop)

    @property
    def watched(self) -> bool:
        """Tell whether the files should be watched; false in a forked child until its first use."""
        return self._watch and not self._forked_from

    @property
    def watching(self) -> bool:
        """Tell whether the files are watched now."""
        watcher = self._watcher
        return watcher is not None and watcher.alive

    @property
    def polling(self) -> bool:
        """Tell whether the watcher polls the files because it gets no file events."""
        watcher = self._watcher
        return watcher is not None and watcher.polling

    @property
    def watcher_errors(self) -> int:
        """Return how often the watcher could not get file events."""
        watcher = self._watcher
        return watcher.errors if watcher is not None else 0

    def ensure_running(self) -> None:
        """Start the threads unless they run."""
        registry = self._registry()
        if registry is None:
            return
        if self._forked_from:
            with suppress(IndexError):  # another thread has emitted it
                parent = self._forked_from.pop()
                events.emit(
                    "fork.detected", path=str(registry.path), pid=os.getpid(), parent=parent
                )
        if registry.closed:
            return
        if self._probe_interval is not None:
            with self._lock:
                if self._prober is None:
                    self._prober = Prober(registry, self._probe_interval)
                    self._prober.start()
        if not self._watch:
            return
        with self._lock:
            if self._watcher is not None:
                return
            this = weakref.ref(self)  # no cycle: a dropped registry closes its connections at once
            watcher = self._watcher = Watcher(
                self._reloader.watched_directories,
                lambda: (upkeep := this()) is not None and upkeep._look(),
                lambda: (upkeep := this()) is not None and upkeep._tick(),
            )
            self._next_rescan = time.monotonic() + self._rescan_interval
        watcher.start()

    def look_soon(self) -> None:
        """Read the files now, in a thread, if they are watched."""
        if self._watch:
            threading.Thread(target=self._look, name="pgmonkey-look", daemon=True).start()

    def _look(self) -> bool:
        """Read the files; return false if the registry is gone."""
        if not self._is_wanted():
            return False
        self._next_rescan = time.monotonic() + self._rescan_interval
        self._reloader.look()
        return True

    def _tick(self) -> bool:
        """Do the periodic work; return false if the registry is gone."""
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
        """Forget the threads in a forked child, which does not inherit them."""
        self._lock = threading.Lock()
        self._forked_from = [os.getppid()]
        self._watcher = None
        self._prober = None

    def stop(self) -> None:
        """End the threads; wait up to a second for the watcher."""
        self.stopping.set()
        if self._prober is not None:
            self._prober.stop()
        if self._watcher is not None:
            self._watcher.stop()
