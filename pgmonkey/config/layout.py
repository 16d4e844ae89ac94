"""The layout of a file: sections, keys, connection types. Without pydantic, so it is light."""

from __future__ import annotations

import json
from collections.abc import Iterable
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

#: Where null is a value, not the absence of one.
NULLABLE: Final = ("connection_settings", "prepare_threshold")

#: What is merged under every database of a directory.
DEFAULTS_FILE: Final = "_defaults.yaml"

#: Keys and indexes that lead to one part of a file, from the top.
KeyPath = tuple["str | int", ...]


def dotted(path: Iterable[str | int]) -> str | None:
    """Return a path as people write it: `a.b[0]`; `None` for the top."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            shown = step if step.isprintable() else json.dumps(step)[1:-1]
            text += f".{shown}" if text else shown
    return text or None
