"""Events of this process: `recent` returns the last ones, `dropped` counts those that were lost."""

from __future__ import annotations

from pgmonkey.telemetry.events import dropped, recent

__all__ = ["dropped", "recent"]
