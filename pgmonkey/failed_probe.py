"""A failed probe as a problem: what the server said, at the place in the file that it is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgmonkey.config_file import read_again
from pgmonkey.layout import DEFAULTS_FILE
from pgmonkey.problem import Problem

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
        document = read_again(file)
        if document is not None and (place := document.place((_SECTION, key))) is not None:
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
