"""The effective configuration of one database, as a table or as JSON."""

from __future__ import annotations

import json
import os
from typing import Any

from pgmonkey.cli.output import table
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.explain import explain, text_of
from pgmonkey.errors import UnknownDatabaseError


class Explanation:
    """Explain one database: its effective values, redacted, and their sources.

    The file is parsed again for it: a config keeps no positions.

    Args:
        directory: The directory of the registry.
        name: The database.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and the like.

    Raises:
        UnknownDatabaseError: No file declares the name.
        RegistryConfigError: The file has problems.

    Example:
        >>> [one.source.path for one in Explanation("registry.d", "orders").values][:1]
        ['registry.d/orders.yaml']
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        allow_sensitive_defaults: bool = False,
    ) -> None:
        self.name = name
        scan = DirectoryLoader(
            directory, names=[name], allow_sensitive_defaults=allow_sensitive_defaults
        ).scan()
        if scan.directory_ok and name in scan.missing:
            declared = DirectoryLoader(directory).scan().present
            raise UnknownDatabaseError.among(declared, name, os.fspath(directory))
        scan.raise_for_problems()
        config = scan.configs[name]
        self.path = config.path
        self.values = explain(config, directory)

    def as_json(self, *, sources: bool) -> str:
        """Return the values as a JSON document.

        Args:
            sources: Whether to say where each comes from.
        """
        shape: dict[str, Any] = {"name": self.name, "path": self.path, "settings": {}}
        for value in self.values:
            section, _, key = value.key.partition(".")
            if key:
                shape["settings"].setdefault(section, {})[key] = value.value
            else:
                shape["settings"][section] = value.value
        if sources:
            shape["sources"] = {value.key: value.source._asdict() for value in self.values}
        return json.dumps(shape, indent=2)

    def as_table(self, *, sources: bool) -> str:
        """Return the values as people read them.

        Args:
            sources: Whether to say where each comes from.
        """
        titles = ("KEY", "VALUE", "SOURCE") if sources else ("KEY", "VALUE")
        rows = ((one.key, text_of(one.value), str(one.source)) for one in self.values)
        return table([titles, *(row[: len(titles)] for row in rows)])
