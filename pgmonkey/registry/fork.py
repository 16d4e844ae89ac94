"""What happens when a process forks: the one hook of the package, in one order.

A child process has the parent's memory, but none of its threads: a lock that another thread held in
that moment is held for ever, and what that thread was changing is half changed. So the child takes
new locks everywhere, counts from zero, and leaves the parent's connections alone.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

from pgmonkey.pool import credentials, hosts
from pgmonkey.pool._async import database as async_database
from pgmonkey.pool._sync import database as sync_database
from pgmonkey.pool.connecting import refused_logins
from pgmonkey.telemetry import events, metrics, multiprocess

T = TypeVar("T")

#: What each registry and manager calls in a child process.
_owners: Final[weakref.WeakKeyDictionary[Any, Callable[[Any], object]]] = (
    weakref.WeakKeyDictionary()
)


def add(owner: T, forget: Callable[[T], object]) -> None:
    """Call a method of a registry or manager in every child process, as long as it is alive."""
    _owners[owner] = forget


def _in_child() -> None:
    events.reset()
    multiprocess.after_fork()
    metrics.reset()
    hosts.reset()
    credentials.reset()
    refused_logins.reset()
    async_database.forget_pools()
    sync_database.forget_pools()
    for owner, forget in list(_owners.items()):
        forget(owner)


os.register_at_fork(
    before=multiprocess.before_fork,
    after_in_parent=multiprocess.after_fork,
    after_in_child=_in_child,
)
