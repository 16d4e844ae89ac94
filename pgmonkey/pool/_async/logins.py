"""Log in with credentials that are made on demand, where a database has such."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.credentials import forget, obtained_async
from pgmonkey.pool.failures import ConnectFailure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.credentials import Given

T = TypeVar("T")


async def logged_in(
    config: DatabaseConfig, log_in: Callable[[Given | None], Awaitable[T]]
) -> T | ConnectFailure:
    """Log in with the credentials of a database, or return why that failed.

    If the server refuses what was made before, it is made again, once: it may have been revoked.

    Args:
        config: What is connected with.
        log_in: Logs in once, with what was made on demand, if anything is; returns a
            `ConnectFailure` if that failed.
    """
    on_demand = config.on_demand
    if on_demand is None:
        return await log_in(None)
    began = monotonic()
    given = await obtained_async(config)
    if isinstance(given, ConnectFailure):
        return given
    made = await log_in(given)
    if not _is_refused(made) or (forget(on_demand, given) and given.read_at >= began):
        return made
    newer = await obtained_async(config)
    if isinstance(newer, ConnectFailure):
        return newer
    if not newer.logs_in_as(given):
        made = await log_in(newer)
    if _is_refused(made):
        forget(on_demand, newer)
    return made


def _is_refused(made: object) -> bool:
    return isinstance(made, ConnectFailure) and made.reason == "auth"
