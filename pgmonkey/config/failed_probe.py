"""A failed probe as a problem: what the server said, at the place in the file that it is about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgmonkey.config.config_file import read_again
from pgmonkey.config.layout import DEFAULTS_FILE
from pgmonkey.problem import Problem

if TYPE_CHECKING:
    from pgmonkey.errors import ConnectError

_SECTION: Final = "connection_settings"
_SETTINGS: Final = ("sync_settings", "async_settings")
#: How the server names the session setting that it refuses, in the languages that quote so.
_QUOTED: Final = re.compile(r'"([\w.]+)"')
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
    candidates = _candidates(error.reason, text)
    for file in (path, str(Path(path).with_name(DEFAULTS_FILE))):
        document = read_again(file)
        for key in candidates:
            if document is not None and (place := document.place(key)) is not None:
                return Problem(
                    file,
                    code,
                    text,
                    line=place.line,
                    column=place.column,
                    key=".".join(key),
                    hint=hint or None,
                    database=name,
                )
    key_path = ".".join(candidates[0]) if error.reason in _KEYS else None
    return Problem(path, code, text, key=key_path, hint=hint or None, database=name)


def _candidates(reason: str, text: str) -> list[tuple[str, str]]:
    """Return the keys that a failure may be about, the likeliest first."""
    if (key := _KEYS.get(reason)) is not None:
        return [(_SECTION, key)]
    if reason != "setting":
        return []
    # Address, role and database are quoted as well; but they are no keys of these sections.
    in_sections = [(section, name) for name in _QUOTED.findall(text) for section in _SETTINGS]
    return [*in_sections, (_SECTION, "options")]
