"""Connect once, outside of the pools, to learn whether a server can be reached."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from pgmonkey.errors import ConnectError
from pgmonkey.pool._sync.connecting import connect
from pgmonkey.pool.connecting import refused_logins
from pgmonkey.pool.failures import ConnectFailure

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.limits import ConnectionLimits

#: Seconds to wait for a connection when the pools have all that `max_connections` allows.
_ROOM: Final = 1.0


class _Probe:
    """One connection beside the pools, as the limits see it."""

    max_size = 1

    def __init__(self, config: DatabaseConfig) -> None:
        self.label = f"{config.name}/probe"
        self.server = config.server
        self.max_connections = config.max_connections
        self._freed = threading.Event()

    def try_again_soon(self) -> None:
        """Ask again: another connection was closed."""
        self._freed.set()

    def take(self, limits: ConnectionLimits) -> str | None:
        """Count one more connection within a second, or return which limit forbids it."""
        deadline = time.monotonic() + _ROOM
        while (refusal := limits.take(self, self.server)) is not None:
            if not self._freed.wait(max(0.0, deadline - time.monotonic())):
                return limits.explain(self, self.server) or refusal
            self._freed.clear()
        return None


def probe_failure(config: DatabaseConfig, limits: ConnectionLimits) -> ConnectError | None:
    """Connect once and close the connection again; return why that failed, if it did.

    Args:
        config: What to connect with.
        limits: Where the connection counts.
    """
    if (failure := refused_logins.paused(config)) is not None:
        return failure.error(config.name)
    probe = _Probe(config)
    if (refusal := probe.take(limits)) is not None:
        return ConnectError(
            f"{refusal}, so none is left for the probe",
            database=config.name,
            reason="too_many_connections",
            hint="raise max_connections",
        )
    try:
        if (failure := refused_logins.claim(config)) is not None:
            return failure.error(config.name)
        connection = connect(config, config.connection_type)
        if isinstance(connection, ConnectFailure):
            if connection.lasting:
                refused_logins.refused(config, connection)
            return connection.error(config.name)
        refused_logins.accepted(config)
        connection.close()
        return None
    finally:
        limits.give(probe, probe.server)
