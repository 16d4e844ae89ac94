"""Look at the files of a registry, and hand every change to the record of its database."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

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

#: Seconds after which an invalid file is read again: it may have been half written.
_SETTLE: Final = 0.15
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


class _Look(NamedTuple):
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
    """

    def __init__(self, loader: DirectoryLoader, shared: Shared) -> None:
        self._loader = loader
        self._shared = shared
        #: The records, by name. Read without a lock.
        self.records: dict[str, Record] = {}
        #: Problems of the directory itself.
        self.problems: tuple[Problem, ...] = ()
        #: The directories of the files that were read last.
        self.directories: frozenset[str] = frozenset()
        #: When everything that the files said was last in force, in unix time.
        self.last_success_at: float | None = None
        self._looked_at = 0.0
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
        scan = self._loader.scan()
        if strict:
            scan.raise_for_problems()
        elif not scan.directory_ok:
            raise RegistryConfigError(scan.general)
        for name in scan.present:
            config = scan.configs.get(name)
            record = self.records[name] = Record(name, self._shared, config)
            if config is None:
                problems = scan.problems.get(name) or scan.general
                record.declare(None, 0.0, again=False, problems=problems)
        self.problems = scan.general
        self.directories = scan.watched_directories
        self._note_success()
        return scan

    @property
    def successful(self) -> bool:
        """Whether everything that the files say is in force."""
        return not self.problems and not any(record.rejection for record in self._all())

    # Looking at the files

    def reload(self) -> ReloadReport:
        """Read the files, apply the differences, wait for that, and return a report."""
        look = self.look(again=True)
        for begun in look.begun:
            begun.wait()
        rejected = {
            record.name: record.rejection.problems for record in self._all() if record.rejection
        }
        for problem in self.problems:
            key = problem.database or problem.path
            rejected[key] = (*rejected.get(key, ()), problem)
        applied = [one.name for one in look.changed if not self._closed_by and not one.failed]
        return ReloadReport(
            tuple(sorted(applied)),
            rejected,
            tuple(sorted(look.unchanged)),
            tuple(sorted(look.removed)),
        )

    def look_for(self, record: Record) -> None:
        """Read the files because the server refused a login of a database.

        Callers that ask while the files are being read share the next look: sixty databases whose
        passwords were rotated do not read the directory sixty times. A failed probe of this
        database is repeated at once: perhaps the server had not been told yet.
        """
        asked = monotonic()
        self.look(after=asked)
        if record.take_retry(float("inf")):
            self.start(record)

    def look(self, *, again: bool = False, after: float | None = None) -> _Look:
        """Read the files, and begin to apply the differences.

        Args:
            again: Repeat failed probes even if their pause is not over.
            after: Do nothing if the files were read after this moment, on the monotonic clock.
        """
        look = _Look([], [], [], [])
        with events.held_back(), self._looking:
            if after is not None:
                if self._looked_at > after:
                    return look
                time.sleep(max(0.0, self._looked_at + _BETWEEN_REFUSALS - monotonic()))
            self._looked_at = monotonic()
            gone = self._compare(look, again=again)
        for record in gone:
            record.shut_handles()
        return look

    def _compare(self, look: _Look, *, again: bool) -> list[Record]:
        """Compare the files with the records, and return those that may not be used any more."""
        seen = self._looked_at
        scan = self._settled_scan()
        kept = self._kept(scan)
        self.directories = scan.watched_directories.union(
            *(config.watched_directories for config in kept.values())
        )
        gone = []
        for name in scan.present | kept.keys():
            record = self.records.get(name) or Record(name, self._shared)
            config = scan.configs.get(name)
            if config is not None:
                problems = scan.problems.get(name, ())
            elif name in scan.present:
                config, problems = kept.get(name), scan.problems.get(name) or scan.general
            else:  # the directory cannot be read: nothing new is known about the file
                config, problems = kept[name], record.problems
            if record.declare(config, seen, again=again, problems=problems):
                look.changed.append(record)
            elif problems:
                self._add(record)
                gone.append(record)
            elif name in scan.configs:
                look.unchanged.append(name)
        if scan.directory_ok:
            for name, record in list(self.records.items()):
                if name not in scan.present and record.declared:
                    record.remove()
                    look.removed.append(name)
                    gone.append(record)
        if scan.general and scan.general != self.problems:
            emit_rejected(None, scan.general)
        self.problems = scan.general
        for record in look.changed:
            if (begun := self.start(record)) is not None:
                look.begun.append(begun)
            # A new database is visible from here on, when it is in force or rejected: before,
            # there is no state to report.
            self._add(record)
        return gone

    def _kept(self, scan: Scan) -> dict[str, DatabaseConfig]:
        """Return what databases keep whose files say nothing that can be used, by name.

        That is their last good text, with its references resolved again: a typo, or a directory
        that is not mounted, must not keep a rotated secret out.
        """
        configs = []
        for name, record in self.records.items():
            if name in scan.present and name not in scan.configs:
                configs.append(record.last_good)
            elif not scan.directory_ok:
                configs.append(record.newest)
        return self._loader.resolved_again(filter(None, configs))

    def _add(self, record: Record) -> None:
        self.records[record.name] = record
        if self._closed_by:
            record.close(self._closed_by)

    def _settled_scan(self) -> Scan:
        """Read the files; read them again a moment later if there are new problems."""
        scan = self._loader.scan()
        news = any(
            (record := self.records.get(name)) is None or record.problems != problems
            for name, problems in scan.problems.items()
        )
        if news or scan.general != self.problems:
            time.sleep(_SETTLE)  # a writer may be between truncating and writing
            scan = self._loader.scan()
        return scan

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
        if self.successful:
            self.last_success_at = time.time()

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
