"""The reloader: compares what the files say with what runs, and applies the differences."""

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

#: Seconds after which a file that reads badly is read again: it may have been half written.
_SETTLE: Final = 0.15
#: Reloads with a probe that run at once; a slow database holds up one place only.
_PARALLEL: Final = 8


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """Say what a reload came to.

    Args:
        applied: Names whose new configuration is in force.
        rejected: Names whose files cannot be used, with the problems; the last good
            configuration goes on serving. A failed probe has one problem, `probe.<reason>`.
        unchanged: Names whose files say what runs already.
        removed: Names whose file is gone.
    """

    applied: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class Reloader:
    """Keep the entries of a registry in step with its files.

    Args:
        path: The directory.
        loader: What reads its files.
        cache: Where the handles are.
    """

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
        # Held while the files are read and compared: one look at a time, whoever asked for it.
        # No checkout ever waits for it.
        self._looking = threading.Lock()
        self._places = threading.Semaphore(_PARALLEL)
        self._stopped = False

    def load(self, *, strict: bool) -> Scan:
        """Read the directory for the first time.

        Args:
            strict: Raise if anything is wrong; else only if the directory cannot be read.

        Raises:
            RegistryConfigError: with every problem of every file.
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
        """Return the directories that the files of the last look lie in."""
        return self._directories

    @property
    def successful(self) -> bool:
        """Tell whether all that the files say is in force."""
        return not self.problems and not any(entry.stale for entry in list(self.entries.values()))

    # Looking at the files

    def look(self) -> None:
        """Look at the files and apply what differs, without waiting for the probes."""
        self._look(time.monotonic())

    def reload(self) -> ReloadReport:
        """Look at the files, apply what differs, wait for the probes, and report."""
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
        """Compare the files with what runs, and set going what they ask for.

        Args:
            seen: When the change was seen, on the monotonic clock.
            again: Try failed probes again, though their pause is not over.
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
                # A new one is seen from here on, when it is in force or rejected: nobody may find
                # the name of a database that there is no telling anything of yet.
                self.entries[entry.name] = entry
        return unchanged, removed, {entry.name for entry in changed}, runners

    def _settled_scan(self) -> Scan:
        """Read the files; once more a moment later, if one reads badly that did not before."""
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
        """Note what the files want, and tell whether that is anything to do."""
        with entry.deciding:
            if entry.wanted is not None and entry.wanted.digest == config.digest:
                return again  # else its probe is under way, or waits for its next try
            if (
                entry.wanted is None
                and not entry.removed
                and entry.applied is not None
                and entry.applied.config.digest == config.digest
            ):
                if entry.stale:  # a bad file was mended to what runs
                    entry.settle()
                return False
            entry.wanted = config
            entry.wanted_since = seen
        return True

    def _set_going(self, entry: Entry) -> threading.Thread | None:
        """Apply what an entry wants: here if no connection is needed, else in a thread."""
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
        except RuntimeError as error:  # no thread can be had: what runs goes on
            with events.held_back(), entry.deciding:
                if (config := entry.wanted) is not None:
                    self._reject_probe(entry, config, _unexpected(config, error))
            return None
        return thread

    def _apply_in_turn(self, entry: Entry) -> None:
        more = True
        while more:  # what one step has to say is not kept until the next one is through
            with events.held_back(), entry.reloading, self._places:
                more = self._apply(entry)

    # Applying

    def _apply(self, entry: Entry) -> bool:
        """Bring one database to what its files want. The caller holds `entry.reloading`.

        Returns:
            Whether to look again: the files may want something else by now.
        """
        if (config := entry.wanted) is None or self._stopped:
            return False
        try:
            self._carry_out(entry, config)
        except Exception as error:  # noqa: BLE001 - no descriptor, no thread, no memory: tried again
            if not isinstance(error, ConnectError):
                error = _unexpected(config, error)
            with entry.deciding:
                if entry.wanted is config:
                    self._reject_probe(entry, config, error)
                    return False
        return True

    def _carry_out(self, entry: Entry, config: DatabaseConfig) -> None:
        """Prepare every handle, then swap every handle: all or none of them moves.

        If the files want something else by then, what was prepared is dropped.
        """
        handles = self._cache.of(entry.name)
        applied = self._next(entry, config, handles)
        # Each candidate is of its own handle, which the type checker cannot see.
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
            # Each is told, though one may refuse: it was opened or closed since, and what
            # there is to replace is prepared anew.
            elif all([_swap(handle, candidate) for handle, candidate in prepared]):  # noqa: C419 - all are called, also after one that refuses
                entry.wanted = None
                self._accept(entry, applied)

    def _next(self, entry: Entry, config: DatabaseConfig, handles: list[Handle]) -> Applied:
        """Return the version that follows all that were given out for this database."""
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
        self._cache.budget.wake()  # max_connections may be another one now
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
            return  # the same again: it was said
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
            if entry.removed:  # what came back cannot be used: its handles say so
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
        """Close the connections of a database whose file is gone; checkouts in progress end."""
        reason = "its file was removed from the registry"
        if entry.rejection is None:
            reason += "; when it comes back, this handle works again"
        else:
            reason += ", and what came back cannot be used:\n" + "\n".join(
                str(problem) for problem in entry.rejection.problems
            )
        for handle in self._cache.of(entry.name):
            handle.shut(DatabaseRemovedError(f"{entry.name}: {reason}"))

    def force(self, name: str, handle: Handle) -> None:
        """Replace the generation of a handle with the configuration that is in force.

        Raises:
            ReloadRejectedError: the probe failed; the old generation keeps serving.
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
        """Apply nothing any more: the registry was closed. What is being probed is dropped."""
        self._stopped = True

    # What is due

    def tick(self) -> None:
        """Try failed probes whose pause is over, and look for checkouts that last too long."""
        now = time.monotonic()
        for entry in list(self.entries.values()):
            if entry.retry_at is not None and now >= entry.retry_at:
                entry.retry_at = None
                self._set_going(entry)
        for handle in self._cache.all():
            handle.patrol(now)

    def forget(self) -> None:
        """Take new locks, in a child process whose parent may have held them."""
        self._looking = threading.Lock()
        self._places = threading.Semaphore(_PARALLEL)
        self._timing = threading.Lock()
        # What the parent has counted, the parent exports.
        self._durations = Timings()
        for entry in self.entries.values():
            entry.reloading = threading.Lock()
            entry.outcomes = Counter()
            entry.deciding = threading.Lock()
            if entry.wanted is not None:  # whoever was at it in the parent is not here
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
    """Let a handle move, and tell whether it did; one that was closed for good has no need to."""
    if isinstance(handle.target.gone, DatabaseRemovedError):
        handle.target.gone = None  # its file came back
    return handle.swap_to(candidate) or handle.target.gone is not None


def _drop(prepared: list[tuple[Any, Any]]) -> None:
    for handle, candidate in prepared:
        handle.drop(candidate)


def _unexpected(config: DatabaseConfig, error: Exception) -> ConnectError:
    """Return what is reported of a reload that failed for another reason than its connect."""
    return classify(error, config.secrets).error(config.name)
