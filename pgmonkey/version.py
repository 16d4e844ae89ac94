"""The version of pgmonkey, in the one place that everything else reads it from."""

from __future__ import annotations

__version__ = "5.0.0.dev0"
