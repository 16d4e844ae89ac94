"""Read the files of a registry for a command."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pgmonkey.cli.options import References
    from pgmonkey.config.directory import Scan
    from pgmonkey.errors import Problem

#: Codes of problems that depend on this machine: its variables, secret files and TLS files.
_OF_THIS_MACHINE: Final = ("reference.unset", "secret.", "file.")


def of_files_alone(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the problems that files have on every machine."""
    return tuple(one for one in problems if not one.code.startswith(_OF_THIS_MACHINE))


def scan(
    directory: Path,
    references: References,
    names: Collection[str] = (),
    *,
    secrets_from: Path | None = None,
) -> Scan:
    """Read all files of a registry, or those of the databases that are named.

    Args:
        directory: That of the registry.
        references: What `options.references` gave.
        names: The databases; by default all.
        secrets_from: Where `from_file` finds the files instead.

    Raises:
        UnknownDatabaseError: a name has no file; it has a line for each such name.
    """
    from pgmonkey.config.directory import DirectoryLoader
    from pgmonkey.errors import UnknownDatabaseError

    found = DirectoryLoader(
        directory,
        names=names or None,
        secrets_from=None if secrets_from is None else os.fspath(secrets_from),
        **references,
    ).scan()
    if found.missing:
        unknown = [
            str(UnknownDatabaseError.among(found.declared, name, str(directory)))
            for name in dict.fromkeys(names)
            if name in found.missing
        ]
        raise UnknownDatabaseError("\n".join(unknown))
    return found
