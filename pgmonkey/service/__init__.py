"""A registry over HTTP: the status page, metrics, health, and the request for a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgmonkey.service.app import status_app

__all__ = ["status_app"]


def __getattr__(name: str) -> Any:
    if name != "status_app":
        raise AttributeError(f"module 'pgmonkey.service' has no attribute {name!r}")
    from pgmonkey.service.app import status_app  # loads the web stack, at its first use

    return status_app
