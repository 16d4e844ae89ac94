"""Tell when files may have changed. File events are hints: content counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import watchfiles

from pgmonkey.registry.greenlets import threads_are_greenlets
from pgmonkey.telemetry import events

#: Milliseconds: how often watchfiles looks for events, and how long it collects further ones.
_STEP: Final = 10
_DEBOUNCE: Final = 100
#: Milliseconds between two ticks.
_TICK: Final = 500


class Watch:
    """Watch the directories of a registry for file events, or poll when there are none.

    Args:
        directories: Returns the directories to watch.
        stop: Ends the watch when it is set.
    """

    def __init__(self, directories: Callable[[], frozenset[str]], stop: threading.Event) -> None:
        self._directories = directories
        self._stop = stop
        self._lost: frozenset[str] = frozenset()
        self._started = False
        # watchfiles waits outside of Python, where no other greenlet can take its turn.
        self._polls = threads_are_greenlets()
        #: Whether every tick is a change, because there are no file events.
        self.polling = self._polls
        #: How often there were no file events.
        self.errors = 0

    def ticks(self) -> Iterator[bool]:
        """Yield when the files may have changed, and twice a second; tell whether they may have."""
        while not self._stop.is_set():
            wanted = self._directories()
            watched = _identities(wanted)
            self._report_lost(frozenset(wanted - watched.keys()))
            try:
                if self._polls:
                    self._report_started(watched, "polling")
                elif watched:
                    yield from self._events(wanted, watched)
                    continue
            except (
                OSError,
                RuntimeError,
            ) as error:  # watchfiles: no inotify instance, no watch left
                self.errors += 1
                if not self.polling:
                    self.polling = True
                    events.emit("watch.degraded", mode="polling", error=type(error).__name__)
            yield True
            self._stop.wait(_TICK / 1000)

    def _events(
        self, wanted: frozenset[str], watched: dict[str, tuple[int, int]]
    ) -> Iterator[bool]:
        """Watch until the directories change."""
        # Not filtered by name: a Kubernetes update never names the files that are read.
        batches = watchfiles.watch(
            *sorted(watched),
            watch_filter=None,
            recursive=False,
            step=_STEP,
            debounce=_DEBOUNCE,
            rust_timeout=_TICK,
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
        )
        for number, batch in enumerate(batches):
            # The files are read once when the watch has begun: a change before that made no event.
            yield number == 0 or bool(batch)
            self.polling = False
            self._report_started(watched, "events")
            current = self._directories()
            if current != wanted or _identities(current) != watched:
                return

    def _report_started(self, directories: Iterable[str], mode: str) -> None:
        if not self._started:
            self._started = True
            events.emit("watch.started", directories=sorted(directories), mode=mode)

    def _report_lost(self, lost: frozenset[str]) -> None:
        for directory in sorted(lost - self._lost):
            events.emit("watch.lost", directory=directory)
        for directory in sorted(self._lost - lost):
            events.emit("watch.restored", directory=directory)
        self._lost = lost


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


def timer(stop: threading.Event) -> Iterator[bool]:
    """Yield twice a second, without watching any file."""
    while not stop.is_set():
        yield False
        stop.wait(_TICK / 1000)
