"""The events that went through this process: `recent` for a look back, `dropped` for what was lost."""

from __future__ import annotations

from pgmonkey.telemetry.events import dropped, recent

__all__ = ["dropped", "recent"]
