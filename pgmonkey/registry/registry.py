"""The named databases of one directory, and their handles."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import prometheus_client

from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.errors import ConfigError, HandleClosedError, UnknownDatabaseError
from pgmonkey.registry.cache import Handle, HandleCache, close_handles, close_handles_async
from pgmonkey.registry.prober import probe
from pgmonkey.registry.reloader import Reloader, ReloadReport
from pgmonkey.registry.upkeep import Upkeep
from pgmonkey.telemetry import events
from pgmonkey.telemetry.metrics import ensure_files, export, write_files
from pgmonkey.telemetry.status import DatabaseStatus, RegistryStatus

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.config.trust import Trust
    from pgmonkey.pool.database import Database


class Registry:
    """Give access by name to every PostgreSQL database that a directory declares.

    Make one for the whole application. It reads and checks every file, and connects to nothing
    before the first checkout. Then it watches the directory and the secret files, and moves a
    changed database to its new settings without a failed query. It costs one thread, and two
    more for each sync database in use.

    Args:
        path: The directory.
        names: Read, watch and count only these databases; default: all.
        strict: Raise if any file has a problem. If false, serve the good databases; `get` of a
            bad one raises its problems.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and the like.
        watch: Watch the files; if false, only `reload` reads them again.
        rescan_interval: Seconds after which the files are read again even without a file event.
        metrics: The `prometheus_client` registry that gets the metrics, or `None`.
        histograms: Export waits, uses and connects as histograms with 9 buckets; else as summaries
            with count and sum only.
        probe_interval: Seconds between two background probes of a database, for `pgmonkey_up`.
            Each makes one connection and closes it. Default: no probes.
        trust: What to do if other accounts can change a file of a database, its secrets or its
            TLS files: `strict` reports a problem, `warn` emits an event, `off` does not check.
        max_connections: Server connections that this process may have at a time over all
            databases, probes and replaced pools included; default: no limit. A checkout that
            needs one more waits for it, up to its `timeout`.

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
    ) -> None:
        if probe_interval is not None and probe_interval <= 0:
            raise ValueError(f"probe_interval must be more than 0 seconds, not {probe_interval!r}")
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
        """Return the handle of a database. It costs nanoseconds and does not connect.

        It is the same object every time, before and after a reload.

        Args:
            name: The name: the stem of the file.
            connection_type: Another type than the file declares. Each type has its own handle.
            force_reload: Replace the connections even if nothing changed: those of a sync
                handle at once, those of an async handle when it is awaited.

        Raises:
            UnknownDatabaseError: no file declares the name.
            ConfigError: the file has problems and never had a valid version.
            ReloadRejectedError: `force_reload` could not connect; the old connections keep
                serving.

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
        """Tell whether the files are watched now."""
        return self._upkeep.watching

    # Reload

    def reload(self) -> ReloadReport:
        """Read the files now, apply the differences, and return a report.

        Works from any thread. It waits for the probes, but never for an event loop: each loop
        replaces its connections at its next turn, at the latest at its next checkout.

        Example:
            >>> registry.reload().rejected
            {}
        """
        return self._reloader.reload()

    async def areload(self) -> ReloadReport:
        """Do what `reload` does, without blocking the running loop.

        It also waits until the pools of that loop have replaced their connections.

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

        Call it before an old password or host is taken away. It blocks; in async code, use
        `await asyncio.to_thread(registry.wait_drained, 10)`.

        Args:
            timeout: Seconds.

        Returns:
            False if an older connection is still checked out (`status()` names the holders), or
            if an event loop that has older connections did not run meanwhile.

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
        """Connect to a database once, outside its pool, and record whether it was reached.

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
        """Return the state of every database as plain values. It waits for nothing.

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
        """Return the configuration in use; `None` if the database never had a valid one.

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

    # Called by handles and after a fork

    def _ensure_running(self) -> None:
        """Start the background threads unless they run; a forked child starts its own here."""
        self._upkeep.ensure_running()
        if self._exported and not self._closed:
            ensure_files()

    def _refused(self) -> None:
        """Read the files now: a login was refused, perhaps because its password was rotated."""
        self._upkeep.look_soon()

    def _forget(self) -> None:
        """Take new locks and threads in a forked child."""
        self._upkeep.forget()
        self._cache.forget()
        self._reloader.forget()

    # The end

    def close(self) -> None:
        """Close every handle for good. Checkouts in progress finish.

        Connections of an event loop close at the loop's next turn; to wait for that, use
        `async with registry` or `await registry.aclose()`.
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
            write_files()  # keeps the counts of this registry
        self._closed = True
        self._reloader.stop()
        self._upkeep.stop()
        events.emit("registry.closed", path=str(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
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
