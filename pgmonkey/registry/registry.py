"""The registry: the named databases of one directory, and their handles."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import prometheus_client

from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.errors import ConfigError, HandleClosedError, UnknownDatabaseError
from pgmonkey.registry.cache import Handle, HandleCache, close_handles, close_handles_async
from pgmonkey.registry.prober import probe
from pgmonkey.registry.reloader import Reloader, ReloadReport
from pgmonkey.registry.upkeep import Upkeep
from pgmonkey.registry.watcher import Source, file_events
from pgmonkey.telemetry import events
from pgmonkey.telemetry.metrics import ensure_files, export, write_files
from pgmonkey.telemetry.status import DatabaseStatus, RegistryStatus

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.config.trust import Trust
    from pgmonkey.pool.database import Database


class Registry:
    """Serve every PostgreSQL database that a directory declares, by name.

    Reading the directory reports every problem of every file at once; nothing connects before
    the first checkout. From then on the directory and the secret files are watched, and a
    changed database is swapped without a failed query. One thread for the registry, two for
    each sync database in use.

    Args:
        path: The directory.
        names: Only these databases are read, watched and counted; default: all.
        strict: Raise if any file has a problem; else serve the good ones, and `get` of a bad
            one raises its problems.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and the like.
        watch: Watch the files; without it, only `reload` looks at them.
        rescan_interval: Seconds after which the files are looked at even if no event came.
        metrics: The `prometheus_client` registry that the numbers are exported to, or `None`.
        histograms: Export waits, uses and connects as histograms with 9 buckets; else as summaries
            with count and sum only.
        probe_interval: Seconds between two background probes of a database, one connection each
            that is closed at once, for `pgmonkey_up`; default: no probes.
        trust: What becomes of a database if other accounts can change its file, its secrets or
            its TLS files: `strict` makes it a problem, `warn` says it in an event, `off` does
            not look.
        max_connections: Server connections that this process may have at a time over all
            databases, probes and replaced pools included; default: any number. A checkout that
            needs one more waits its `timeout`.

    Raises:
        RegistryConfigError: the directory or a file has problems, or the databases keep more
            connections open (`min_size`) than `max_connections`.
        ValueError: `probe_interval` is not more than 0.

    Example:
        >>> registry = Registry("registry.d")
        >>> with registry.get("orders") as conn:
        ...     conn.execute("SELECT 1").fetchone()
        (1,)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Iterable[str] | None = None,
        *,
        strict: bool = True,
        allow_sensitive_defaults: bool = False,
        watch: bool = True,
        rescan_interval: float = 30.0,
        metrics: prometheus_client.CollectorRegistry | None = prometheus_client.REGISTRY,
        histograms: bool = True,
        probe_interval: float | None = None,
        trust: Trust = "warn",
        max_connections: int | None = None,
        _source: Source = file_events,
    ) -> None:
        if probe_interval is not None and probe_interval <= 0:
            raise ValueError(f"probe_interval is seconds, more than 0, not {probe_interval!r}")
        self.path = Path(path)
        self._loader = DirectoryLoader(
            self.path,
            names=None if names is None else tuple(names),
            allow_sensitive_defaults=allow_sensitive_defaults,
            trust=trust,
            on_untrusted=_untrusted,
            max_connections=max_connections,
        )
        self._cache = HandleCache(max_connections)
        self._reloader = Reloader(self.path, self._loader, self._cache)
        scan = self._reloader.load(strict=strict)
        self._defaults = self._cache.defaults
        self._closed = False
        self._exported = metrics is not None
        this = weakref.ref(self)  # a handle that outlives its registry must not keep it alive
        self._hooks = (
            lambda: _call(this, Registry._ensure_running),
            lambda: _call(this, Registry._refused),
        )
        self._upkeep = Upkeep(
            self,
            self._reloader,
            watch=watch,
            source=_source,
            rescan_interval=rescan_interval,
            probe_interval=probe_interval,
        )
        events.emit(
            "registry.loaded",
            path=str(self.path),
            databases=len(scan.configs),
            rejected=len(scan.problems),
        )
        if metrics is not None:
            export(self, metrics, histograms=histograms)
        self._ensure_running()
        _all.add(self)

    # Names

    def get(
        self,
        name: str,
        connection_type: ConnectionType | None = None,
        force_reload: bool = False,
    ) -> Database:
        """Return the handle of a database. Costs nanoseconds, connects to nothing.

        It is the same object every time, over every reload.

        Args:
            name: The name: the stem of the file.
            connection_type: Another type than the file says; one handle for each type.
            force_reload: Replace the connections, though nothing may have changed: a sync
                handle at once, an async one when it is awaited.

        Raises:
            UnknownDatabaseError: no file declares the name.
            ConfigError: the file has problems, and never was good.
            ReloadRejectedError: `force_reload` could not connect; the old connections go on.

        Example:
            >>> registry.get("orders") is registry.get("orders")
            True
        """
        if connection_type is None and force_reload is False:
            try:
                return self._defaults[name]
            except KeyError:
                pass
        handle = self._find(name, connection_type)
        if force_reload:
            self._reloader.force(name, handle)
        return handle

    def _find(self, name: str, connection_type: ConnectionType | None) -> Handle:
        if self._closed:
            raise HandleClosedError(f"{name}: the registry {self.path} was closed")
        entry = self._reloader.entries.get(name)
        if entry is None:
            raise self._unknown(name)
        # A handle that is made now is among those that the next change moves.
        with events.held_back(), entry.deciding:
            if entry.removed and not self._cache.of(name):
                if entry.rejection is None:
                    raise self._unknown(name)
                raise ConfigError(entry.rejection.problems)
            if entry.applied is None:
                raise ConfigError(entry.rejection.problems if entry.rejection else ())
            wanted = connection_type or entry.applied.config.connection_type
            handle = self._cache.get((name, wanted), entry.applied, wanted)
            handle.on_open, handle.on_refused = self._hooks
            if entry.removed:
                self._reloader.shut_removed(entry)
            if connection_type is None:
                self._defaults[name] = handle
        return handle

    def _unknown(self, name: str) -> UnknownDatabaseError:
        return UnknownDatabaseError.among(self.names, str(name), str(self.path))

    def __getitem__(self, name: str) -> Database:
        return self.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<Registry {str(self.path)!r} with {len(self)} databases>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a Registry cannot be pickled; make one in the other process: Registry({str(self.path)!r})"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the declared databases, sorted."""
        return tuple(
            sorted(name for name, entry in list(self._reloader.entries.items()) if entry.declared)
        )

    @property
    def closed(self) -> bool:
        """Tell whether the registry was closed."""
        return self._closed

    @property
    def watching(self) -> bool:
        """Tell whether changes of the files are seen as they happen."""
        return self._upkeep.watching

    # Reload

    def reload(self) -> ReloadReport:
        """Read the files now, apply what differs, and say what came of it.

        Works from any thread. It waits for the probes of sync and async databases, but never
        for an event loop: each loop swaps at its next turn, at the latest at its next checkout.

        Example:
            >>> registry.reload().rejected
            {}
        """
        return self._reloader.reload()

    async def areload(self) -> ReloadReport:
        """Do what `reload` does, without holding up the running loop.

        It waits until the pools of that loop have moved, too.

        Example:
            >>> asyncio.run(registry.areload()).applied
            ()
        """
        report = await asyncio.to_thread(self._reloader.reload)
        here = asyncio.get_running_loop()
        for handle in self._cache.all():
            for side in handle.sides():
                if side.loop() is here and side.generation is not None:
                    await side.settle()
        return report

    def wait_drained(self, timeout: float = 30.0) -> bool:
        """Wait until no connection of an older configuration is left, in any thread or loop.

        It blocks; on an event loop, `await asyncio.to_thread(registry.wait_drained, 10)`.

        Args:
            timeout: Seconds.

        Returns:
            False if checkouts were still out at the end, which `status()` names, or an event
            loop that has older connections did not turn.

        Example:
            >>> registry.wait_drained(10)
            True
        """
        deadline = time.monotonic() + timeout
        while any(handle.is_draining() for handle in self._cache.all()):
            now = time.monotonic()
            if now > deadline:
                return False
            for handle in self._cache.all():
                handle.catch_up(now)
            self._upkeep.stopping.wait(0.005)
        return True

    def probe(self, name: str) -> DatabaseStatus:
        """Connect to a database once, outside its pool, and note whether it was reached.

        Args:
            name: The name of a declared database.

        Raises:
            UnknownDatabaseError: no file declares the name.

        Example:
            >>> registry.probe("orders").probe.up
            True
        """
        entry = self._reloader.entries.get(name)
        if entry is None or not entry.declared:
            raise self._unknown(name)
        probe(entry, self._cache.budget)
        return next(one for one in self.status().databases if one.name == name)

    # Status

    def status(self) -> RegistryStatus:
        """Return what is declared, what runs and what happened, without waiting for anything.

        Example:
            >>> [database.name for database in registry.status().databases]
            ['events', 'orders', 'reports']
        """
        upkeep = self._upkeep
        return self._reloader.status(
            watched=upkeep.watched,
            watching=upkeep.watching,
            polling=upkeep.polling,
            watcher_errors=upkeep.watcher_errors,
        )

    def config(self, name: str) -> DatabaseConfig | None:
        """Return the configuration of a database that is in force; `None` if none ever was.

        Args:
            name: The name of a declared database.

        Raises:
            UnknownDatabaseError: no file declares the name.

        Example:
            >>> registry.config("orders").connection_type
            'pool'
        """
        entry = self._reloader.entries.get(name)
        if entry is None:
            raise self._unknown(name)
        return entry.applied.config if entry.applied else None

    # What handles and processes tell

    def _ensure_running(self) -> None:
        """Start what is to run, unless it does: a forked child starts its own here."""
        self._upkeep.ensure_running()
        if self._exported and not self._closed:
            ensure_files()

    def _refused(self) -> None:
        """Look at the files now: a login was refused, and a rotation may be the reason."""
        self._upkeep.look_soon()

    def _forget(self) -> None:
        """Start anew in a child process."""
        self._upkeep.forget()
        self._cache.forget()
        self._reloader.forget()

    # The end

    def close(self) -> None:
        """Close every handle for good. Checkouts in progress end undisturbed.

        Connections of an event loop close at the loop's next turn; `async with registry` or
        `await registry.aclose()` waits for that.
        """
        try:
            self._end()
        finally:  # an interrupt while the watcher ends keeps no handle open
            close_handles(self._cache.drop_all(), f"registry {self.path}")

    async def aclose(self) -> None:
        """Close every handle for good, and wait for the connections of the running loop."""
        try:
            self._end()
        finally:
            await close_handles_async(self._cache.drop_all(), f"registry {self.path}")

    def _end(self) -> None:
        if self._closed:
            return
        if self._exported:
            write_files()  # what it has counted stays
        self._closed = True
        self._reloader.stop()
        self._upkeep.stop()
        events.emit("registry.closed", path=str(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _untrusted(path: str, reason: str) -> None:
    events.emit("file.untrusted", path=path, reason=reason)


def _call(this: weakref.ref[Registry], act: Any) -> bool:
    registry = this()
    if registry is None or registry._closed:
        return False
    act(registry)
    return True


_all: Final[weakref.WeakSet[Registry]] = weakref.WeakSet()


def _after_fork() -> None:
    for registry in list(_all):
        registry._forget()


os.register_at_fork(after_in_child=_after_fork)
