"""The events that a test saw, and waiting for one."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from tests.kit.eventually import eventually


class CapturedEvents:
    """Collect structlog events as dictionaries, oldest first."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def __iter__(self) -> Any:
        return iter(list(self.all))

    def __len__(self) -> int:
        return len(self.all)

    @property
    def names(self) -> list[str]:
        """The names, oldest first."""
        return [event["event"] for event in list(self.all)]

    def named(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the events with this name and, where given, these values."""
        return [
            event
            for event in list(self.all)
            if event["event"] == name and all(event.get(k) == v for k, v in fields.items())
        ]

    def wait(self, name: str, timeout: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Wait for an event and return the newest such."""
        return eventually(
            lambda: self.named(name, **fields), timeout, f"event {name} {fields}; saw {self.names}"
        )[-1]

    def clear(self) -> None:
        """Forget what was seen."""
        self.all.clear()

    def processor(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Take an event in and pass it on: a structlog processor."""
        self.all.append(dict(event))
        return event
