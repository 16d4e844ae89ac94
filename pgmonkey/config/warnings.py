"""Warnings: values that are accepted, and are probably a mistake."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.config.interpolation import origin_of
from pgmonkey.config.mistakes import Mistake, in_password
from pgmonkey.config.redaction import Secret
from pgmonkey.config.yaml_reader import DEFAULTS_FILE, read_again, read_with_defaults
from pgmonkey.errors import Problem

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig

_MARK: Final = b"\xef\xbb\xbf"
#: A whole value that a shell would expand. In lower case it may well be a password.
_VARIABLE: Final = re.compile(r"\$[A-Z_][A-Z0-9_]*")
_LONGEST_NAME: Final = 63  # bytes that PostgreSQL keeps of a name
_SHORTER: Final = "choose a shorter one"


def find_warnings(configs: Iterable[DatabaseConfig]) -> Iterator[Problem]:
    """Yield the warnings about the files of good databases, and about their defaults, each once.

    Reads each file; one with a warning is parsed again, for the position.
    """
    yield from dict.fromkeys(_warnings(configs))


def _warnings(configs: Iterable[DatabaseConfig]) -> Iterator[Problem]:
    defaults = set()
    for config in configs:
        yield from _of_file(config.path, config.name)
        defaults.add(os.path.join(os.path.dirname(config.path), DEFAULTS_FILE))
        name = config.connection_settings.get("application_name") or ""
        if len(name.encode()) > _LONGEST_NAME:
            message = f"PostgreSQL keeps the first {_LONGEST_NAME} bytes of it"
            yield _at(config, "application_name", Mistake("warning.cut", message, _SHORTER))
        if mistake := password_mistake(config):
            yield _at(config, "password", mistake)
    for path in defaults:
        yield from _of_file(path, None)


def _of_file(path: str, name: str | None) -> Iterator[Problem]:
    try:
        content = Path(path).read_bytes()
    except OSError:
        return  # there are no defaults, or the file is gone since it was loaded
    if content.startswith(_MARK):
        message = "the file starts with a byte order mark, which is ignored"
        hint = "save it as UTF-8 without one"
        yield Problem(path, "warning.byte_order_mark", message, 1, 1, hint=hint, database=name)
    # A file without a dollar before a capital is not parsed again: most have none.
    if re.search(rb"\$[A-Z_]", content) is None or (document := read_again(path)) is None:
        return
    for key_path, value in _leaves(document.value):
        if _VARIABLE.fullmatch(value) and (position := document.position(key_path)) is not None:
            message = "looks like a variable of a shell, but is used as plain text"
            hint = "${NAME} with braces is a reference to a variable"
            key = ".".join(map(str, key_path))
            yield Problem(path, "warning.variable", message, *position, key, hint, name)


def _leaves(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, str]]:
    if isinstance(value, (dict, list)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(one, (*above, key))
    elif isinstance(value, str):
        yield above, value


def password_mistake(config: DatabaseConfig) -> Mistake | None:
    """Return what is probably not meant to be a part of the password of a database."""
    password = config.connection_settings.get("password")
    return in_password(password.reveal()) if isinstance(password, Secret) else None


def _at(config: DatabaseConfig, name: str, mistake: Mistake) -> Problem:
    """Return the warning about a value of connection_settings, with its position and origin."""
    key = config.written_as(("connection_settings", name))
    message = mistake.message if key[1] == name else f"its {name}: {mistake.message}"
    problem = Problem(
        config.path,
        mistake.code,
        message,
        key=".".join(key),
        hint=mistake.hint,
        database=config.name,
    )
    for path, document in read_with_defaults(config.path):
        if (position := document.position(key)) is not None:
            written, sources = document.value[key[0]][key[1]], config.sources
            origin = origin_of(written, sources.lookup.get, sources.secrets_from)
            more = f"; the value comes from {origin}" if origin else ""
            return replace(
                problem,
                path=path,
                message=f"{message}{more}",
                line=position.line,
                column=position.column,
                database=config.name if path == config.path else None,
            )
    return problem
