"""The record of one database: what its files say, the version in force, its handles, its reloads."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from pgmonkey.config.failed_probes import failed_probe
from pgmonkey.errors import (
    LASTING,
    ConfigError,
    ConnectError,
    DatabaseRemovedError,
    HandleClosedError,
    PgmonkeyError,
    ReloadRejectedError,
    count,
)
from pgmonkey.pool._async.database import AsyncDatabase, drop_closed_loops
from pgmonkey.pool._async.outside import connect_outside as connect_async
from pgmonkey.pool._sync.database import SyncDatabase
from pgmonkey.pool._sync.outside import connect_outside as connect_sync
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.failures import classify
from pgmonkey.pool.handle import Closing, Database, Hooks, Sharing
from pgmonkey.pool.version import Version
from pgmonkey.registry.override import Override
from pgmonkey.registry.probing import probe_failure
from pgmonkey.telemetry import events
from pgmonkey.telemetry.status import Change, DatabaseStatus, ProbeStatus, database_state

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext

    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.overrides import Overrides
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import Problem, Reason
    from pgmonkey.pool._async.outside import AsyncOutsideConnection
    from pgmonkey.pool._sync.outside import SyncOutsideConnection
    from pgmonkey.pool.failures import Configure
    from pgmonkey.pool.limits import ConnectionLimits
    from pgmonkey.telemetry.status import Outcome

Handle: TypeAlias = SyncDatabase | AsyncDatabase

#: The name that means every database, where functions are given by name.
EVERY: Final = "*"

#: Seconds before a failed probe is tried again: the first pause, and the longest ones. They grow
#: longer if only a change helps, because a server may lock an account that fails too often.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 2.0
_LONGEST_PAUSE_LASTING: Final = 30.0
#: Seconds for which a client whose login was refused waits for the newest files to be applied.
_LONGEST_DECISION: Final = 10.0
#: How many reloads of a database are remembered for the status page.
_REMEMBERED: Final = 20


class Rejection(NamedTuple):
    """Why the files of a database are not applied.

    Args:
        problems: The problems of the files, or of the failed probe.
        reason: Why the probe failed; `None` if the files have problems.
    """

    problems: tuple[Problem, ...]
    reason: Reason | None = None


class Shared(NamedTuple):
    """What all records of one registry or manager share.

    Args:
        limits: How many connections they may have together.
        defaults: The handle of the declared type, by name: what `Registry.get` reads without a
            lock. A record keeps its own name in it.
        on_open: Called when a handle makes the first connection of a process or event loop.
        look: Reads the files again because a login of this record was refused.
        tell: Tells the application of a change; called without a lock, and raises nothing.
        configure: What is called with each new connection, by the name of the database.
        probes: Whether databases are probed in the background.
    """

    limits: ConnectionLimits
    defaults: dict[str, Handle]
    on_open: Callable[[], object]
    look: Callable[[Record], object]
    tell: Callable[[Change], object]
    configure: dict[str, Configure]
    probes: bool = False


class Record:
    """Own the state of one database, and every transition of it.

    Args:
        name: The name of the database.
        shared: What it shares with the other records.
        config: The configuration in use from the start, if its files are valid.
    """

    def __init__(self, name: str, shared: Shared, config: DatabaseConfig | None = None) -> None:
        self.name = name
        self._shared = shared
        self._version = None if config is None else Version(config)
        #: What the files said when that was put in force: `_version` has the overrides, too.
        self._base = config
        self._overrides: tuple[Override, ...] = ()
        self._handles: dict[ConnectionType, Handle] = {}
        #: The newest configuration in the files until it is in force, and when it was seen.
        self._wanted: DatabaseConfig | None = None
        self._wanted_since = 0.0
        #: What the problems of the files are once `_wanted` is in force: those of a text of which only
        #: the references count.
        self._wanted_problems: tuple[Problem, ...] = ()
        #: The problems of the files.
        self._problems: tuple[Problem, ...] = ()
        #: The failed probe of `_wanted`.
        self._failed: Rejection | None = None
        #: When a failed probe of `_wanted` is due again, and how long the pause was.
        self._retry_at: float | None = None
        self._pause = 0.0
        #: Whether the file was removed, and no valid one came back.
        self._removed = False
        #: What was closed, in words: "registry /etc/registry.d".
        self._closed_by: str | None = None
        #: The forced reload under way, which those who ask for the same one share.
        self._forced: _Forced | None = None
        # What is shown.
        self._outcomes: Counter[str] = Counter()
        self._history: tuple[Change, ...] = ()
        self._hashed: tuple[Version, int] | None = None
        # Background probes.
        self._reached = False
        self._probe: ProbeStatus | None = None
        self._probe_error: ConnectError | None = None
        self._probe_at: float | None = 0.0
        self._probe_pause = 0.0
        #: Since when probes fail, if an event told it.
        self._down_since: float | None = None
        self._renew_locks()

    def _renew_locks(self) -> None:
        # Guards everything above. Held for moments: nothing is connected, closed or waited for.
        # Reentrant, because a signal handler may close the owner.
        self._lock = threading.RLock()
        #: Notified when what the files say was put in force, rejected or dropped.
        self._decided = threading.Condition(self._lock)
        # Held while one reload runs, rotation included: the next one finds what is still wanted.
        self._reloading = threading.Lock()
        # Held while the application is told of a change, in the order of the changes. None waits for it.
        self._telling = threading.Lock()
        self._untold: deque[Change] = deque()

    # What is in force

    @property
    def config(self) -> DatabaseConfig | None:
        """The configuration in use; `None` if the files were never valid."""
        version = self._version
        return version.config if version else None

    @property
    def base(self) -> DatabaseConfig | None:
        """The configuration in use without overrides; `None` if the files were never valid."""
        return self._base

    @property
    def is_overridden(self) -> bool:
        """Whether an override is in force."""
        return bool(self._overrides)

    @property
    def declared(self) -> bool:
        """Whether a file of this name exists, valid or not."""
        return not self._removed or bool(self._problems) or self._failed is not None

    @property
    def last_good(self) -> DatabaseConfig | None:
        """The configuration whose text counts while the files have problems, if there is one."""
        return None if self._removed else self._base

    @property
    def failed(self) -> bool:
        """Whether the last probe of what is wanted failed."""
        return self._failed is not None

    @property
    def rejection(self) -> Rejection | None:
        """Why what the files say is not, or not all of it, in force; `None` when it is."""
        problems, failed = self._problems, self._failed
        if failed is not None:
            return Rejection((*problems, *failed.problems), failed.reason)
        return Rejection(problems) if problems else None

    @property
    def is_behind(self) -> bool:
        """Whether the files say something that is neither in force nor rejected yet."""
        return self._wanted is not None

    def rejected(self) -> str:
        """Return the first problem of the rejected files in one line; empty if there is none."""
        rejection = self.rejection
        if rejection is None:
            return ""
        first, _, _ = str(rejection.problems[0]).partition("\n")
        more = len(rejection.problems) - 1
        return f"{first} (and {count(more, 'other problem')})" if more else first

    def handles(self) -> list[Handle]:
        """Return the handles that were asked for so far, and their copies."""
        found: list[Handle] = []
        for handle in list(self._handles.values()):
            found += [handle, *handle.copies()]
        return found

    def copy(self, handle: Handle, context: AdaptContext | None) -> Handle:
        """Return a copy of a handle: see `Database.with_own_pool`.

        It is made under the lock, so it is among those that a close or the next version reaches.
        """
        with self._lock:
            return handle.make_copy(context)

    def handle(self, connection_type: ConnectionType | None = None) -> Handle | None:
        """Return the handle of a connection type, the same one every time; `None` if removed.

        It is made under the lock, so it is among those that a close or the next version reaches.

        Args:
            connection_type: Default: the type that the file declares.

        Raises:
            ConfigError: the files were never valid, or came back invalid after a removal.
            HandleClosedError: the owner was closed.
        """
        with self._lock:
            version = self._version
            if self._closed_by:
                raise HandleClosedError(f"{self.name}: the {self._closed_by} was closed")
            wanted = connection_type or (version.config.connection_type if version else "normal")
            handle = self._handles.get(wanted)
            if handle is None:
                if (version is None or self._removed) and (rejection := self.rejection):
                    raise ConfigError(rejection.problems)
                if version is None or self._removed:
                    return None
                handle = self._handles[wanted] = self._new_handle(wanted, version)
                handle.share(self._sharing())
            if connection_type is None:
                self._shared.defaults[self.name] = handle
            return handle

    def connect(self, given: Overrides) -> SyncOutsideConnection:
        """Connect outside of the pools: see `Registry.connect`."""
        config = partial(self._overridden, given)
        return connect_sync(config, "normal", self._shared.limits, self._hooks(), given.options)

    async def aconnect(self, given: Overrides) -> AsyncOutsideConnection:
        """Connect outside of the pools: see `Registry.aconnect`."""
        config = partial(self._overridden, given)
        return await connect_async(
            config, "async", self._shared.limits, self._hooks(), given.options
        )

    def _overridden(self, given: Overrides) -> DatabaseConfig:
        """Return the configuration that is in force now, with other connection settings."""
        with self._lock:
            gone, config, rejection = self._gone(), self.config, self.rejection
        if gone is not None:
            raise gone
        if config is None:
            raise ConfigError(rejection.problems if rejection else ())
        return config.overridden(given)

    def _new_handle(self, connection_type: ConnectionType, version: Version) -> Handle:
        hooks, limits = self._hooks(), self._shared.limits
        if connection_type in ("async", "async_pool"):
            return AsyncDatabase(version, connection_type, limits, hooks)
        return SyncDatabase(version, connection_type, limits, hooks)

    def _hooks(self) -> Hooks:
        this = weakref.ref(self)  # a handle that the program kept keeps no registry alive
        return Hooks(
            on_open=self._shared.on_open,
            on_refused=partial(_refused, this),
            force_reload=partial(_force, this),
            rejected=partial(_rejected, this),
            configure=partial(_functions, self._shared.configure, self.name),
            copy=partial(_copy, this),
        )

    def _gone(self) -> PgmonkeyError | None:
        """Return why the handles may not be used, if so."""
        if self._closed_by:
            return HandleClosedError(
                f"{self.name}: the {self._closed_by} of this handle was closed"
            )
        if not self._removed:
            return None
        reason = "its file was removed from the registry"
        if (rejection := self.rejection) is None:
            reason += "; when it comes back, this handle works again"
        else:
            reason += ", and the file that came back cannot be used:\n" + "\n".join(
                str(problem) for problem in rejection.problems
            )
        return DatabaseRemovedError(f"{self.name}: {reason}")

    # What the files say

    def declare(
        self,
        config: DatabaseConfig | None,
        seen: float,
        *,
        again: bool,
        problems: tuple[Problem, ...] = (),
    ) -> bool:
        """Note what the files say, and tell whether `reload` has work to do.

        Args:
            config: What they say. If they have problems, the last good text with the values of
                now; `None` if there is none.
            seen: When that was seen, on the monotonic clock.
            again: Repeat a failed probe even if its pause is not over.
            problems: The problems of the files; the database stays stale because of them.
        """
        with events.held_back(), self._lock:
            if self._closed_by:
                return False
            if problems:
                self._note_problems(problems)
                wanted = self._wanted
                if wanted is not None and (config is None or wanted.digest != config.digest):
                    self._drop_wanted()  # it is of another text, which the files do not say any more
                    self._failed = None
            if config is None:
                self._failed = None
                return False
            if self._wanted is not None and self._wanted.digest == config.digest:
                # Else it is under way, or waits for its next try.
                self._wanted_problems = problems
                if again:
                    self._retry_at = None
                return again
            base = self._base
            if (
                self._wanted is None
                and not self._removed
                and base is not None
                and base.digest == config.digest
            ):
                self._problems, self._failed = problems, None
                # Another caller may replace connections by that version still: wait for it, too.
                return again and self._reloading.locked()
            self._wanted, self._wanted_since = config, seen
            self._wanted_problems = problems
            self._retry_at, self._pause = None, 0.0
            return True

    def _note_problems(self, problems: tuple[Problem, ...]) -> None:
        if self._problems != problems:
            self._problems = problems
            self._ended("rejected", problems=problems)
            emit_rejected(self.name, problems)

    def remove(self) -> None:
        """Note that the file is gone. Call `shut_handles` when no lock is held."""
        with events.held_back(), self._lock:
            self._drop_wanted()
            self._problems, self._failed = (), None
            self._removed = True
            self._ended("removed")
            events.emit("config.removed", database=self.name)

    def _drop_wanted(self) -> None:
        self._wanted = None
        self._wanted_problems = ()
        self._retry_at = None
        self._pause = 0.0
        self._decided.notify_all()

    def shut_handles(self) -> None:
        """Close the connections of a database that may not be used any more; checkouts finish."""
        with self._lock:
            gone, handles = self._gone(), self.handles()
        if gone is None:
            return
        with ExitStack() as stack:  # an interrupt of one is raised after the others have begun
            for handle in handles:
                stack.callback(handle.shut, gone)
        with self._lock:
            if self._gone() is None:  # its file came back meanwhile
                for handle in handles:
                    handle.revive()

    # Reloads

    def reload(self, applied: Callable[[float], object]) -> None:
        """Put in force what the files say, if it works; until nothing newer is wanted.

        A reload connects with the new version in every open pool, or once if the database is
        probed and none is open; then it puts the version in force and replaces the connections.
        It blocks; those that come meanwhile wait for it.

        Args:
            applied: Called with the seconds from the change to the end of each reload.
        """
        more = True
        while more:  # the events of one reload are not held back until the next one ends
            with events.held_back(), self._reloading:
                more = self._reload_once(applied)

    def _reload_once(self, applied: Callable[[float], object]) -> bool:
        """Return whether the files may have changed meanwhile."""
        with self._lock:
            config, before, since = self._wanted, self._base, self._wanted_since
            if config is None or self._retry_at is not None:
                return False
        try:
            version, prepared = self._replace(config, forced=False)
        except Exception as error:  # noqa: BLE001 - no descriptor, no thread, no memory: retried
            return not self._note_failure(config, error)
        if version is None:
            return True
        for handle, one in prepared.items():
            handle.rotate(one)
        changed = tuple(config.changed_keys(before)) if before else ("*",)
        with self._lock:
            self._ended("applied", changed=changed, version=version.number)
        applied(monotonic() - since)
        events.emit(
            "config.applied", database=self.name, version=version.number, changed=list(changed)
        )
        return True

    def force(self, config: DatabaseConfig | None = None) -> None:
        """Replace all connections, even if nothing has changed.

        It blocks. Callers that ask while the same reload is under way share its result.

        Args:
            config: What to connect with; default: the configuration in use.

        Raises:
            ReloadRejectedError: the new connections cannot be made; nothing has changed.
        """
        digest = None if config is None else config.digest
        while True:
            with self._lock:
                forced = self._forced
                if mine := forced is None or forced.digest != digest:
                    forced = self._forced = _Forced(config, digest, Future())
            if mine:
                self._force(forced)
            try:
                error = forced.failure.result()
            except CancelledError:
                continue  # the thread that carried it out was interrupted
            if error is None:
                return
            raise ReloadRejectedError(
                error.text,
                database=self.name,
                reason=error.reason,
                hint=error.hint,
                rejected=self.rejected(),
            )

    def _force(self, forced: _Forced) -> None:
        error: ConnectError | None = None
        try:
            with events.held_back(), self._reloading:
                assert self._base is not None
                config = forced.config or self._base  # the one in force by now
                try:
                    _, prepared = self._replace(config, forced=True)
                except Exception as failure:  # noqa: BLE001 - no descriptor, no thread, no memory: a reason, too
                    error = _connect_error(config, failure)
                else:
                    for handle, one in prepared.items():
                        handle.rotate(one)
        except BaseException:
            forced.failure.cancel()
            raise
        finally:
            with self._lock:
                if self._forced is forced:
                    self._forced = None
        forced.failure.set_result(error)

    def _replace(
        self, config: DatabaseConfig, *, forced: bool
    ) -> tuple[Version | None, dict[Any, Any]]:
        """Connect with a configuration of the files in every open pool, and put it in force.

        The caller holds `_reloading`, and rotates.

        Returns:
            The new version, and each handle with what it prepared; no version if something else
            is wanted by now: then nothing has changed.
        """
        with self._lock:
            before, handles = self._version, self.handles()
            base, config = config, overridden(config, self._overrides)
        if before is None:
            version = Version(config)
        else:
            version = before.forced(config) if forced else before.next(config)
        # What was prepared belongs to the handle beside it; the type checker cannot see that.
        prepared: dict[Any, Any] = {}
        adopted = False
        try:
            for handle in handles:
                prepared[handle] = handle.prepare(version)
            if (
                before is not None
                and version.since != before.since
                and self._is_probed()
                and not self._is_open()
            ):
                failure = probe_failure(config, self._shared.limits)
                if failure is not None:
                    raise failure
            with self._lock:
                # Not over what `reconfigure` or an override has put in force meanwhile.
                adopted = self._version is before and self._adopt(
                    base, version, prepared, forced=forced
                )
        finally:
            if not adopted:
                for handle, one in prepared.items():
                    handle.discard(one)
        return (version, prepared) if adopted else (None, {})

    def _adopt(
        self, base: DatabaseConfig, version: Version, prepared: dict[Any, Any], *, forced: bool
    ) -> bool:
        """Put a version in force, unless something else is wanted by now."""
        if self._closed_by or (self._removed if forced else self._wanted is not base):
            return False
        before, self._version, self._base = self._version, version, base
        for handle in self.handles():
            handle.adopt(version, prepared.get(handle, {}))
        if not forced:
            self._problems, self._failed = self._wanted_problems, None
            self._drop_wanted()
            if self._removed:
                self._removed = False
                for handle in self.handles():
                    handle.revive()
        if before and before.config.connection_type != version.config.connection_type:
            self._shared.defaults.pop(self.name, None)
        self._probe_at = 0.0
        return True

    def reconfigure(self) -> None:
        """Hand out no connection any more that was made until now: other functions configure it.

        At once, and from any thread: nothing is probed. A reload under way begins again.
        """
        with self._lock:
            version, handles = self._version, self.handles()
            if version is None or not any(handle.pools for handle in handles):
                return
            self._version = version.forced(version.config)
            for handle in handles:
                handle.cut_over(self._version)

    # Overrides

    def override(
        self, given: Overrides, handle: Callable[[], Database], *, rollback: bool
    ) -> Override:
        """Return what overrides this database when it is entered.

        Args:
            given: The settings that take the place of those of the files.
            handle: Returns what the block gets.
            rollback: Whether all blocks share a transaction that is rolled back.
        """
        return Override(
            self.name,
            given,
            rollback=rollback,
            begin=self._begin_override,
            end=self._end_override,
            handle=handle,
        )

    def _begin_override(self, override: Override) -> list[Closing]:
        """Put an override in force: nothing is connected, and nothing is waited for.

        Returns:
            What closes the connections that there are. Call it when no lock is held.

        Raises:
            PgmonkeyError: the database was removed, its files were never valid, or it is closed.
        """
        with events.held_back(), self._lock:
            if (gone := self._gone()) is not None:
                raise gone
            if self._base is None:
                raise ConfigError(rejection.problems if (rejection := self.rejection) else ())
            return self._override((*self._overrides, override))

    def _end_override(self, override: Override) -> list[Closing]:
        """Take an override out of force, whatever has become of the database; the same way."""
        with events.held_back(), self._lock:
            return self._override(tuple(one for one in self._overrides if one is not override))

    def close_overridden(self) -> list[Closing]:
        """Return what closes the connections, and keep the overrides."""
        with events.held_back(), self._lock:
            return self._override(self._overrides)

    def _override(self, overrides: tuple[Override, ...]) -> list[Closing]:
        base, before = self._base, self._version
        assert base is not None
        assert before is not None
        self._overrides = overrides
        self._version = before.next(overridden(base, overrides))
        sharing = self._sharing()
        return [
            closing
            for handle in self.handles()
            for closing in handle.redirect(self._version, sharing)
        ]

    def _sharing(self) -> Sharing | None:
        """Return how blocks share one transaction; `None` if they do not."""
        active = self._overrides
        rollbacks = tuple(one for one in active if one.rollback)
        places = tuple(one for one in active if one.given.settings)
        return Sharing(rollbacks, places) if rollbacks else None

    def note_failure(self, error: Exception) -> None:
        """Note that the reload could not begin; it is tried again."""
        if (config := self._wanted) is not None:
            with events.held_back():
                self._note_failure(config, error)

    def _note_failure(self, config: DatabaseConfig, error: Exception) -> bool:
        """Note that the probe of a configuration failed; return false if another is wanted now."""
        failure = _connect_error(config, error)
        problem = failed_probe(config, failure)  # reads the file
        with self._lock:
            if self._wanted is not config:
                return False
            longest = _LONGEST_PAUSE_LASTING if failure.reason in LASTING else _LONGEST_PAUSE
            self._pause = min(max(self._pause * 2, _FIRST_PAUSE), longest)
            pause = self._pause * random.uniform(1.0, 1.2)  # noqa: S311 - pods must not retry in step
            self._retry_at = monotonic() + pause
            self._decided.notify_all()
            self._problems = self._wanted_problems
            known, self._failed = self._failed, Rejection((problem,), failure.reason)
            if known is not None and known.problems == (problem,):
                return True  # it was reported
            self._ended("rejected", problems=(problem,))
            self._probe_at = 0.0  # does the last good one still work?
        events.emit(
            "database.probe_failed",
            database=self.name,
            reason=failure.reason,
            error=problem.message,
            retry_in=round(pause, 3),
        )
        emit_rejected(self.name, (problem,))
        return True

    def take_retry(self, now: float) -> bool:
        """Tell whether a failed probe is due again; if so, the caller must call `reload`."""
        due = self._retry_at
        if due is None or now < due:
            return False
        with self._lock:
            due, self._retry_at = self._retry_at, None
            return due is not None

    def is_quiet(self) -> bool:
        """Tell whether `reload` would wait for nothing: it connects nowhere, and none is under way."""
        return not (self._reloading.locked() or self._is_open() or self._is_probed())

    def _is_open(self) -> bool:
        return any(one.is_open() for one in self.handles())

    def _is_probed(self) -> bool:
        """Tell whether a configuration is probed even if no pool is open.

        Not if there is no last good one, which could stay in force if the probe fails.
        """
        return self._shared.probes and self._version is not None and not self._removed

    def _ended(
        self,
        outcome: Outcome,
        *,
        changed: tuple[str, ...] = (),
        problems: tuple[Problem, ...] = (),
        version: int = 0,
    ) -> None:
        """Remember the outcome of a reload, and tell the application when no lock is held."""
        version = version or (self._version.number if self._version else 0)
        change = Change(self.name, outcome, version, time.time(), changed, problems)
        self._history = (*self._history, change)[-_REMEMBERED:]
        self._outcomes[outcome] += 1
        self._untold.append(change)
        events.call_unlocked(self._tell)

    def _tell(self) -> None:
        """Tell the application of the changes, each after the one before it.

        If another thread is at it, or this one further up, that one tells of this change, too.
        """
        while self._untold and self._telling.acquire(blocking=False):
            try:
                while self._untold:
                    self._shared.tell(self._untold.popleft())
            finally:
                self._telling.release()

    def refused(self) -> bool:
        """Read the files now, because the server refused a login.

        It blocks until the newest files of this database are in force or rejected.

        Returns:
            Whether another version is in force now.
        """
        before = self._version
        self._shared.look(self)
        with self._lock:
            self._decided.wait_for(
                lambda: self._wanted is None or self._retry_at is not None, _LONGEST_DECISION
            )
        return self._version is not before

    # Background probes

    def take_probe(self, now: float) -> bool:
        """Tell whether a background probe is due; if so, the caller must call `probe`."""
        due = self._probe_at
        if due is None or now < due or not self.declared:
            return False
        self._probe_at = None
        return True

    def probe(self, interval: float | None = None) -> None:
        """Connect once, outside the pools, and note whether the server was reached.

        Args:
            interval: Seconds until the next background probe, sooner if this one fails.
        """
        with self._lock:
            config = None if self._removed else self.config
            if interval is not None:  # else the background probes go on as they are due
                self._probe_at = None
        began = monotonic()
        error = None if config is None else probe_failure(config, self._shared.limits)
        now = monotonic()
        tells = error is not None and not self._is_open()  # an open pool tells it by itself
        outage = None
        with self._lock:
            up = config is not None and error is None
            if self._down_since is None:
                self._down_since = now if tells else None
            else:
                tells = False
                if up:
                    outage, self._down_since = now - self._down_since, None
            self._probe = ProbeStatus(up, now - began if config else 0.0)
            if config is not None:
                self._probe_error = error
                self._reached = self._reached or up
            if interval is not None and self._probe_at is None:
                if up:
                    self._probe_pause = 0.0
                else:
                    self._probe_pause = min(max(self._probe_pause * 2, _FIRST_PAUSE), interval)
                pause = interval if up else self._probe_pause
                self._probe_at = now + pause * random.uniform(0.8, 1.2)  # noqa: S311 - as above
        if error is not None and tells:
            events.emit("connect.failed", database=self.name, reason=error.reason, error=error.text)
        if outage is not None:
            events.emit("connect.recovered", database=self.name, outage=round(outage, 3))

    def postpone_probe(self) -> None:
        """Note that a background probe could not begin."""
        with self._lock:
            self._probe_at = monotonic() + _FIRST_PAUSE

    # The end, and a child process

    def close(self, owner: str) -> None:
        """Close all handles for good.

        Args:
            owner: What was closed, for the error of later uses: "manager's cache".
        """
        with self._lock:
            self._closed_by = owner
            self._drop_wanted()
            self._shared.defaults.pop(self.name, None)
        self.shut_handles()

    def forget(self) -> None:
        """Begin without connections and with new locks in a child process.

        Another thread of the parent may have been in the middle of a transition.
        """
        self._renew_locks()
        self._forced = None
        self._outcomes = Counter()
        if self._wanted is not None:  # the thread that was applying it is not in the child
            self._retry_at = 0.0
        self._probe_at = 0.0
        gone = self._gone()
        for handle in self.handles():
            handle.forget()
            if self._version is not None:
                handle.adopt(self._version, {})
            if gone is not None:
                handle.shut(gone)

    # What is shown

    def status(self) -> DatabaseStatus:
        """Return the state of the database as plain values."""
        with self._lock:
            handles = list(self._handles.values())
            version, removed, rejection = self._version, self._removed, self.rejection
            overrides = self._overrides
            wanted, history, outcomes = self._wanted, self._history, dict(self._outcomes)
            probe, error, reached = self._probe, self._probe_error, self._reached
        pools = tuple(handle.status() for handle in handles)
        config = version.config if version else None
        # Why connects fail now: the error of the last probe, else that of a pool's last connect.
        text, reason, hint = None, None, None
        if error is not None:
            text, reason, hint = error.text, error.reason, error.hint
        elif failing := next((pool for pool in pools if pool.last_failure), None):
            text, reason = failing.last_failure, failing.last_failure_reason
            hint = failing.last_failure_hint
        state = None
        if not removed or rejection is not None:
            state = database_state(
                configured=config is not None and not removed,
                connect_failed=text is not None,
                stale=rejection is not None,
                opened=any(pool.opened for pool in pools),
            )
        last = history[-1] if history else None
        return DatabaseStatus(
            name=self.name,
            connection_type=config.connection_type if config else None,
            description=config.description if config else "",
            required=config.required if config else True,
            state=state,
            version=version.number if version else 0,
            stale=rejection is not None,
            reached=reached or any(pool.connects.count for pool in pools),
            reason=rejection.reason if rejection else None,
            last_error=text,
            last_error_reason=reason,
            last_error_hint=hint,
            problems=rejection.problems if rejection else (),
            outcomes=outcomes,
            last_reload=last.outcome if last else None,
            last_reload_at=last.at if last else None,
            # Also of a configuration that is not applied yet: the alert is about that one.
            secret_modified=max(
                (
                    modified
                    for one in (config, wanted)
                    if one is not None and (modified := one.secret_modified) is not None
                ),
                default=None,
            ),
            config_hash=0 if removed or version is None else self._hash(version),
            pools=pools,
            probe=probe,
            redacted=config.redacted if config else dict,
            history=history,
            overridden=tuple(sorted({key for one in overrides for key in one.shown})),
        )

    def _hash(self, version: Version) -> int:
        """Return 48 bits of the public part of a configuration; computed once for each version."""
        hashed = self._hashed
        if hashed is None or hashed[0] is not version:
            hashed = self._hashed = (version, version.config.public_hash)
        return hashed[1]


class _Forced(NamedTuple):
    """A forced reload under way."""

    #: What to connect with; `None`: what is in force.
    config: DatabaseConfig | None
    digest: bytes | None
    #: Why it failed; `None` if it worked; cancelled if it was interrupted.
    failure: Future[ConnectError | None]


def _refused(this: weakref.ref[Record]) -> bool:
    record = this()
    return record is not None and record.refused()


def _rejected(this: weakref.ref[Record]) -> str:
    record = this()
    return record.rejected() if record is not None else ""


def _functions(functions: dict[str, Configure], name: str) -> list[Configure]:
    """Return what is called with a new connection of a database: of every database, then its own."""
    return [functions[key] for key in (EVERY, name) if key in functions]


def _copy(this: weakref.ref[Record], handle: Handle, context: AdaptContext | None) -> Handle:
    record = this()
    return handle.make_copy(context) if record is None else record.copy(handle, context)


def _force(this: weakref.ref[Record]) -> None:
    if (record := this()) is not None:
        record.force()


def overridden(config: DatabaseConfig, overrides: Iterable[Override]) -> DatabaseConfig:
    """Return a configuration with overrides, each over those before it."""
    for one in overrides:
        if one.given.settings:
            config = config.overridden(one.given)
    return config


def _connect_error(config: DatabaseConfig, error: Exception) -> ConnectError:
    """Return the error of a reload that may have failed for another reason than its connect."""
    if isinstance(error, ConnectError):
        return error
    return classify(error, config).error(config.name)


def emit_rejected(database: str | None, problems: tuple[Problem, ...]) -> None:
    """Report problems of the files of a database, or of a directory."""
    first = problems[0]
    events.emit(
        "config.rejected",
        database=database,
        file=first.path,
        line=first.line,
        key=first.key,
        code=first.code,
        problems=[str(problem) for problem in problems],
    )


def close_all(records: Iterable[Record], owner: str) -> list[AsyncDatabase]:
    """Close the handles of records for good, from any thread; checkouts finish.

    Pools of event loops close when their loops turn; those of loops of this thread that do not run,
    between two `run_until_complete`, now.

    Args:
        records: Those of one owner.
        owner: What was closed, for the error of later uses.

    Returns:
        The async ones. Their owner may wait for the pools of the running loop.
    """
    records = list(records)
    with ExitStack() as stack:  # an interrupt of one is raised after the others have begun
        for record in records:
            stack.callback(record.close, owner)
        drop_closed_loops()
    handles = [handle for record in records for handle in record.handles()]
    return [handle for handle in handles if isinstance(handle, AsyncDatabase)]
