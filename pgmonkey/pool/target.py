"""The configuration that a handle should run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig


class Applied(NamedTuple):
    """Name one configuration that is in force, and its version.

    Args:
        config: The configuration.
        version: 1 at load, one more with every applied change or `force_reload`.
        since: The version at which the part that connections depend on changed last. A changed
            description makes a version, but no generation.
    """

    config: DatabaseConfig
    version: int = 1
    since: int = 1

    def next(self, config: DatabaseConfig) -> Applied:
        """Return what follows when the files say `config` now."""
        same = config.connect_digest == self.config.connect_digest
        return Applied(config, self.version + 1, self.since if same else self.version + 1)

    def forced(self, config: DatabaseConfig) -> Applied:
        """Return the next version, with new connections even if nothing changed."""
        return Applied(config, self.version + 1, self.version + 1)


class Target:
    """Hold the configuration that a handle should run, and why the handle is closed, if so.

    Each field is replaced by one assignment, and read without a lock.
    """

    __slots__ = ("applied", "gone")

    def __init__(self, applied: Applied) -> None:
        self.applied = applied
        self.gone: Exception | None = None
