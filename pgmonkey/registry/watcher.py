"""A thread that says when to read the files again. File events are hints: content counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import watchfiles

from pgmonkey.telemetry import events

#: Milliseconds: how often watchfiles looks for events, how long it collects further ones, and
#: how long it waits before the periodic work runs.
_STEP: Final = 10
_DEBOUNCE: Final = 100
_TICK: Final = 500


def file_events(directories: Iterable[str], stop: threading.Event) -> Iterable[object]:
    """Yield a batch of events of these directories, or an empty one twice a second.

    Events are not filtered by name: a Kubernetes update never names the files that are read.
    """
    return watchfiles.watch(
        *directories,
        watch_filter=None,
        recursive=False,
        step=_STEP,
        debounce=_DEBOUNCE,
        rust_timeout=_TICK,
        yield_on_timeout=True,
        stop_event=stop,
        raise_interrupt=False,
    )


class Watcher:
    """Call `on_change` when something may have changed, and `on_tick` twice a second.

    Both return False to end the thread, when the registry is gone.

    Args:
        directories: Returns the directories to watch.
        on_change: Reads the files.
        on_tick: Does the periodic work.
    """

    def __init__(
        self,
        directories: Callable[[], frozenset[str]],
        on_change: Callable[[], bool],
        on_tick: Callable[[], bool],
    ) -> None:
        self._directories = directories
        self._on_change = on_change
        self._on_tick = on_tick
        self._stop = threading.Event()
        self._lost: frozenset[str] = frozenset()
        self._armed = False
        #: Whether the files are read at every tick, because there are no file events.
        self.polling = False
        self.errors = 0
        self._thread = threading.Thread(target=self._run, name="pgmonkey-watcher", daemon=True)

    @property
    def alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait a second for it unless called from that thread."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._watch()
        except _Ended:
            return

    def _watch(self) -> None:
        """Watch until the directories change or the watch fails."""
        wanted = self._directories()
        watched = _identities(wanted)
        self._report_lost(frozenset(wanted - watched.keys()))
        try:
            if not watched:
                raise _NothingToWatch
            for number, batch in enumerate(file_events(sorted(watched), self._stop)):
                if number == 0 or batch:
                    # The files are read once when the watch has begun: a change before that made
                    # no event.
                    self._call(self._on_change)
                self._call(self._on_tick)
                if self.polling:
                    self.polling = False
                if not self._armed:
                    self._armed = True
                    events.emit("watch.started", directories=sorted(watched), mode="events")
                current = self._directories()
                if current != wanted or _identities(current) != watched:
                    return
        except _NothingToWatch:
            self._poll_once()
        except (OSError, RuntimeError) as error:  # watchfiles: no inotify instance, no watch left
            self.errors += 1
            if not self.polling:
                self.polling = True
                events.emit("watch.degraded", mode="polling", error=type(error).__name__)
            self._poll_once()

    def _poll_once(self) -> None:
        self._call(self._on_change)
        self._call(self._on_tick)
        self._stop.wait(_TICK / 1000)

    def _call(self, act: Callable[[], bool]) -> None:
        if not act():
            raise _Ended

    def _report_lost(self, lost: frozenset[str]) -> None:
        for directory in sorted(lost - self._lost):
            events.emit("watch.lost", directory=directory)
        for directory in sorted(self._lost - lost):
            events.emit("watch.restored", directory=directory)
        self._lost = lost


class _Ended(Exception):
    """The registry of this watcher is gone."""


class _NothingToWatch(Exception):
    """No directory is there."""


def _identities(directories: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return device and inode of each directory that exists.

    A directory that was deleted and made again, or a symlink with a new target, keeps its path and
    sends no event; device and inode differ.
    """
    found = {}
    for directory in directories:
        with suppress(OSError):
            status = Path(directory).stat()
            found[directory] = (status.st_dev, status.st_ino)
    return found
