"""The named databases of one directory, and their handles."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from inspect import iscoroutinefunction
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import prometheus_client

from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.env_file import Variables
from pgmonkey.config.overrides import Overrides
from pgmonkey.errors import HandleClosedError, PgmonkeyError, UnknownDatabaseError
from pgmonkey.pool._async.database import AsyncDatabase
from pgmonkey.pool.limits import ConnectionLimits
from pgmonkey.pool.messages import raised_at
from pgmonkey.registry import fork, greenlets
from pgmonkey.registry.maintenance import Maintenance
from pgmonkey.registry.override import Override
from pgmonkey.registry.record import EVERY, Handle, Record, Shared, close_all
from pgmonkey.registry.reload import Reloader, ReloadReport
from pgmonkey.telemetry import events
from pgmonkey.telemetry.metrics import ensure_files, export, withdraw
from pgmonkey.telemetry.status import DatabaseStatus, RegistryStatus

if TYPE_CHECKING:
    import psycopg

    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.on_demand import ResolverFunction
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.config.trust import Trust
    from pgmonkey.pool.failures import Configure
    from pgmonkey.pool.handle import Database
    from pgmonkey.telemetry.status import Change

#: Seconds between two looks at connections that are being replaced.
_DRAINING: Final = 0.02


class Registry:
    """Give access by name to every PostgreSQL database that a directory declares.

    Make one for the whole application. It reads and checks every file, and does not connect
    before the first checkout. It watches the directory and the secret files. When they change, it
    moves the database to its new settings without a failed query. It costs one thread, and two
    more for each sync database in use.

    `registry["orders"]` is `registry.get("orders")`. `"orders" in registry`, `len(registry)` and
    iteration go over the names. `with registry:` or `async with registry:` closes it at the end.

    Args:
        path: The directory. A relative path starts at the working directory of this call.
        names: Read, watch and count only these databases; default: all.
        strict: Raise if any file has a problem. If false, serve the good databases; `get` of a
            bad one raises its problems.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and other secrets.
        watch: Watch the files. If false, only `reload` reads them again.
        rescan_interval: Seconds after which the files are read again even without a file event.
        removal_delay: Seconds for which the file of a database, a secret file or `_defaults.yaml`
            must be missing before it counts as removed. A call of `reload` does not wait.
        metrics: The `prometheus_client` registry that gets the metrics, or `None`.
        histograms: Export waits, uses, connects and reloads as histograms with 9 buckets; else as
            summaries with count and sum only.
        probe_interval: Seconds between two background probes of a database, for `pgmonkey_up`.
            Each makes one connection and closes it. A changed configuration is then probed before
            it counts even if no pool is open. Default: no probes.
        trust: What to do if other accounts can change a file of a database, its secrets or its
            TLS files: `strict` reports a problem, `warn` emits an event, `off` does not check.
        env: The variables for `${NAME}` and `from_env`, instead of those of the environment. A
            change of the mapping counts at the next reload. A program of `from_command` gets the
            environment, too; there these variables win.
        max_connections: How many server connections this process may have at a time, for all
            databases together, probes and retired connections included; default: no limit. A
            checkout that needs one more waits for it, up to its `timeout`.
        configure: Functions that are called with each new connection, by the name of the database;
            "*" for every database: see the method `configure`.
        resolvers: The functions behind `{from_resolver: name, key: ...}`, by name. Each gets the key
            and returns a password, or `Credentials`; a coroutine function runs in a loop of its
            own. Entry points in the group `pgmonkey.resolvers` are found without this.

    Raises:
        RegistryConfigError: the directory or a file has problems, or the databases keep more
            connections open (`min_size`) than `max_connections`.
        PgmonkeyError: the thread that watches the files cannot be started, or gevent or eventlet has
            replaced threads in a way that does not work.
        ValueError: `probe_interval` is not more than 0, or `removal_delay` is less than 0.

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
        removal_delay: float = 5.0,
        metrics: prometheus_client.CollectorRegistry | None = prometheus_client.REGISTRY,
        histograms: bool = True,
        probe_interval: float | None = None,
        trust: Trust = "warn",
        env: Mapping[str, str] | None = None,
        max_connections: int | None = None,
        configure: Mapping[str, Configure] | None = None,
        resolvers: Mapping[str, ResolverFunction] | None = None,
    ) -> None:
        if env is not None:
            env = Variables(env)  # the frames of an error must not show values
        # NaN is neither more nor less than a number.
        if probe_interval is not None and not 0 < probe_interval < inf:
            raise ValueError(
                f"probe_interval must be a finite number of seconds above 0, not {probe_interval!r}"
            )
        if not removal_delay >= 0:
            raise ValueError(f"removal_delay must be 0 seconds or more, not {removal_delay!r}")
        greenlets.check()
        #: The directory. Absolute: whatever the program does to its working directory, it stays the
        #: same one. A link stays a link, so that it can get another target.
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow links
        self._loader = DirectoryLoader(
            self.path,
            names=None if names is None else tuple(names),
            allow_sensitive_defaults=allow_sensitive_defaults,
            trust=trust,
            env=env,
            on_untrusted=_untrusted,
            max_connections=max_connections,
            resolvers=dict(resolvers or {}),
        )
        # What `subscribe` was given, by a key of its own. Only the registry refers to it: what the
        # threads and the handles refer to would keep a registry alive that a function refers to.
        self._subscribers: dict[object, Callable[[Change], object]] = {}
        this = weakref.ref(self)  # a handle that outlives its registry must not keep it alive
        #: The handle of the declared type, by name. Read without a lock.
        self._defaults: dict[str, Handle] = {}
        self._limits = ConnectionLimits(max_connections)
        self._configure: dict[str, Configure] = {}
        shared = Shared(
            self._limits,
            self._defaults,
            on_open=partial(_call, this, Registry._on_open),
            look=partial(_call, this, Registry._look_for),
            tell=partial(_call, this, Registry._tell),
            configure=self._configure,
            probes=probe_interval is not None,
        )
        self._reloader = Reloader(self._loader, shared, removal_delay)
        self._records = self._reloader.records
        scan = self._reloader.load(strict=strict)
        for name, function in (configure or {}).items():
            self.configure(name, function)
        self._closed = False
        self._exported = metrics is not None
        self._maintenance = Maintenance(
            self._reloader,
            str(self.path),
            watch=watch,
            rescan_interval=rescan_interval,
            probe_interval=probe_interval,
        )
        weakref.finalize(self, self._maintenance.stop)
        events.emit(
            "registry.loaded",
            path=str(self.path),
            databases=len(scan.configs),
            rejected=len(scan.problems),
        )
        if metrics is not None:
            export(self, metrics, histograms=histograms)
            ensure_files()
        self._maintenance.ensure_running()
        fork.add(self, Registry._forget)

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
            force_reload: Replace the connections of the database even if nothing changed: at
                once, or, for an async type, when the handle is awaited.

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
        if not force_reload:
            return handle
        if isinstance(handle, AsyncDatabase):
            handle.request_reload()
        else:
            self._records[name].force()
        return handle

    def _find(self, name: str, connection_type: ConnectionType | None) -> Handle:
        handle = self._record(name).handle(connection_type)
        if handle is None:
            raise self._unknown(name)
        return handle

    def _record(self, name: str) -> Record:
        if self._closed:
            raise HandleClosedError(f"{name}: the registry {self.path} was closed")
        record = self._records.get(name)
        if record is None:
            raise self._unknown(name)
        return record

    def _unknown(self, name: str) -> UnknownDatabaseError:
        return UnknownDatabaseError.among(self.names, str(name), str(self.path))

    def configure(self, name: str, function: Configure) -> None:
        """Call a function with each new connection of a database, before a block gets it.

        Use it for settings that a file cannot hold: the adapters of types, JSON codecs,
        `register_vector`. It costs time at each connect (also after a reload, a restart or a
        fork), but none in a block. Every block begins with its settings. The function of "*" is
        called before that of the database.

        An async type awaits the result of the function if it is awaitable. The function must
        leave no transaction open. If it does, or raises, or takes longer than `connect_timeout`,
        the connect fails with the reason `configure`.

        Call this before the first checkout. A later call replaces open connections: each one is
        closed when its block ends.

        Args:
            name: The name of the database; "*" for every database, also of later files.
            function: What to call; it takes the place of the one before for this name.

        Raises:
            UnknownDatabaseError: no file declares the name.
            TypeError: the function cannot be called.

        Example:
            >>> from psycopg.rows import dict_row
            >>> def adapt(connection):
            ...     connection.row_factory = dict_row
            >>> registry.configure("orders", adapt)
            >>> with registry.get("orders") as conn:
            ...     conn.execute("SELECT 1 AS answer").fetchone()
            {'answer': 1}
        """
        if not callable(function):
            raise TypeError(f"{name}: expected a function, got {type(function).__name__}")
        records = [one for one in list(self._records.values()) if name in (EVERY, one.name)]
        if name != EVERY and not any(one.declared for one in records):
            raise self._unknown(name)
        self._configure[name] = function
        for record in records:
            record.reconfigure()

    def connect(self, name: str, /, **overrides: Any) -> psycopg.Connection[Any]:
        """Connect outside of the pool, with the settings of the file and your own over them.

        Use it where a pool does not fit: a migration without `statement_timeout`, creating the
        database of a test, a tool that runs for hours. It returns a psycopg connection of your own:
        close it, or use it as a context manager, which commits and closes as psycopg's does. Until
        it is closed or dropped, it counts in `max_connections`. Functions of `configure` are not
        called, no reload replaces it, and `leak_detection` does not report it.

        Args:
            name: The name of a declared database, of any type; its `sync_settings` count.
            overrides: As `psycopg.connect` takes them: `dbname="postgres"`, `autocommit=True`,
                `row_factory=dict_row`, `options="-c statement_timeout=0"`. `None` leaves one to
                its default. `options` win over `sync_settings`. A `url` replaces the whole place:
                host, user and password of the file do not count beside it.

        Raises:
            ConnectError: it cannot connect, for `reason`; or there was no room for it within the
                `timeout` of the database.
            UnknownDatabaseError: no file declares the name.
            ConfigError: the file has problems and never had a valid version.
            DatabaseRemovedError, HandleClosedError: as a checkout does.
            TypeError: psycopg knows no such parameter.
            ValueError: a value can never work.

        Example:
            >>> with registry.connect("orders", autocommit=True) as conn:
            ...     conn.execute("SELECT 1").fetchone()
            (1,)
        """
        given = Overrides.taken_from(overrides)  # now no frame of a traceback shows a password
        return self._record(name).connect(given)

    async def aconnect(self, name: str, /, **overrides: Any) -> psycopg.AsyncConnection[Any]:
        """Connect outside of the pool in the running event loop; see `connect`.

        Args:
            name: The name of a declared database, of any type; its `async_settings` count.
            overrides: As `psycopg.AsyncConnection.connect` takes them.

        Example:
            >>> async def answer():
            ...     async with await registry.aconnect("orders") as conn:
            ...         cursor = await conn.execute("SELECT 1")
            ...         return await cursor.fetchone()
            >>> asyncio.run(answer())
            (1,)
        """
        given = Overrides.taken_from(overrides)
        return await self._record(name).aconnect(given)

    def override(self, name: str, /, *, rollback: bool = False, **settings: Any) -> Override:
        """Let a database lead to another place for a block, or roll back everything done in it.

        Use it in tests. It holds for every handle of the database, in every thread and event loop,
        even if a module got its handle earlier. Enter it with `with` or `async with`; it gives
        the handle. Entering and leaving do not connect: they close idle connections, and the next
        block connects.

        With `rollback=True` all blocks of a handle, one after the other, are savepoints of one
        transaction, which is rolled back at the end. The guide "Tests" shows what differs from a
        real commit.

        Args:
            name: The name of a declared database, of any type.
            rollback: Whether to roll back what the blocks do.
            settings: As in `connect`: `dbname="test"`, `port=5433`. A `url` replaces the whole place:
                host, user and password of the file do not count beside it.

        Raises:
            UnknownDatabaseError: no file declares the name.
            TypeError, ValueError: a setting is unknown, or can never work.
            ConfigError, DatabaseRemovedError, HandleClosedError: when it is entered, as `get` and
                a checkout do.
            OverrideError: when it is left, and a block is still open that shares the transaction.

        Example:
            >>> from psycopg.rows import scalar_row
            >>> with registry.override("orders", rollback=True) as orders:
            ...     with orders as conn:
            ...         _ = conn.execute("CREATE TABLE is_not_left (id int)")
            >>> with registry.get("orders").cursor(row_factory=scalar_row) as cursor:
            ...     cursor.execute("SELECT to_regclass('is_not_left') IS NULL").fetchone()
            True
        """
        given = Overrides.taken_from(settings, checked=True)
        handle = partial(self.get, name)
        return self._record(name).override(given, handle, rollback=rollback)

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
            sorted(name for name, record in list(self._records.items()) if record.declared)
        )

    @property
    def closed(self) -> bool:
        """Tell whether the registry was closed."""
        return self._closed

    @property
    def watching(self) -> bool:
        """Tell whether the files are watched now."""
        return self._maintenance.watching

    # Reload

    def reload(self) -> ReloadReport:
        """Read the files now, apply the differences, and return a report.

        Works from any thread. It returns when every open pool has replaced its idle connections.
        A blocked event loop replaces them later, at the latest at its next checkout.

        Example:
            >>> registry.reload().rejected
            {}
        """
        return self._reloader.reload()

    async def areload(self) -> ReloadReport:
        """Do what `reload` does, without blocking the running loop.

        Example:
            >>> asyncio.run(registry.areload()).applied
            ()
        """
        return await asyncio.to_thread(self.reload)

    def wait_drained(self, timeout: float = 30.0) -> bool:
        """Wait until no connection of an older configuration is left, in any thread or loop.

        Call it before you revoke an old password or stop an old host. It blocks; in async code, use
        `await asyncio.to_thread(registry.wait_drained, 10)`.

        Args:
            timeout: Seconds.

        Returns:
            False if an older connection is still checked out (`status()` names the holders), or
            if an event loop with older connections was blocked for that time.

        Example:
            >>> registry.wait_drained(10)
            True
        """
        deadline = time.monotonic() + timeout
        while draining := [one for one in self._handles() if one.is_draining()]:
            now = time.monotonic()
            if now > deadline:
                return False
            for handle in draining:
                handle.patrol(now)
            self._maintenance.stopping.wait(_DRAINING)
        return True

    def subscribe(self, function: Callable[[Change], object]) -> Callable[[], object]:
        """Call a function with every change of a database: applied, rejected or removed.

        Use it to warm a cache, to count, or to alert. The function may use the registry. It should
        return soon, because it may run in the thread that watches the files. The changes of one
        database come one after the other, in their order. An exception becomes the event
        `subscriber.failed`, and stops no change. Child processes inherit the subscription.

        Args:
            function: No coroutine function. It is called with a `Change`, a plain value.

        Returns:
            A function that ends the subscription. It may be called more than once.

        Raises:
            TypeError: it is a coroutine function, or cannot be called.

        Example:
            >>> unsubscribe = registry.subscribe(lambda change: print(change.outcome))
            >>> _ = unsubscribe()
        """
        if iscoroutinefunction(function) or not callable(function):
            raise TypeError(
                "subscribe() takes a function that is called and not awaited; it may pass the change"
                " on to an event loop: loop.call_soon_threadsafe(queue.put_nowait, change)"
            )
        key = object()
        self._subscribers[key] = function
        return partial(_call, weakref.ref(self), Registry._unsubscribe, key)

    def _unsubscribe(self, key: object) -> None:
        self._subscribers.pop(key, None)

    def _tell(self, change: Change) -> None:
        """Tell the application of a change."""
        for function in list(self._subscribers.values()):
            try:
                function(change)
            except Exception as error:  # noqa: BLE001 - it must not break a reload; its text may be secret
                events.emit(
                    "subscriber.failed",
                    database=change.database,
                    function=getattr(function, "__qualname__", type(function).__qualname__),
                    error=type(error).__name__,
                    place=raised_at(error),
                )

    def _handles(self) -> list[Handle]:
        return [handle for record in list(self._records.values()) for handle in record.handles()]

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
        record = self._records.get(name)
        if record is None or not record.declared:
            raise self._unknown(name)
        record.probe()
        return record.status()

    # Status

    def status(self) -> RegistryStatus:
        """Return the state of every database as plain values. It waits for nothing.

        Example:
            >>> [database.name for database in registry.status().databases]
            ['events', 'orders', 'reports']
        """
        records = sorted(self._records.items())
        only = self._loader.only
        return RegistryStatus(
            path=str(self.path),
            databases=tuple(record.status() for _, record in records),
            problems=self._reloader.problems,
            watched=self._maintenance.watched,
            watching=self._maintenance.watching,
            polling=self._maintenance.polling,
            watcher_errors=self._maintenance.watcher_errors,
            last_reload_successful=self._reloader.successful,
            last_reload_success_at=self._reloader.last_success_at,
            reload_durations=self._reloader.durations(),
            only=None if only is None else tuple(sorted(only)),
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
        record = self._records.get(name)
        if record is None:
            raise self._unknown(name)
        return record.config

    # Called by handles and after a fork

    def _on_open(self) -> None:
        """Start the background work of this process before its first connect."""
        if self._closed:
            return
        greenlets.check()  # a server may have replaced threads after it has forked
        try:
            self._maintenance.ensure_running()
        except PgmonkeyError as error:  # the connection can still be made
            directories = sorted(self._reloader.directories)
            events.emit("watch.degraded", mode="none", directories=directories, reason=str(error))
        if self._exported:
            ensure_files()

    def _look_for(self, record: Record) -> None:
        """Read the files now: a login was refused, perhaps because its password was rotated."""
        self._maintenance.look_for(record)

    def _forget(self) -> None:
        """Begin without connections, threads and counts in a child process."""
        self._limits.reset()
        self._maintenance.forget()
        self._reloader.forget()

    # The end

    def close(self) -> None:
        """Close every handle for good. Checkouts in progress finish.

        Connections of an event loop close at the loop's next turn; to wait for that, use
        `async with registry` or `await registry.aclose()`.
        """
        try:
            self._end()
        finally:  # an interrupt while the thread ends keeps no handle open
            close_all(self._reloader.close(self._owner), self._owner)

    async def aclose(self) -> None:
        """Close every handle for good, and wait for the connections of the running loop."""
        try:
            self._end()
        finally:
            for handle in close_all(self._reloader.close(self._owner), self._owner):
                await handle.wait_closed()

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True  # first: whatever comes, it is closed
        if self._exported:
            withdraw(self)
        self._maintenance.stop()
        self._maintenance.join()
        events.emit("registry.closed", path=str(self.path))

    @property
    def _owner(self) -> str:
        return f"registry {self.path}"

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


def _call(this: weakref.ref[Registry], act: Callable[..., object], *arguments: object) -> None:
    if (registry := this()) is not None:
        act(registry, *arguments)
