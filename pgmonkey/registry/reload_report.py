"""The report of a reload: what became of each database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgmonkey.errors import Problem


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """Say what a reload came to.

    Args:
        applied: Names whose new configuration is in force.
        rejected: Names whose files cannot be used, with the problems; the last good
            configuration goes on serving. A failed probe has one problem, `probe.<reason>`.
        unchanged: Names whose files say what runs already.
        removed: Names whose file is gone.
    """

    applied: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
