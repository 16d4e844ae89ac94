"""The layout of a file: its sections, and the connection types. Without pydantic, so it is light."""

from __future__ import annotations

from typing import Final, Literal

ConnectionType = Literal["normal", "pool", "async", "async_pool"]
CONNECTION_TYPES: Final[tuple[ConnectionType, ...]] = ("normal", "pool", "async", "async_pool")

#: The keys of a file whose values are mappings.
SECTIONS: Final = frozenset(
    {
        "connection_settings",
        "pool_settings",
        "async_pool_settings",
        "sync_settings",
        "async_settings",
    }
)
