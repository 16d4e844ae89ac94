"""The databases that a command names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pgmonkey.config.directory import DirectoryLoader, Scan
from pgmonkey.errors import UnknownDatabaseError


def scan_named(names: Collection[str], directory: Path, **options: Any) -> Scan:
    """Read the files of some databases of a registry.

    Args:
        names: The databases.
        directory: That of the registry.
        options: Those of `DirectoryLoader`.

    Raises:
        UnknownDatabaseError: a name has no file; it has a line for each such name.
    """
    scan = DirectoryLoader(directory, names=names, **options).scan()
    if scan.missing:
        declared = DirectoryLoader(directory).scan().present
        unknown = [name for name in names if name in scan.missing]
        raise UnknownDatabaseError(
            "\n".join(
                str(UnknownDatabaseError.among(declared, name, str(directory))) for name in unknown
            )
        )
    return scan
