"""The library API of pgmonkey 4.0, with the same handles as the registry."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pgmonkey.config.env_file import Variables
from pgmonkey.config.interpolation import LoadOptions
from pgmonkey.config.legacy import load_dict
from pgmonkey.config.loader import LoadResult, config_or_raise, load_file
from pgmonkey.config.models import CONNECTION_TYPES, ConnectionType
from pgmonkey.config.overrides import Overrides
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.errors import ConnectError
from pgmonkey.pool._async.database import AsyncDatabase
from pgmonkey.pool._async.waiting import in_thread
from pgmonkey.pool.limits import ConnectionLimits
from pgmonkey.registry import fork, greenlets
from pgmonkey.registry.override import Override, complete, complete_async
from pgmonkey.registry.record import Handle, Record, Shared, close_all

if TYPE_CHECKING:
    from pgmonkey.pool.handle import Database


class _Cached(NamedTuple):
    """A handle that was given, and the record that owns it."""

    record: Record
    handle: Handle

    @property
    def digest(self) -> bytes:
        """What tells the configuration that it runs, without overrides, from others."""
        assert self.record.base is not None
        return self.record.base.digest


class _Given(NamedTuple):
    """What a call returned last: the handle, and the configuration that was read for it."""

    config: DatabaseConfig
    cached: _Cached


class PGConnectionManager:
    """Return a handle for a configuration file or dictionary, the same one every time.

    This is the API of pgmonkey 4.0. Use `Registry` in new code and with several databases: it
    knows them by name and reloads changed files itself; a manager reads a file in each call.

    A manager that is dropped closes its connections, unless the program still holds the handle.

    Args:
        env: The variables for `${NAME}` and `from_env`, instead of those of the environment, as
            `Registry` takes them.

    Example:
        >>> manager = PGConnectionManager()
        >>> pool = manager.get_database_connection("config.yaml", "pool")
        >>> with pool as conn:
        ...     conn.execute("SELECT 1").fetchone()
        (1,)
    """

    def __init__(self, *, env: Mapping[str, str] | None = None) -> None:
        self._env = None if env is None else Variables(env)
        self._limits = ConnectionLimits()
        self._shared = Shared(
            self._limits,
            {},
            on_open=greenlets.check,
            look=_nothing,
            tell=_nothing,
            configure={},
        )
        #: Every handle that was given, the last one that was made or reloaded at the end.
        self._cached: list[_Cached] = []
        #: By the arguments of a call: what a repeated call returns without parsing.
        self._calls: dict[tuple[Any, ...], _Given] = {}
        #: By path and connection type: the handle whose connections `force_reload` replaces.
        self._last: dict[tuple[str, ConnectionType], _Cached] = {}
        # Guards the three above; `_calls` is read without it. Nothing is connected, closed or
        # waited for while it is held.
        self._lock = threading.Lock()
        fork.add(self, PGConnectionManager._forget)

    def get_database_connection(
        self,
        config_file_path: str | os.PathLike[str],
        connection_type: str | None = None,
        force_reload: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> Any:
        """Return the handle of a configuration file; for async types, a coroutine that returns it.

        `normal` and `async` connect in this call and raise the server's reason; pools begin to
        fill and do not wait. A call costs microseconds when the file, its secrets and its
        variables have not changed.

        Args:
            config_file_path: A YAML file. A relative path starts at the working directory of this
                call.
            connection_type: `normal`, `pool`, `async` or `async_pool`; default: the type that the
                file declares, or `normal`.
            force_reload: Replace the connections of the handle that this path returned last, with
                the present content of the file. If the new ones fail, the old ones keep serving.
            resolve_env: Resolve `${NAME}`, `from_env` and `from_file`.
            allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and other secrets.

        Raises:
            ConfigError: the file has problems.
            EnvInterpolationError: a reference cannot be resolved.
            ConnectError: `normal` and `async` could not connect.
            ReloadRejectedError: `force_reload` could not connect.

        Example:
            >>> with manager.get_database_connection("config.yaml", "pool") as conn:
            ...     conn.execute("SELECT 1").fetchone()
            (1,)
        """
        path = os.fspath(config_file_path)
        if not path.startswith("/"):
            path = f"{os.getcwd()}/{path}"  # noqa: PTH109 - a repeated call costs microseconds
        call = (path, connection_type, resolve_env, allow_sensitive_defaults)
        given = self._calls.get(call)
        if (
            given is not None
            and not force_reload
            and given.cached.handle.gone is None
            and given.config.is_current()
        ):
            return self._give(given.cached)
        cached, config = self._find_for_file(call, force_reload=force_reload)
        return self._reload(cached, config) if force_reload else self._give(cached)

    def _find_for_file(
        self, call: tuple[str, str | None, bool, bool], *, force_reload: bool
    ) -> tuple[_Cached, DatabaseConfig]:
        """Read a file, and return the handle of a call, or the one to reload."""
        path, connection_type, resolve_env, allow_sensitive_defaults = call
        wanted = None if connection_type is None else _checked(connection_type)
        config = load_file(
            path,
            resolve=resolve_env,
            allow_sensitive_defaults=allow_sensitive_defaults,
            isolate=False,
            env=self._env,
        )
        wanted = wanted or config.connection_type
        # Not resolved: the target of a link changes with each update of a Kubernetes volume.
        place = (os.path.abspath(path), wanted)  # noqa: PTH100 - as said
        with self._lock:
            cached = self._choose(place, config, wanted, force_reload=force_reload)
            self._last[place] = cached
            if not force_reload and cached.digest == config.digest:
                self._calls[call] = _Given(config, cached)
        return cached, config

    def _choose(
        self,
        place: tuple[str, ConnectionType],
        config: DatabaseConfig,
        wanted: ConnectionType,
        *,
        force_reload: bool,
    ) -> _Cached:
        """Return the handle for this config, or the one to reload. The caller holds the lock."""
        last = self._last.get(place)
        if last is not None and last.record.is_overridden:
            return last  # whatever the file says by now
        if (
            force_reload
            and last is not None
            and last.handle.gone is None
            # Two files with equal contents share a handle. When one of them changes, users of the
            # other one must keep their settings.
            and (
                last.digest == config.digest
                or not any(other is last for where, other in self._last.items() if where != place)
            )
        ):
            # In one step: a child process may be forked between two.
            self._cached[:] = [*(one for one in self._cached if one is not last), last]
            return last
        return self._find(config, wanted)

    def _find(self, config: DatabaseConfig, wanted: ConnectionType) -> _Cached:
        """Return the handle that runs a config; make it if there is none. The caller holds the lock."""
        for cached in reversed(self._cached):
            if cached.handle.connection_type == wanted and cached.digest == config.digest:
                return cached
        record = Record(config.name, self._shared, config)
        handle = record.handle(wanted)
        assert handle is not None
        cached = _Cached(record, handle)
        self._cached.append(cached)
        return cached

    def get_database_connection_from_dict(
        self,
        config_data_dictionary: Mapping[str, Any],
        connection_type: str | None = None,
        force_reload: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> Any:
        """Return the handle of a configuration dictionary; see `get_database_connection`.

        Args:
            config_data_dictionary: The sections of a configuration file.
            connection_type: As there.
            force_reload: Replace the connections of the handle that an equal dictionary returned.
            resolve_env: As there.
            allow_sensitive_defaults: As there.

        Example:
            >>> from pgmonkey import load_config
            >>> settings = load_config("config.yaml")
            >>> with manager.get_database_connection_from_dict(settings, "pool") as conn:
            ...     conn.execute("SELECT 1").fetchone()
            (1,)
        """
        options = LoadOptions(
            resolve_env,
            isolate=False,
            allow_sensitive_defaults=allow_sensitive_defaults,
            env=self._env,
        )
        loaded = load_dict(config_data_dictionary, options)
        # An error below may be printed with the locals of this frame.
        del config_data_dictionary
        cached, config = self._find_loaded(loaded, connection_type)
        return self._reload(cached, config) if force_reload else self._give(cached)

    def _find_loaded(
        self, loaded: LoadResult, connection_type: str | None
    ) -> tuple[_Cached, DatabaseConfig]:
        config = config_or_raise(loaded, isolate=False)
        wanted = config.connection_type if connection_type is None else _checked(connection_type)
        with self._lock:
            return self._find(config, wanted), config

    def override(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any],
        connection_type: str | None = None,
        *,
        rollback: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        **settings: Any,
    ) -> Override:
        """Let a handle lead somewhere else for a block, or roll back everything done in it.

        It works as `Registry.override`, for the handle that calls with these arguments return. It
        does not connect; nor do the calls in the block, if `rollback` is true.

        Args:
            config: The path or the dictionary that the application gives.
            connection_type: What the application gives.
            rollback: Whether to roll back what the blocks do.
            resolve_env: What the application gives.
            allow_sensitive_defaults: What the application gives.
            settings: As in `Registry.override`.

        Raises:
            ConfigError, EnvInterpolationError: as `get_database_connection` does.
            TypeError, ValueError, OverrideError: as `Registry.override` does.

        Example:
            >>> with manager.override("config.yaml", "pool", rollback=True):
            ...     with manager.get_database_connection("config.yaml", "pool") as conn:
            ...         _ = conn.execute("CREATE TABLE is_not_left (id int)")
        """
        given = Overrides.taken_from(settings, checked=True)
        if isinstance(config, Mapping):
            options = LoadOptions(
                resolve_env, isolate=False, allow_sensitive_defaults=allow_sensitive_defaults
            )
            loaded = load_dict(config, options)
            del config
            cached, _ = self._find_loaded(loaded, connection_type)
        else:
            path = os.path.abspath(config)  # noqa: PTH100 - a link stays a link
            call = (path, connection_type, resolve_env, allow_sensitive_defaults)
            cached, _ = self._find_for_file(call, force_reload=False)
        return cached.record.override(given, lambda: cached.handle, rollback=rollback)

    def _give(self, cached: _Cached) -> Any:
        handle = cached.handle
        if isinstance(handle, AsyncDatabase):
            return self._open(cached, handle)
        if handle.connection_type == "normal":
            try:
                handle.open()
            except ConnectError:
                if self._drop(cached):
                    handle.close()
                raise
        else:
            handle.start()
        return handle

    async def _open(self, cached: _Cached, handle: AsyncDatabase) -> Database:
        if handle.connection_type == "async":
            try:
                await handle.open()
            except ConnectError:
                if self._drop(cached):
                    await handle.close()
                raise
        else:
            await handle.start()
        return handle

    def _drop(self, cached: _Cached) -> bool:
        """Drop a handle that could not connect, so that it does not count as cached.

        Returns:
            Whether it has no connection: the caller closes it.
        """
        with self._lock:
            if cached.handle.is_open():
                return False
            if cached in self._cached:
                self._cached.remove(cached)
            for call in [call for call, given in self._calls.items() if given.cached is cached]:
                del self._calls[call]
            for place in [place for place, one in self._last.items() if one is cached]:
                del self._last[place]
            return True

    def _reload(self, cached: _Cached, config: DatabaseConfig) -> Any:
        handle = cached.handle
        if isinstance(handle, AsyncDatabase):
            return self._reload_async(cached, handle, config)
        cached.record.force(config)
        return self._give(cached)

    async def _reload_async(
        self, cached: _Cached, handle: AsyncDatabase, config: DatabaseConfig
    ) -> Database:
        await in_thread(partial(cached.record.force, config))
        return await self._open(cached, handle)

    @property
    def cache_info(self) -> dict[str, Any]:
        """Return how many handles are cached, and their types.

        The names in `connection_types` reveal nothing about a configuration: they are hashes with
        a random key of this process.

        Example:
            >>> PGConnectionManager().cache_info
            {'size': 0, 'connection_types': {}}
        """
        with self._lock:
            cached = list(self._cached)
        types: dict[str, str] = {}
        for one in cached:
            name = f"{one.digest.hex()[:12]}:{one.handle.connection_type}"
            while name in types:  # an older handle with equal settings
                name += "'"
            types[name] = one.handle.connection_type
        return {"size": len(types), "connection_types": types}

    def clear_cache(self) -> None:
        """Close every cached handle and forget it. From async code, use `clear_cache_async`.

        Raises:
            RuntimeError: connections belong to the event loop that runs in this thread, which
                could close them only after this call. Nothing was closed.
        """
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            with self._lock:
                handles = [one.handle for one in self._cached]
            if any(here in one.pools for one in handles if isinstance(one, AsyncDatabase)):
                raise RuntimeError(
                    "async connections of the running event loop are open:"
                    " use `await manager.clear_cache_async()` here"
                )
        overridden, records = self._take_all()
        for record in overridden:
            complete(record.close_overridden())
        close_all(records, "manager's cache")

    async def clear_cache_async(self) -> None:
        """Close every cached handle and forget it; wait for those of the running loop."""
        overridden, records = self._take_all()
        for record in overridden:
            await complete_async(record.close_overridden())
        for handle in close_all(records, "manager's cache"):
            await handle.wait_closed()

    def _take_all(self) -> tuple[list[Record], list[Record]]:
        """Forget all handles, and return their records; those with an override stay, and come first.

        Without it, the next call would connect to what was overridden.
        """
        with self._lock:
            kept = [one for one in self._cached if one.record.is_overridden]
            records = [one.record for one in self._cached if one not in kept]
            self._cached[:] = kept
            self._calls.clear()
            self._last = {place: one for place, one in self._last.items() if one in kept}
            return [one.record for one in kept], records

    def _forget(self) -> None:
        """Begin without connections and with a new lock in a child process."""
        self._lock = threading.Lock()
        self._limits.reset()
        for cached in self._cached:
            cached.record.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.clear_cache()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.clear_cache_async()


def _checked(connection_type: str) -> ConnectionType:
    for known in CONNECTION_TYPES:
        if connection_type == known:
            return known
    raise ValueError(
        f"Unsupported connection type: {connection_type!r}."
        f" Valid types: {', '.join(CONNECTION_TYPES)}"
    )


def _nothing(*_arguments: object) -> None:
    """Do nothing: a manager has no thread to start, and no files that it watches."""
