"""Readiness: what /readyz says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgmonkey.registry.registry import Registry
from pgmonkey.telemetry.status import DatabaseStatus


class Readiness:
    """Decide what /readyz says.

    Ready means: every required database that was declared at the start was reached at least
    once. From then on an outage changes nothing, for a database that is down must not take
    every pod out of service; only the end of the process does.

    Args:
        registry: Whose databases count.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._awaited = {one.name for one in registry.status().databases if one.required}
        #: Set when the process begins to shut down.
        self.stopping = False

    def look(self, reason: Callable[[DatabaseStatus], str | None]) -> dict[str, Any]:
        """Return what /readyz says as its body; `ready` is the verdict.

        Args:
            reason: Says why a database was not reached, in one word.
        """
        databases = [one for one in self._registry.status().databases if one.state]
        if self._awaited:
            waiting = {one.name for one in databases if one.required and not one.reached}
            self._awaited &= waiting
        return {
            "ready": not self._awaited and not self.stopping,
            "stopping": self.stopping,
            "waiting_for": sorted(self._awaited),
            "databases": {
                one.name: {
                    "required": one.required,
                    "reached": one.reached,
                    "state": one.state,
                    "reason": reason(one),
                }
                for one in databases
            },
        }
