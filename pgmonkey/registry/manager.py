"""The library API of pgmonkey 4.0, with the same handles as the registry."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from pgmonkey.config.interpolation import LoadOptions
from pgmonkey.config.legacy import load_dict
from pgmonkey.config.loader import config_or_raise, load_file
from pgmonkey.config.models import CONNECTION_TYPES, ConnectionType
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.errors import ConnectError
from pgmonkey.pool.async_handle import AsyncDatabase
from pgmonkey.pool.target import Applied
from pgmonkey.registry.cache import Handle, HandleCache, close_handles, close_handles_async

if TYPE_CHECKING:
    from pgmonkey.pool.database import Database


class _Given(NamedTuple):
    """What a call returned last: the handle, and the configuration that was read for it."""

    config: DatabaseConfig
    handle: Handle


class PGConnectionManager:
    """Return a handle for a configuration file or dictionary, the same one every time.

    This is the API of pgmonkey 4.0. Use `Registry` in new code and with several databases: it
    knows them by name and reloads changed files itself; a manager reads a file in each call.

    A manager that is dropped closes its connections, unless the program still holds the handle.

    Example:
        >>> manager = PGConnectionManager()
        >>> pool = manager.get_database_connection("config.yaml", "pool")
        >>> with pool as conn:
        ...     conn.execute("SELECT 1").fetchone()
        (1,)
    """

    def __init__(self) -> None:
        self._cache = HandleCache()
        #: By the arguments of a call: what a repeated call returns without parsing.
        self._calls: dict[tuple[Any, ...], _Given] = {}
        #: By path and connection type: the handle whose connections `force_reload` replaces.
        self._last: dict[tuple[str, ConnectionType], Handle] = {}
        # Guards `_last` and the removals from `_calls`. Nothing is connected, closed or waited
        # for while it is held.
        self._lock = threading.Lock()
        _all.add(self)

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
            config_file_path: A YAML file.
            connection_type: `normal`, `pool`, `async` or `async_pool`; default: the type that the
                file declares, or `normal`.
            force_reload: Connect again, with what the file says now, the handle that this path
                returned last. If that fails, the old connections keep serving.
            resolve_env: Resolve `${NAME}`, `from_env` and `from_file`.
            allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and the like.

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
        call = (path, connection_type, resolve_env, allow_sensitive_defaults)
        given = self._calls.get(call)
        if (
            given is not None
            and not force_reload
            and given.handle.target.gone is None
            and given.config.is_current()
        ):
            return self._give(given.handle)
        wanted = None if connection_type is None else _checked(connection_type)
        config = load_file(
            path,
            resolve=resolve_env,
            allow_sensitive_defaults=allow_sensitive_defaults,
            isolate=False,
        )
        wanted = wanted or config.connection_type
        # Not resolved: the target of a link changes with each update of a Kubernetes volume.
        place = (str(Path(path).absolute()), wanted)
        with self._lock:
            handle = self._choose(place, config, wanted, force_reload=force_reload)
            self._last[place] = handle
            if not force_reload:
                self._calls[call] = _Given(config, handle)
        if force_reload:
            return self._reload(handle, config)
        return self._give(handle)

    def _choose(
        self,
        place: tuple[str, ConnectionType],
        config: DatabaseConfig,
        wanted: ConnectionType,
        *,
        force_reload: bool,
    ) -> Handle:
        """Return the handle for this config, or the one to reload."""
        last = self._last.get(place)
        if (
            force_reload
            and last is not None
            and last.target.gone is None
            # Two files with equal contents share a handle. When one of them changes, users of the
            # other one must keep their settings.
            and (
                last.target.applied.config.digest == config.digest
                or not any(other is last for where, other in self._last.items() if where != place)
            )
        ):
            return last
        return self._cache.get((config.digest, wanted), Applied(config), wanted)

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
            resolve_env, isolate=False, allow_sensitive_defaults=allow_sensitive_defaults
        )
        loaded = load_dict(config_data_dictionary, options)
        # An error below may be printed with the locals of this frame.
        del config_data_dictionary
        config = config_or_raise(loaded, isolate=False)
        wanted = config.connection_type if connection_type is None else _checked(connection_type)
        handle = self._cache.get((config.digest, wanted), Applied(config), wanted)
        return self._reload(handle, config) if force_reload else self._give(handle)

    def _give(self, handle: Handle) -> Any:
        if isinstance(handle, AsyncDatabase):
            return self._open_async(handle)
        if handle.connection_type == "normal":
            try:
                handle.open()
            except ConnectError:
                self._forget(handle)
                raise
        else:
            handle.start()
        return handle

    async def _open_async(self, handle: AsyncDatabase) -> Database:
        if handle.connection_type == "async":
            try:
                await handle.open()
            except ConnectError:
                self._forget(handle)
                raise
        else:
            handle.start()
        return handle

    def _forget(self, handle: Handle) -> None:
        """Drop a handle that could not connect, so that it does not count as cached."""
        with self._lock:
            if handle.is_open():
                return
            self._cache.remove(handle)
            for call in [call for call, given in self._calls.items() if given.handle is handle]:
                del self._calls[call]
            for place in [place for place, one in self._last.items() if one is handle]:
                del self._last[place]

    def _reload(self, handle: Handle, config: DatabaseConfig) -> Any:
        if isinstance(handle, AsyncDatabase):
            return self._reload_async(handle, config)
        handle.force_reload(config)
        self._moved(handle)
        return self._give(handle)

    async def _reload_async(self, handle: AsyncDatabase, config: DatabaseConfig) -> Database:
        await handle.force_reload(config)
        self._moved(handle)
        return await self._open_async(handle)

    def _moved(self, handle: Handle) -> None:
        """Make a handle known by the configuration that it runs now."""
        with self._lock:
            self._cache.move(handle, (handle.target.applied.config.digest, handle.connection_type))

    @property
    def cache_info(self) -> dict[str, Any]:
        """Return how many handles are cached, and their types.

        The names in `connection_types` reveal nothing about a configuration: they are hashes with
        a random key of this process.

        Example:
            >>> PGConnectionManager().cache_info
            {'size': 0, 'connection_types': {}}
        """
        entries = self._cache.items()
        return {
            "size": len(entries),
            "connection_types": {
                f"{digest.hex()[:12]}:{connection_type}": connection_type
                for (digest, connection_type), _ in entries
            },
        }

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
            if any(
                side.loop() is here and side.generation is not None
                for _, handle in self._cache.items()
                for side in handle.sides()
            ):
                raise RuntimeError(
                    "async connections of the running event loop are open:"
                    " use `await manager.clear_cache_async()` here"
                )
        close_handles(self._drop_all(), "manager's cache")

    async def clear_cache_async(self) -> None:
        """Close every cached handle and forget it; wait for those of the running loop."""
        await close_handles_async(self._drop_all(), "manager's cache")

    def _drop_all(self) -> list[Handle]:
        with self._lock:
            self._calls.clear()
            self._last.clear()
            return self._cache.drop_all()

    def _forget_locks(self) -> None:
        """Take new locks in a forked child: the parent may have held them."""
        self._lock = threading.Lock()
        self._cache.forget()

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


_all: Final[weakref.WeakSet[PGConnectionManager]] = weakref.WeakSet()


def _after_fork() -> None:
    for manager in list(_all):
        manager._forget_locks()


os.register_at_fork(after_in_child=_after_fork)
