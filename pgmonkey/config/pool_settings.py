"""Pool settings: how large a pool is and how it treats its connections, all defaults applied."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class PoolSettings(NamedTuple):
    """Hold the effective settings of the pool of one connection type. Times are in seconds.

    Args:
        min_size: How many connections are kept open.
        max_size: How many are opened at most.
        timeout: How long a checkout may wait.
        max_waiting: How many clients may wait; 0 is no limit.
        max_idle: How long a connection above `min_size` stays unused.
        max_lifetime: How old a connection may become.
        reconnect_timeout: How long the pool tries to replace a connection.
        num_workers: How many workers open connections.
        check_on_checkout: Whether each checkout asks the server for a sign of life.
    """

    min_size: int
    max_size: int
    timeout: float
    max_waiting: int
    max_idle: float
    max_lifetime: float
    reconnect_timeout: float
    num_workers: int
    check_on_checkout: bool


# A thousand databases mostly have the same few pools.


@lru_cache(maxsize=1024)
def shared(settings: PoolSettings) -> PoolSettings:
    """Return one object for equal settings."""
    return settings


@lru_cache(maxsize=1024)
def written(settings: PoolSettings) -> str:
    """Return the settings as text, for digests."""
    return repr(settings)
