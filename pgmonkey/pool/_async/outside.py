"""Connections outside of the pools: for migrations, test databases, tools."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.pool._async.changes import PLAIN_CURSORS, set_up
from pgmonkey.pool._async.logins import logged_in
from pgmonkey.pool._async.waiting import AsyncDriverConnection, in_thread, sleep
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.connecting import refused_logins
from pgmonkey.pool.failures import ConnectFailure, classify
from pgmonkey.pool.hosts import resolved_async

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.credentials import Given
    from pgmonkey.pool.handle import Hooks
    from pgmonkey.pool.limits import ConnectionLimits

#: Seconds between two looks whether there is room for a connection.
_LOOK: Final = 0.05


class AsyncOutsideConnection(AsyncDriverConnection[Any]):
    """A `psycopg.AsyncConnection` that counts within the limits until it is closed or dropped."""

    #: Counts it no more; set when it is counted.
    uncount: Callable[[], object] | None = None

    async def close(self) -> None:
        """Close the connection."""
        await super().close()
        if self.uncount is not None:
            self.uncount()


class _Place:
    """One connection outside of the pools, as the limits see it."""

    max_size = 1

    def __init__(self, config: DatabaseConfig) -> None:
        self.label = f"{config.name}/connect"
        self.server = config.server
        self.max_connections = config.max_connections

    def try_again_soon(self) -> None:
        """Do nothing: who waits for this place asks again."""


async def connect_outside(
    current: Callable[[], DatabaseConfig],
    connection_type: ConnectionType,
    limits: ConnectionLimits,
    hooks: Hooks,
    options: Mapping[str, Any],
) -> AsyncOutsideConnection:
    """Connect once. After a refused login, if the files have changed, once more.

    Args:
        current: Returns what to connect with now.
        connection_type: Decides which session settings count.
        limits: Where the connection counts.
        hooks: What to call in the registry.
        options: Arguments of `psycopg.AsyncConnection.connect` that are no settings.

    Raises:
        ConnectError: with the server's reason.
    """
    hooks.on_open()
    config = current()
    made = await _connect(config, connection_type, limits, options)
    if isinstance(made, ConnectFailure) and made.reason == "auth":
        await in_thread(hooks.on_refused)  # a file may have the right password by now
        refused, config = config, current()
        if config.connect_digest != refused.connect_digest:
            made = await _connect(config, connection_type, limits, options)
    if isinstance(made, ConnectFailure):
        raise made.error(config.name, hooks.rejected())
    return made


async def _connect(
    config: DatabaseConfig,
    connection_type: ConnectionType,
    limits: ConnectionLimits,
    options: Mapping[str, Any],
) -> AsyncOutsideConnection | ConnectFailure:
    """Connect once when there is room, or return why that failed."""
    place = _Place(config)
    deadline = monotonic() + config.timeout
    while (refusal := limits.take(place, place.server)) is not None:
        if monotonic() > deadline:
            return ConnectFailure(
                "too_many_connections",
                limits.explain(place, place.server) or refusal,
                hint="raise max_connections, or lower max_size, min_size or max_idle of the databases that hold them",
            )
        await sleep(_LOOK)
    connected = False
    try:
        # Of other failures the next try is at once: the program may have made the database.
        refused = refused_logins.claim(config)
        if refused is not None and refused.reason == "auth":
            return refused
        made = await logged_in(config, partial(_log_in, config, connection_type, options))
        if isinstance(made, ConnectFailure):
            if made.reason == "auth":
                refused_logins.refused(config, made)
            return made
        made.uncount = weakref.finalize(made, limits.give, place, place.server)
        connected = True
        refused_logins.accepted(config)
        return made
    finally:
        if not connected:
            limits.give(place, place.server)


async def _log_in(
    config: DatabaseConfig,
    connection_type: ConnectionType,
    options: Mapping[str, Any],
    given: Given | None,
) -> AsyncOutsideConnection | ConnectFailure:
    # The driver's exception goes no further: its frames and attributes hold the password.
    made = given.parameters if given is not None else dict[str, str]
    try:
        cursor_factory = PLAIN_CURSORS[config.psycopg_settings.get("cursor_factory", "Cursor")]
        connection = await AsyncOutsideConnection.connect(
            **{
                "cursor_factory": cursor_factory,
                **await resolved_async({**config.connect_kwargs(connection_type), **made()}),
                **options,
            }
        )
        settings = {
            key: value for key, value in config.psycopg_settings.items() if key not in options
        }
        await set_up(connection, settings)
        return connection
    except Exception as error:  # noqa: BLE001 - any error of a connect is a reason for a person
        return classify(error, config, (given.password,) if given is not None else ())
    except BaseException as interrupt:  # noqa: BLE001 - it goes on, without the driver's frames
        interrupt.__context__ = None
        raise interrupt.with_traceback(None) from None
