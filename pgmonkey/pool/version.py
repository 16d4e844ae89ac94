"""The version of a configuration: what tells old connections from new ones. Pure decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig


class Version(NamedTuple):
    """One configuration that is in force, with its number.

    Args:
        config: The configuration.
        number: 1 at load, one more with every applied change or `force_reload`.
        since: The number at which a part changed that connections depend on. A changed description
            makes a version, but its connections stay.
    """

    config: DatabaseConfig
    number: int = 1
    since: int = 1

    def next(self, config: DatabaseConfig) -> Version:
        """Return the version that follows when the files say `config`."""
        same = config.connect_digest == self.config.connect_digest
        return Version(config, self.number + 1, self.since if same else self.number + 1)

    def forced(self, config: DatabaseConfig) -> Version:
        """Return the version that follows when connections are to be replaced in any case."""
        return Version(config, self.number + 1, self.number + 1)

    def leads_elsewhere(self, other: Version) -> bool:
        """Tell whether another version connects to another place: host, port, database."""
        return self.config.place != other.config.place
