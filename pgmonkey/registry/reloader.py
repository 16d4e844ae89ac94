"""Compare the files with the configurations in use, and apply the differences."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.config.problems import failed_probe
from pgmonkey.errors import (
    LASTING,
    ConnectError,
    DatabaseRemovedError,
    Problem,
    RegistryConfigError,
)
from pgmonkey.pool.async_handle import AsyncDatabase
from pgmonkey.pool.connect_failure import classify
from pgmonkey.pool.target import Applied
from pgmonkey.registry.entry import Entry, Rejection
from pgmonkey.telemetry import events
from pgmonkey.telemetry.status import RegistryStatus
from pgmonkey.telemetry.timings import Timings

if TYPE_CHECKING:
    from pathlib import Path

    from pgmonkey.config.directory import DirectoryLoader, Scan
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.registry.cache import Handle, HandleCache

#: Seconds after which an invalid file is read again: it may have been half written.
_SETTLE: Final = 0.15
#: Reloads with a probe that run at once; a slow database blocks only one of them.
_PARALLEL: Final = 8


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The result of a reload: the names of the databases, by what happened to them.

    Args:
        applied: Their new configuration is in use.
        rejected: Their files cannot be used, with the problems; the last good configuration
            keeps serving. A failed probe is one problem, `probe.<reason>`.
        unchanged: Their files match the configuration in use.
        removed: Their file was removed.
    """

    applied: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class Reloader:
    """Apply the files of a registry, which the loader reads, to the handles in its cache."""

    def __init__(self, path: Path, loader: DirectoryLoader, cache: HandleCache) -> None:
        self.path = path
        self._loader = loader
        self._cache = cache
        self.entries: dict[str, Entry] = {}
        self.problems: tuple[Problem, ...] = ()
        self._durations = Timings()
        # Guards `_durations`: databases are reloaded side by side.
        self._timing = threading.Lock()
        self.last_success_at: float | None = None
        self._directories: frozenset[str] = frozenset()
        # Held while the files are read and compared: one look at a time. No checkout waits for it.
        self._looking = threading.Lock()
        self._places = threading.Semaphore(_PARALLEL)
        self._stopped = False

    def load(self, *, strict: bool) -> Scan:
        """Read the directory for the first time.

        Raises `RegistryConfigError` with every problem of every file; unless `strict`, only if the
        directory cannot be read.
        """
        scan = self._loader.scan()
        if strict:
            scan.raise_for_problems()
        elif not scan.directory_ok:
            raise RegistryConfigError(scan.general)
        for name, config in scan.configs.items():
            self.entries[name] = Entry(name, Applied(config))
        for name in scan.present - scan.configs.keys():
            self._reject_files(
                self.entries.setdefault(name, Entry(name)), scan.problems.get(name) or scan.general
            )
        self.problems = scan.general
        self._directories = scan.watched_directories
        if self.successful:
            self.last_success_at = time.time()
        return scan

    def watched_directories(self) -> frozenset[str]:
        """Return the directories of the files that were read last."""
        return self._directories

    @property
    def successful(self) -> bool:
        """Tell whether all files are applied."""
        return not self.problems and not any(entry.stale for entry in list(self.entries.values()))

    # Looking at the files

    def look(self) -> None:
        """Read the files and apply the differences, without waiting for the probes."""
        self._look(time.monotonic())

    def reload(self) -> ReloadReport:
        """Read the files, apply the differences, wait for the probes, and return a report."""
        unchanged, removed, changed, runners = self._look(time.monotonic(), again=True)
        for runner in runners:
            runner.join()
        rejected = {}
        applied = []
        for name, entry in list(self.entries.items()):
            if entry.rejection is not None:
                rejected[name] = entry.rejection.problems
            elif name in changed and not self._stopped:
                applied.append(name)
        for problem in self.problems:
            key = problem.database or problem.path
            rejected[key] = (*rejected.get(key, ()), problem)
        return ReloadReport(
            tuple(sorted(applied)),
            rejected,
            tuple(sorted(unchanged)),
            tuple(sorted(removed)),
        )

    def _look(
        self, seen: float, *, again: bool = False
    ) -> tuple[list[str], list[str], set[str], list[threading.Thread]]:
        """Compare the files with the configurations in use, and begin to apply the differences.

        Args:
            seen: When the change was seen, on the monotonic clock.
            again: Repeat failed probes even if their pause is not over.
        """
        with events.held_back(), self._looking:
            scan = self._settled_scan()
            self._directories = scan.watched_directories or self._directories
            unchanged, removed = [], []
            changed: list[Entry] = []
            for name in scan.present:
                config = scan.configs.get(name)
                entry = self.entries.get(name) or Entry(name)
                if config is None:
                    self._reject_files(entry, scan.problems.get(name) or scan.general)
                    self.entries[name] = entry
                elif self._differs(entry, config, seen, again=again):
                    changed.append(entry)
                else:
                    unchanged.append(name)
            if scan.directory_ok:
                for name, entry in list(self.entries.items()):
                    if name not in scan.present and entry.declared:
                        self._remove(entry)
                        removed.append(name)
            self._note_general(scan.general)
            runners = []
            for entry in changed:
                if (thread := self._set_going(entry)) is not None:
                    runners.append(thread)
                # A new database is visible from here on, when it is applied or rejected: before,
                # there is no state to report.
                self.entries[entry.name] = entry
        return unchanged, removed, {entry.name for entry in changed}, runners

    def _settled_scan(self) -> Scan:
        """Read the files; read them again a moment later if there are new problems."""
        scan = self._loader.scan()
        news = any(
            (entry := self.entries.get(name)) is None
            or entry.rejection is None
            or entry.rejection.problems != problems
            for name, problems in scan.problems.items()
        )
        if news or scan.general != self.problems:
            time.sleep(_SETTLE)  # a writer may be between truncating and writing
            scan = self._loader.scan()
        return scan

    def _differs(self, entry: Entry, config: DatabaseConfig, seen: float, *, again: bool) -> bool:
        """Record what the files say, and tell whether there is anything to apply."""
        with entry.deciding:
            if entry.wanted is not None and entry.wanted.digest == config.digest:
                return again  # if false, its probe is running or waits for its next try
            if (
                entry.wanted is None
                and not entry.removed
                and entry.applied is not None
                and entry.applied.config.digest == config.digest
            ):
                if entry.stale:  # an invalid file was mended to the configuration in use
                    entry.settle()
                return False
            entry.wanted = config
            entry.wanted_since = seen
        return True

    def _set_going(self, entry: Entry) -> threading.Thread | None:
        """Apply the new configuration: here if no probe is needed, else in a thread."""
        needs_probe = any(handle.is_open() for handle in self._cache.of(entry.name))
        if not needs_probe and entry.reloading.acquire(blocking=False):
            with events.held_back():
                try:
                    while self._apply(entry):
                        pass
                finally:
                    entry.reloading.release()
            return None
        thread = threading.Thread(
            target=self._apply_in_turn,
            args=(entry,),
            name=f"pgmonkey-reload-{entry.name}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be started: the old one keeps serving
            with events.held_back(), entry.deciding:
                if (config := entry.wanted) is not None:
                    self._reject_probe(entry, config, _unexpected(config, error))
            return None
        return thread

    def _apply_in_turn(self, entry: Entry) -> None:
        more = True
        while more:  # the events of one step are not held back until the next one ends
            with events.held_back(), entry.reloading, self._places:
                more = self._apply(entry)

    # Applying

    def _apply(self, entry: Entry) -> bool:
        """Apply the newest configuration of one database. The caller holds `entry.reloading`.

        Returns:
            Whether to call again: the files may have changed meanwhile.
        """
        if (config := entry.wanted) is None or self._stopped:
            return False
        try:
            self._carry_out(entry, config)
        except Exception as error:  # noqa: BLE001 - no descriptor, no thread, no memory: retried
            if not isinstance(error, ConnectError):
                error = _unexpected(config, error)
            with entry.deciding:
                if entry.wanted is config:
                    self._reject_probe(entry, config, error)
                    return False
        return True

    def _carry_out(self, entry: Entry, config: DatabaseConfig) -> None:
        """Prepare every handle, then swap every handle: all of them or none.

        If the files have changed meanwhile, drop what was prepared.
        """
        handles = self._cache.of(entry.name)
        applied = self._next(entry, config, handles)
        # Each candidate belongs to the handle beside it; the type checker cannot see that.
        prepared: list[tuple[Any, Any]] = []
        try:
            prepared.extend((handle, handle.prepare(applied)) for handle in handles)
        except BaseException:
            _drop(prepared)
            raise
        with entry.deciding:
            handles_now = self._cache.of(entry.name)
            if entry.wanted is not config or handles_now != handles or self._stopped:
                _drop(prepared)
            # All are swapped even if one refuses because it was opened or closed meanwhile: then
            # everything is prepared again.
            elif all([_swap(handle, candidate) for handle, candidate in prepared]):  # noqa: C419 - all are called, also after one that refuses
                entry.wanted = None
                self._accept(entry, applied)

    def _next(self, entry: Entry, config: DatabaseConfig, handles: list[Handle]) -> Applied:
        """Return the version that follows all versions of this database so far."""
        newest = max(
            (handle.target.applied for handle in handles),
            key=lambda applied: applied.version,
            default=entry.applied,
        )
        if newest is None:
            return Applied(config)
        if entry.applied is not None and entry.applied.version > newest.version:
            newest = entry.applied
        return newest.next(config)

    def _accept(self, entry: Entry, applied: Applied) -> None:
        before = entry.applied
        entry.applied = applied
        entry.removed = False
        entry.settle()
        changed = tuple(applied.config.changed_keys(before.config)) if before else ("*",)
        entry.ended("applied", time.time(), changed)
        self._cache.budget.wake()  # max_connections may have changed
        with self._timing:
            self._durations.record(time.monotonic() - entry.wanted_since)
        if before is not None and before.config.connection_type != applied.config.connection_type:
            self._cache.defaults.pop(entry.name, None)
        if self.successful:
            self.last_success_at = time.time()
        events.emit(
            "config.applied",
            database=entry.name,
            version=applied.version,
            changed=list(changed),
        )

    def _reject_probe(self, entry: Entry, config: DatabaseConfig, error: ConnectError) -> None:
        lasting = error.reason in LASTING
        pause = entry.postpone(time.monotonic(), lasting=lasting)
        problem = failed_probe(config.path, entry.name, error)
        known = entry.rejection
        entry.rejection = Rejection((problem,), error.reason)
        if known is not None and known.problems == (problem,):
            return  # the same problem again: it was reported
        entry.ended("rejected", time.time(), (str(problem),))
        events.emit(
            "database.probe_failed",
            database=entry.name,
            reason=error.reason,
            error=problem.message,
            retry_in=round(pause, 3),
        )
        self._emit_rejected(entry.name, (problem,))

    def _reject_files(self, entry: Entry, problems: tuple[Problem, ...]) -> None:
        with entry.deciding:
            entry.wanted = None
            entry.retry_at = None
            if entry.rejection is not None and entry.rejection.problems == problems:
                return
            entry.rejection = Rejection(problems)
            entry.ended("rejected", time.time(), tuple(map(str, problems)))
            if entry.removed:  # an invalid file came back: its handles report that
                self.shut_removed(entry)
            self._emit_rejected(entry.name, problems)

    def _note_general(self, problems: tuple[Problem, ...]) -> None:
        known, self.problems = self.problems, problems
        if problems and problems != known:
            self._emit_rejected(None, problems)

    def _emit_rejected(self, name: str | None, problems: tuple[Problem, ...]) -> None:
        first = problems[0]
        events.emit(
            "config.rejected",
            database=name,
            file=first.path,
            line=first.line,
            key=first.key,
            code=first.code,
            problems=[str(problem) for problem in problems],
        )

    def _remove(self, entry: Entry) -> None:
        with entry.deciding:
            entry.wanted = None
            entry.settle()
            entry.removed = True
            entry.ended("removed", time.time())
            self.shut_removed(entry)
            events.emit("config.removed", database=entry.name)

    def shut_removed(self, entry: Entry) -> None:
        """Close the connections of a database whose file was removed; checkouts finish."""
        reason = "its file was removed from the registry"
        if entry.rejection is None:
            reason += "; when it comes back, this handle works again"
        else:
            reason += ", and the file that came back cannot be used:\n" + "\n".join(
                str(problem) for problem in entry.rejection.problems
            )
        for handle in self._cache.of(entry.name):
            handle.shut(DatabaseRemovedError(f"{entry.name}: {reason}"))

    def force(self, name: str, handle: Handle) -> None:
        """Replace the connections of a handle, with the same configuration.

        Raises:
            ReloadRejectedError: the probe failed; the old connections keep serving.
        """
        entry = self.entries[name]
        if isinstance(handle, AsyncDatabase):
            handle.request_reload()
            return
        handle.force_reload()
        with entry.reloading:
            if entry.applied is None or entry.applied.version < handle.target.applied.version:
                entry.applied = handle.target.applied

    def stop(self) -> None:
        """Apply nothing any more, because the registry was closed. Drop what is being probed."""
        self._stopped = True

    # Periodic work

    def tick(self) -> None:
        """Repeat failed probes whose pause is over, and report checkouts that last too long."""
        now = time.monotonic()
        for entry in list(self.entries.values()):
            if entry.retry_at is not None and now >= entry.retry_at:
                entry.retry_at = None
                self._set_going(entry)
        for handle in self._cache.all():
            handle.patrol(now)

    def forget(self) -> None:
        """Take new locks in a forked child: the parent may have held them."""
        self._looking = threading.Lock()
        self._places = threading.Semaphore(_PARALLEL)
        self._timing = threading.Lock()
        # The parent exports its own counts.
        self._durations = Timings()
        for entry in self.entries.values():
            entry.reloading = threading.Lock()
            entry.outcomes = Counter()
            entry.deciding = threading.Lock()
            if entry.wanted is not None:  # the thread that applied it is not in the child
                entry.retry_at = 0.0

    # Status

    def status(
        self, *, watched: bool, watching: bool, polling: bool, watcher_errors: int
    ) -> RegistryStatus:
        """Return the state of everything as plain values."""
        by_name: dict[str, list[Handle]] = {}
        for handle in self._cache.all():
            by_name.setdefault(handle.name, []).append(handle)
        entries = sorted(self.entries.items())
        with self._timing:
            durations = self._durations.read()
        return RegistryStatus(
            path=str(self.path),
            databases=tuple(
                entry.status([handle.status() for handle in by_name.get(name, ())])
                for name, entry in entries
            ),
            problems=self.problems,
            watched=watched,
            watching=watching,
            polling=polling,
            watcher_errors=watcher_errors,
            last_reload_successful=self.successful,
            last_reload_success_at=self.last_success_at,
            reload_durations=durations,
        )


def _swap(handle: Any, candidate: Any) -> bool:
    """Swap a handle to its candidate; return false if it must be prepared again."""
    if isinstance(handle.target.gone, DatabaseRemovedError):
        handle.target.gone = None  # its file came back
    return handle.swap_to(candidate) or handle.target.gone is not None


def _drop(prepared: list[tuple[Any, Any]]) -> None:
    for handle, candidate in prepared:
        handle.drop(candidate)


def _unexpected(config: DatabaseConfig, error: Exception) -> ConnectError:
    """Return the error of a reload that failed for another reason than its connect."""
    return classify(error, config.secrets).error(config.name)
