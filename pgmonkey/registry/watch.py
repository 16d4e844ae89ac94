"""Tell when files may have changed. File events are hints: content counts."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import watchfiles

from pgmonkey.config.secret_files import Signature, signature_of
from pgmonkey.pool.clock import monotonic
from pgmonkey.registry.greenlets import threads_are_greenlets
from pgmonkey.telemetry import events

#: Milliseconds: how often watchfiles looks for events, and how long it collects further ones.
_STEP: Final = 10
_DEBOUNCE: Final = 100
#: Milliseconds between two ticks.
_TICK: Final = 500

#: A tick: `None`, or, if files may have changed, the paths that were renamed into place.
Tick = frozenset[str] | None
_CHANGED: Final[frozenset[str]] = frozenset()
#: Why a directory has no file events although there are some.
_UNLISTED: Final = "the directory may be searched, but not listed"


class Files(Protocol):
    """What the watch wants to know of the files."""

    directories: frozenset[str]
    unlisted: Mapping[str, frozenset[str]]
    due: float


class Watch:
    """Watch the directories of a registry for file events, or poll where there are none.

    Args:
        files: The directories to watch, and when the files must be read in any case.
        stop: Ends the watch when it is set.
    """

    def __init__(self, files: Files, stop: threading.Event) -> None:
        self._files = files
        self._stop = stop
        self._lost: frozenset[str] = frozenset()
        self._started = False
        #: The directories without events that were reported, and why there are none.
        self._degraded: Mapping[str, str] = {}
        # watchfiles waits outside of Python, where no other greenlet can take its turn.
        self._polls = threads_are_greenlets()
        #: Whether every tick is a change, because there are no file events.
        self.polling = self._polls
        #: How often there were no file events.
        self.errors = 0

    def ticks(self) -> Iterator[Tick]:
        """Yield when the files may have changed, and twice a second."""
        while not self._stop.is_set():
            wanted = self._files.directories
            identities = _identities(wanted)
            self._report_lost(frozenset(wanted - identities.keys()))
            unlisted = self._files.unlisted
            watched = identities.keys() - unlisted.keys()
            try:
                if self._polls:
                    self._report_started(identities, "polling")
                elif watched:
                    yield from self._events(wanted, identities, unlisted)
                    continue
            # watchfiles: no inotify instance, no watch left
            except (OSError, RuntimeError) as error:
                self.errors += 1
                self.polling = True
                self._report_degraded(
                    {**dict.fromkeys(unlisted, _UNLISTED), **dict.fromkeys(watched, str(error))}
                )
            yield _CHANGED
            self._stop.wait(min(_TICK / 1000, max(0.0, self._files.due - monotonic())))

    def _events(
        self,
        wanted: frozenset[str],
        identities: Mapping[str, tuple[int, int]],
        unlisted: Mapping[str, frozenset[str]],
    ) -> Iterator[Tick]:
        """Watch until the directories change, or the files must be read in any case."""
        signatures = _signatures(unlisted)
        # Not filtered by name: a Kubernetes update never names the files that are read.
        batches = watchfiles.watch(
            *sorted(identities.keys() - unlisted.keys()),
            watch_filter=None,
            recursive=False,
            step=_STEP,
            debounce=_DEBOUNCE,
            rust_timeout=_TICK,
            yield_on_timeout=True,
            stop_event=_Due(self._files, self._stop),
            raise_interrupt=False,
        )
        for number, batch in enumerate(batches):
            before, signatures = signatures, _signatures(unlisted)
            # The files are read once when the watch has begun: a change before that made no event.
            changed = number == 0 or batch or signatures != before
            yield renamed_into_place(batch) if changed else None
            self.polling = False
            self._report_started(identities.keys() - unlisted.keys(), "events")
            self._report_degraded(dict.fromkeys(unlisted, _UNLISTED))
            current = self._files.directories
            if current != wanted or self._files.unlisted != unlisted:
                return
            if _identities(current) != identities:
                return
        yield None  # what is due

    def _report_started(self, directories: Iterable[str], mode: str) -> None:
        if not self._started:
            self._started = True
            events.emit("watch.started", directories=sorted(directories), mode=mode)

    def _report_degraded(self, reasons: Mapping[str, str]) -> None:
        new = reasons.items() - self._degraded.items()
        for reason in sorted({reason for _, reason in new}):
            directories = sorted(directory for directory, why in new if why == reason)
            events.emit("watch.degraded", mode="polling", directories=directories, reason=reason)
        self._degraded = reasons

    def _report_lost(self, lost: frozenset[str]) -> None:
        for directory in sorted(lost - self._lost):
            events.emit("watch.lost", directory=directory)
        for directory in sorted(self._lost - lost):
            events.emit("watch.restored", directory=directory)
        self._lost = lost


class _Due:
    """Tell watchfiles to stop when the registry stops, or when the files must be read again."""

    def __init__(self, files: Files, stop: threading.Event) -> None:
        self._files = files
        self._stop = stop

    def is_set(self) -> bool:
        return self._stop.is_set() or monotonic() >= self._files.due


def renamed_into_place(
    batch: Iterable[tuple[watchfiles.Change, str]],
    exists: Callable[[str], bool] = os.path.lexists,
) -> frozenset[str]:
    """Return the paths that a batch of events says were written under another name before.

    A rename shows as a file that came and went beside one that came. A file that was made under
    its own name, and may be half written, shows as one that came, alone.

    Args:
        batch: The events, without an order.
        exists: Tells whether something has a path now: a file that went and came again.
    """
    added = {path for change, path in batch if change is watchfiles.Change.added}
    deleted = {path for change, path in batch if change is watchfiles.Change.deleted}
    came = added - deleted
    temporaries = Counter(Path(path).parent for path in added & deleted if not exists(path))
    temporaries.subtract(Path(path).parent for path in came)
    return frozenset(path for path in came if temporaries[Path(path).parent] >= 0)


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


def _signatures(unlisted: Mapping[str, frozenset[str]]) -> dict[str, Signature]:
    """Return what changes when one of the files in directories without events changes."""
    found = {}
    for paths in unlisted.values():
        for path in paths:
            with suppress(OSError):
                found[path] = signature_of(Path(path).stat())
    return found


def timer(stop: threading.Event) -> Iterator[Tick]:
    """Yield twice a second, without watching any file."""
    while not stop.is_set():
        yield None
        stop.wait(_TICK / 1000)
