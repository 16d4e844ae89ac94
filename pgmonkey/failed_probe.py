"""A failed probe as a problem: what the server said, at the place in the file that it is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgmonkey.file_loader import parse
from pgmonkey.layout import DEFAULTS_FILE
from pgmonkey.problem import Problem
from pgmonkey.secret_file import SecretFileError, Snapshot, SnapshotMovedError
from pgmonkey.yaml_document import LIMIT
from pgmonkey.yaml_problem import Place

if TYPE_CHECKING:
    from pgmonkey.errors import ConnectError

_SECTION: Final = "connection_settings"
#: The setting that a person looks at first.
_KEYS: Final = {
    "auth": "password",
    "hba": "user",
    "no_database": "dbname",
    "tls": "sslmode",
    "dns": "host",
    "refused": "host",
    "timeout": "host",
}


def failed_probe(path: str, name: str, error: ConnectError) -> Problem:
    """Return the problem of a database whose good file leads to no connection.

    The file is read again for the position: a config keeps none.

    Args:
        path: The file of the database.
        name: The database.
        error: What came of the probe.
    """
    text, _, hint = str(error).partition("\n  hint: ")
    code = f"probe.{error.reason}"
    key = _KEYS.get(error.reason)
    if key is None:
        return Problem(path, code, text, hint=hint or None, database=name)
    for file in (path, str(Path(path).with_name(DEFAULTS_FILE))):
        if (place := _place(file, key)) is not None:
            return Problem(
                file,
                code,
                text,
                line=place.line,
                column=place.column,
                key=f"{_SECTION}.{key}",
                hint=hint or None,
                database=name,
            )
    return Problem(path, code, text, key=f"{_SECTION}.{key}", hint=hint or None, database=name)


def _place(path: str, key: str) -> Place | None:
    try:
        with Snapshot() as snapshot:
            content, _ = snapshot.read_bytes(path, LIMIT)
    except (SecretFileError, SnapshotMovedError):
        return None  # it is being replaced: the next look sees that
    document, _ = parse(content, path)
    return None if document is None else document.place((_SECTION, key))
