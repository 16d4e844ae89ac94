"""Everything periodic of a registry: one thread, which sees changes and runs what is due."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from pgmonkey.errors import PgmonkeyError
from pgmonkey.pool._async.database import drop_closed_loops
from pgmonkey.pool.clock import monotonic
from pgmonkey.registry.watch import Watch, timer
from pgmonkey.registry.workers import Workers
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from pgmonkey.registry.record import Record
    from pgmonkey.registry.reload import Reloader

#: Background probes that run at once; a slow database holds up one of them.
_PROBES: Final = 4
#: Seconds between two ticks after which the process, or the machine, was stopped meanwhile.
_GAP: Final = 5.0


class Maintenance:
    """Watch the files, and twice a second do what is due: rescan, retries, probes, patrols.

    One thread does that until the registry is closed or dropped; what may take long runs in
    workers. A child process has no thread, and starts its own at its first connect. Without
    watching and probes there is no thread.

    Args:
        reloader: Reads the files and owns the records.
        path: The directory, for events and errors.
        watch: Whether to watch the files.
        rescan_interval: Seconds after which the files are read again even without a file event.
        probe_interval: Seconds between two background probes of a database, or `None`.
    """

    def __init__(
        self,
        reloader: Reloader,
        path: str,
        *,
        watch: bool,
        rescan_interval: float,
        probe_interval: float | None,
    ) -> None:
        self._reloader = reloader
        self._path = path
        self._watches = watch
        self._rescan_interval = rescan_interval
        self._rescan_at = 0.0
        self._ticked_at = 0.0
        self._probe_interval = probe_interval
        self._probes = Workers("pgmonkey-probe", _PROBES)
        self._thread: threading.Thread | None = None
        #: The pid of the parent, in a child process that has not used a database yet.
        self._forked_from: list[int] = []
        #: Set when the registry is closed or dropped.
        self.stopping = threading.Event()
        self._watch = Watch(reloader, self.stopping)
        # Guards the start of the thread. Never held while waiting.
        self._starting = threading.Lock()

    @property
    def watched(self) -> bool:
        """Whether the files should be watched; false in a child process until its first use."""
        return self._watches and not self._forked_from

    @property
    def watching(self) -> bool:
        """Whether the files are watched now."""
        thread = self._thread
        return self._watches and thread is not None and thread.is_alive()

    @property
    def polling(self) -> bool:
        """Whether the files are read at every tick because there are no file events."""
        return self._watch.polling

    @property
    def watcher_errors(self) -> int:
        """How often there were no file events."""
        return self._watch.errors

    def ensure_running(self) -> None:
        """Start the thread unless it runs; a child process reads the files first.

        Raises:
            PgmonkeyError: no thread can be started.
        """
        if self._forked_from:
            if self._watches:  # a password rotated since the fork would fail
                self._reloader.look(again=True, wait=True)
            with suppress(IndexError):  # another thread has emitted it
                parent = self._forked_from.pop()
                events.emit("fork.detected", path=self._path, pid=os.getpid(), parent=parent)
        if not self._watches and self._probe_interval is None:
            return
        with self._starting:
            if self._thread is not None or self.stopping.is_set():
                return
            self._rescan_at = monotonic() + self._rescan_interval
            self._ticked_at = time.time()
            thread = threading.Thread(target=self._run, name="pgmonkey-watcher", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise PgmonkeyError(
                    f"{self._path}: cannot start the thread of the registry: {error}"
                    "\n  hint: allow this process more threads, or open the registry with"
                    " watch=False and without probe_interval"
                ) from None
            self._thread = thread

    def look_for(self, record: Record) -> None:
        """Read the files, if they are watched, because a login of a database was refused."""
        if self._watches and not self.stopping.is_set():
            self._reloader.look_for(record)

    def _run(self) -> None:
        ticks = self._watch.ticks() if self._watches else timer(self.stopping)
        for moved in ticks:
            if self.stopping.is_set():
                return
            self._tick(moved)

    def _tick(self, moved: frozenset[str] | None) -> None:
        now, ticked_at = monotonic(), self._ticked_at
        # Wall-clock time: no other clock goes on while a hypervisor stops the machine.
        self._ticked_at = time.time()
        if self._watches and (
            moved is not None
            or now >= min(self._rescan_at, self._reloader.due)
            or abs(self._ticked_at - ticked_at) > _GAP
        ):
            self._rescan_at = now + self._rescan_interval
            self._reloader.look(moved=moved or frozenset())
        drop_closed_loops()
        for record in list(self._reloader.records.values()):
            if record.take_retry(now):
                self._reloader.start(record)
            if self._probe_interval is not None and record.take_probe(now):
                self._probe(record, self._probe_interval)
            for handle in record.handles():
                handle.patrol(now)

    def _probe(self, record: Record, interval: float) -> None:
        try:
            self._probes.submit(partial(record.probe, interval))
        except RuntimeError:  # no thread can be started now
            record.postpone_probe()

    def stop(self) -> None:
        """End the thread soon."""
        self.stopping.set()

    def join(self) -> None:
        """Wait up to a second until the thread has ended, unless this is it."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def forget(self) -> None:
        """Begin without threads in a child process."""
        stopped = self.stopping.is_set()
        self.stopping = threading.Event()
        if stopped:
            self.stopping.set()
        self._starting = threading.Lock()
        self._thread = None
        self._forked_from = [os.getppid()]
        self._watch = Watch(self._reloader, self.stopping)
        self._probes.forget()
