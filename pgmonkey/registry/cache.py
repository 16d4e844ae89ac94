"""The handles of a registry or a manager: one for each key."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Hashable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pgmonkey.errors import HandleClosedError
from pgmonkey.pool.async_handle import AsyncDatabase
from pgmonkey.pool.handle import SyncDatabase
from pgmonkey.pool.limits import Budget
from pgmonkey.pool.loop_resources import close_stranded

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.pool.loop_side import LoopSide
    from pgmonkey.pool.target import Applied

Handle = SyncDatabase | AsyncDatabase


def make_handle(applied: Applied, connection_type: ConnectionType, budget: Budget) -> Handle:
    """Return a new sync or async handle; it does not connect."""
    if connection_type in ("async", "async_pool"):
        return AsyncDatabase(applied, connection_type, budget)
    return SyncDatabase(applied, connection_type, budget)


class HandleCache:
    """Keep one handle for each key.

    The registry's keys are (name, type), those of `PGConnectionManager` (digest, type).

    Args:
        max_connections: Server connections allowed at a time, over all handles; default: no
            limit.
    """

    def __init__(self, max_connections: int | None = None) -> None:
        self.budget = Budget(max_connections)
        self._handles: dict[Hashable, Handle] = {}
        #: The handle that `Registry.get(name)` returns, by name. Read without a lock.
        self.defaults: dict[str, Handle] = {}
        # Guards `_handles`. Nothing is connected or closed while it is held.
        self._lock = threading.Lock()

    def get(self, key: Hashable, applied: Applied, connection_type: ConnectionType) -> Handle:
        """Return the handle of this key; make it if there is none."""
        handle = self._handles.get(key)
        if handle is None:
            with self._lock:
                handle = self._handles.get(key)
                if handle is None:
                    handle = self._handles[key] = make_handle(applied, connection_type, self.budget)
        return handle

    def items(self) -> list[tuple[Any, Handle]]:
        """Return every key with its handle."""
        with self._lock:
            return list(self._handles.items())

    def all(self) -> list[Handle]:
        """Return every handle."""
        with self._lock:
            return list(self._handles.values())

    def of(self, name: str) -> list[Handle]:
        """Return the handles of one database, of every type."""
        return [handle for handle in self.all() if handle.name == name]

    def remove(self, handle: Handle) -> None:
        """Forget a handle."""
        with self._lock:
            for key in [key for key, one in self._handles.items() if one is handle]:
                del self._handles[key]

    def move(self, handle: Handle, key: tuple[bytes, str]) -> None:
        """Move a handle to another key, if it is in the cache.

        A handle that has that key already gets a random one: it stays in the cache, to be closed
        with it, but is not found any more.
        """
        with self._lock:
            old = next((old for old, one in self._handles.items() if one is handle), None)
            if old is None or old == key:
                return
            del self._handles[old]
            if (displaced := self._handles.get(key)) is not None:
                self._handles[secrets.token_bytes(16), key[1]] = displaced
            self._handles[key] = handle

    def drop_all(self) -> list[Handle]:
        """Empty the cache and return its handles, to be closed."""
        with self._lock:
            handles = list(self._handles.values())
            self._handles.clear()
            self.defaults.clear()
        return handles

    def forget(self) -> None:
        """Take a new lock and a new budget in a forked child."""
        self._lock = threading.Lock()
        self.budget.forget()


def close_handles(handles: list[Handle], owner: str) -> None:
    """Close handles for good, from any thread; those of event loops close when their loops run.

    A loop of this thread that is not running, between two `run_until_complete`, is run here. Later
    uses raise an error that names the owner.
    """
    sides = _shut(handles, owner)
    if asyncio._get_running_loop() is not None:
        return  # no other loop can run in this thread
    for side in sides:
        loop = side.loop()
        if side.thread == threading.get_ident() and loop is not None and not loop.is_closed():
            loop.run_until_complete(side.shut())


async def close_handles_async(handles: list[Handle], owner: str) -> None:
    """Close handles for good, and wait for those of the running loop."""
    here = asyncio.get_running_loop()
    for side in _shut(handles, owner):
        if side.loop() is here:
            await side.shut()


def _shut(handles: list[Handle], owner: str) -> list[LoopSide]:
    """Begin to close all handles before waiting for one; return their sides.

    The wait may be cancelled or interrupted, and the cache does not have the other handles any more.
    """
    sides: list[LoopSide] = []

    def shut(handle: Handle) -> None:
        sides.extend(handle.shut(closed_error(handle, owner)))

    with ExitStack() as stack:  # an interrupt of one is raised after the others have begun
        for handle in handles:
            stack.callback(shut, handle)
        close_stranded()
    return sides


def closed_error(handle: Handle, owner: str) -> HandleClosedError:
    """Return the error for using this handle after its owner was closed."""
    return HandleClosedError(f"{handle.name}: the {owner} of this handle was closed")
