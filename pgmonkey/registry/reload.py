"""Look at the files of a registry, and hand every change to the record of its database."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from pgmonkey.config.belief import SETTLE, Look
from pgmonkey.errors import Problem, RegistryConfigError
from pgmonkey.pool.clock import monotonic
from pgmonkey.registry.record import Record, emit_rejected
from pgmonkey.registry.workers import Workers
from pgmonkey.telemetry import events
from pgmonkey.telemetry.timings import Durations, Timings

if TYPE_CHECKING:
    from pgmonkey.config.directory import DirectoryLoader, Scan
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.registry.record import Shared

#: Seconds for which a reload waits for files that are rewritten again and again.
_LONGEST_SETTLING: Final = 2.0
#: Reloads that connect at once; a slow database holds up one of them.
_PARALLEL: Final = 8
#: Seconds between two looks that refused logins ask for.
_BETWEEN_REFUSALS: Final = 0.2


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The result of a reload: the names of the databases, by what happened to them.

    Args:
        applied: Their new configuration is in use.
        rejected: Their files cannot be used, with the problems; the last good configuration
            keeps serving. A failed probe is one problem, `probe.<reason>`. If one of its secrets
            has changed, the new one is used, and the database is in `applied`, too.
        unchanged: Their files match the configuration in use.
        removed: Their file was removed.
    """

    applied: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class _Found(NamedTuple):
    """What a look at the files found, and the reloads that it began."""

    unchanged: list[str]
    removed: list[str]
    changed: list[Record]
    begun: list[threading.Event]


class Reloader:
    """Own the records of a registry, and compare the files with them.

    Args:
        loader: Reads the files.
        shared: What the records share.
        removal_delay: Seconds for which a file must be missing until it counts as removed.
    """

    def __init__(self, loader: DirectoryLoader, shared: Shared, removal_delay: float) -> None:
        self._loader = loader
        self._shared = shared
        self._removal_delay = removal_delay
        #: The records, by name. Read without a lock.
        self.records: dict[str, Record] = {}
        #: Problems of the directory itself.
        self.problems: tuple[Problem, ...] = ()
        #: The directories of the files that were read last.
        self.directories: frozenset[str] = frozenset()
        #: Those that may not be listed, with the files that are read there.
        self.unlisted: Mapping[str, frozenset[str]] = {}
        #: When the files must be read again to believe what was seen, on the monotonic clock.
        self.due = float("inf")
        #: When the files that are in force were read, in unix time. What was written later is not in
        #: them, even if they came into force later: a rotation takes half a second.
        self.last_success_at: float | None = None
        self._looked_at = 0.0
        #: When the files were read of which every record knows what they say, in unix time.
        self._read_at = 0.0
        self._closed_by: str | None = None
        self._workers = Workers("pgmonkey-reload", _PARALLEL)
        self._begin()

    def _begin(self) -> None:
        self._durations = Timings()
        # Guards `_durations`.
        self._timing = threading.Lock()
        # Held while the files are read and compared: one look at a time. No checkout waits for it.
        self._looking = threading.Lock()

    def load(self, *, strict: bool) -> Scan:
        """Read the directory for the first time.

        Raises `RegistryConfigError` with every problem of every file; unless `strict`, only if the
        directory cannot be read.
        """
        self._read_at = time.time()
        scan = self._loader.scan()
        if strict:
            scan.raise_for_problems()
        elif not scan.directory_ok:
            raise RegistryConfigError(scan.general)
        for name in scan.present:
            config = scan.configs.get(name)
            record = self.records[name] = Record(name, self._shared, config)
            if config is None:
                record.declare(None, 0.0, again=False, problems=scan.problems[name])
        self.problems = scan.general
        self.directories, self.unlisted = scan.watched_directories, scan.unlisted
        self._note_success()
        return scan

    @property
    def successful(self) -> bool:
        """Whether everything that the files say is in force."""
        return not self.problems and not any(record.rejection for record in self._all())

    # Looking at the files

    def reload(self) -> ReloadReport:
        """Read the files, apply the differences, wait for that, and return a report.

        A file that is missing counts as removed at once.
        """
        found = self.look(again=True, asked=True, wait=True)
        for begun in found.begun:
            begun.wait()
        rejected = {
            record.name: record.rejection.problems for record in self._all() if record.rejection
        }
        for problem in self.problems:
            key = problem.database or problem.path
            rejected[key] = (*rejected.get(key, ()), problem)
        applied = [one.name for one in found.changed if not self._closed_by and not one.failed]
        return ReloadReport(
            tuple(sorted(applied)),
            rejected,
            tuple(sorted(found.unchanged)),
            tuple(sorted(found.removed)),
        )

    def look_for(self, record: Record) -> None:
        """Read the files because the server refused a login of a database.

        Callers that ask while the files are being read share the next look: sixty databases whose
        passwords were rotated do not read the directory sixty times. A failed probe of this
        database is repeated at once: perhaps the server had not been told yet.
        """
        asked = monotonic()
        self.look(after=asked, wait=True)
        if record.take_retry(float("inf")):
            self.start(record)

    def look(
        self,
        *,
        again: bool = False,
        after: float | None = None,
        asked: bool = False,
        moved: frozenset[str] = frozenset(),
        wait: bool = False,
    ) -> _Found:
        """Read the files, and begin to apply the differences.

        Args:
            again: Repeat failed probes even if their pause is not over.
            after: Do nothing if the files were read after this moment, on the monotonic clock.
            asked: A file that is missing counts as removed at once.
            moved: Files that were renamed into place, as file events say.
            wait: Wait a moment for files that may be half written; else `due` says when to look.
        """
        found = _Found([], [], [], [])
        with events.held_back(), self._looking:
            if after is not None:
                if self._looked_at > after and not self._is_settling():
                    return found
                time.sleep(max(0.0, self._looked_at + _BETWEEN_REFUSALS - monotonic()))
            self._looked_at = monotonic()
            read_at, scan = time.time(), self._scan(asked=asked, moved=moved)
            while wait and self._is_settling():
                time.sleep(max(0.0, self.due - monotonic()))
                read_at, scan = time.time(), self._scan(asked=asked, moved=moved)
            gone = self._compare(scan, found, again=again, read_at=read_at)
        for record in gone:
            record.shut_handles()
        return found

    def _scan(self, *, asked: bool, moved: frozenset[str]) -> Scan:
        look = Look(monotonic(), self._removal_delay, asked, moved)
        scan = self._loader.scan(look, self._last_good)
        self.directories, self.unlisted = scan.watched_directories, scan.unlisted
        self.due = float("inf") if scan.due is None else scan.due
        return scan

    def _is_settling(self) -> bool:
        now = monotonic()
        return self.due <= now + SETTLE and now < self._looked_at + _LONGEST_SETTLING

    def _compare(self, scan: Scan, found: _Found, *, again: bool, read_at: float) -> list[Record]:
        """Compare the files with the records, and return those that may not be used any more."""
        gone = []
        for name in scan.present:
            config = scan.configs.get(name) or scan.kept.get(name)
            problems = scan.problems.get(name, ())
            record = self.records.get(name) or Record(name, self._shared)
            if record.declare(config, self._looked_at, again=again, problems=problems):
                found.changed.append(record)
            elif problems:
                self._add(record)
                gone.append(record)
            else:
                found.unchanged.append(name)
        for name, record in list(self.records.items()):
            if name not in scan.present and record.declared:
                record.remove()
                found.removed.append(name)
                gone.append(record)
        if scan.general and scan.general != self.problems:
            emit_rejected(None, scan.general)
        self.problems = scan.general
        self._read_at = read_at  # not before: a reload that ends meanwhile is one of older files
        for record in found.changed:
            if (begun := self.start(record)) is not None:
                found.begun.append(begun)
            # A new database is visible from here on, when it is in force or rejected: before,
            # there is no state to report.
            self._add(record)
        return gone

    def _last_good(self, name: str) -> DatabaseConfig | None:
        record = self.records.get(name)
        return record.last_good if record is not None else None

    def _add(self, record: Record) -> None:
        self.records[record.name] = record
        if self._closed_by:
            record.close(self._closed_by)

    # Applying

    def start(self, record: Record) -> threading.Event | None:
        """Let a record apply what its files say: here if that waits for nothing, else in a thread.

        Returns:
            What is set when that is done; `None` if it is done.
        """
        if record.is_quiet():
            record.reload(self._applied)
            return None
        try:
            return self._workers.submit(partial(record.reload, self._applied))
        except RuntimeError as error:  # no thread can be started: the old version keeps serving
            record.note_failure(error)
            return None

    def _applied(self, seconds: float) -> None:
        with self._timing:
            self._durations.record(seconds)
        self._note_success()

    def _note_success(self) -> None:
        read_at = self._read_at  # before the check: a look that ends meanwhile has read them later
        if self.successful and not any(record.is_behind for record in self._all()):
            self.last_success_at = read_at

    def durations(self) -> Durations:
        """Return how long reloads took, from the change that was seen to its end."""
        with self._timing:
            return self._durations.read()

    # The end, and a child process

    def close(self, owner: str) -> list[Record]:
        """Return all records, to be closed; one that a look under way adds is closed, too.

        Args:
            owner: What was closed, for the error of later uses.
        """
        self._closed_by = owner
        return self._all()

    def forget(self) -> None:
        """Begin with new locks and without counts in a child process."""
        self._begin()
        self._workers.forget()
        for record in self._all():
            record.forget()

    def _all(self) -> list[Record]:
        return list(self.records.values())
