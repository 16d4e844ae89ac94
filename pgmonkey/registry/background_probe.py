"""A background probe: whether the server of one database can be reached, beside its pools."""

from __future__ import annotations

import time
from typing import Final

from pgmonkey.errors import ConnectError
from pgmonkey.pool.budget import Budget, Share
from pgmonkey.pool.dialer import Dialer
from pgmonkey.pool.gate import Gate
from pgmonkey.pool.target import Target
from pgmonkey.pool.usage import Usage
from pgmonkey.registry.entry import Entry
from pgmonkey.telemetry.status import ProbeStatus

#: Seconds for which a probe waits, where the other databases left no connection.
_ROOM: Final = 1.0


def probe(entry: Entry, budget: Budget) -> None:
    """Connect to a database once, and note whether its server was reached.

    Args:
        entry: The database, where the outcome is noted.
        budget: The connections that all databases may have together, of which this is one.
    """
    if entry.applied is None or entry.removed:
        entry.probe = ProbeStatus(up=False, seconds=0.0)  # nothing to connect with
        return
    config = entry.applied.config
    share = Share(budget, Target(entry.applied), f"{entry.name}/probe")
    gate = Gate(1, Usage(), share)
    dialer = Dialer(config, config.connection_type, gate)
    began = time.monotonic()
    try:
        if (refusal := dialer.refusal()) is not None:
            raise refusal.error(entry.name)
        slot = gate.wait(lambda: False, server=config.server, timeout=_ROOM)
        if slot is None:
            raise ConnectError(
                f"{share.explain()}, so that none is left to probe it",
                database=entry.name,
                reason="too_many_connections",
                hint="raise max_connections",
            )
        dialer.dial(slot, probe=True).close()
    except ConnectError as error:
        entry.last_error = error
    else:
        entry.reached = True
        entry.last_error = None
    entry.probe = ProbeStatus(entry.last_error is None, time.monotonic() - began)
