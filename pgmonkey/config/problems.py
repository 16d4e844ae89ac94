"""Problems: the catalogue of codes, and how a problem gets its file, line and column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgmonkey.config.models import hints_of
from pgmonkey.config.yaml_errors import UNKNOWN, KeyPath, Position, dotted
from pgmonkey.config.yaml_reader import DEFAULTS_FILE, Defaults, YamlDocument, read_again
from pgmonkey.errors import Problem, sorted_problems

if TYPE_CHECKING:
    from pgmonkey.errors import ConnectError


_NOT_READ: Final = {
    "missing": "does not exist, or is a link that leads nowhere",
    "permission": "may not be read by this process",
    "not_regular": "is a directory, a pipe, a socket or a device",
    "too_large": "is larger than it may be",
    "unreadable": "cannot be read for another reason of the system",
}

#: Every code, and what it means. A code never changes its meaning, and none is taken away within
#: a major version.
CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The registry
        "registry.missing": "the directory does not exist",
        "registry.not_a_directory": "a file is where the directory should be",
        "registry.permission": "the directory may not be read by this process",
        "registry.unreadable": "the directory cannot be read for another reason of the system",
        "registry.moving": "the directory is replaced again and again while it is read",
        "registry.no_such_database": "a requested name has no file",
        "registry.max_connections": "max_connections is smaller than what the pools keep open",
        "config.file_name": "a file name is not a valid name of a database",
        "config.declared_twice": "two files declare the same database",
        # The file
        **{f"config.{code}": f"a database file {what}" for code, what in _NOT_READ.items()},
        "config.moving": "the directory of the file is replaced again and again while it is read",
        "config.empty": "a file is empty",
        "config.encoding": "a file, or a value in a dictionary, is not UTF-8",
        "config.nul": "a file or a value contains a NUL character",
        "config.control_character": "a file contains a control character",
        "config.syntax": "a file is not valid YAML",
        "config.multi_document": "a file holds several YAML documents",
        "config.shape": "the top of a file is not a mapping",
        "config.tag": "a file has a YAML tag; tags are not allowed",
        "config.alias": "a YAML alias is used without its anchor, or inside of it",
        "config.merge": "a YAML merge key has no mapping",
        "config.too_deep": "a file is nested deeper than 20 levels",
        "config.too_many_nodes": "a file holds more than 2,000 values, with aliases expanded",
        # Keys and values
        "config.key": "a key is not text",
        "config.duplicate_key": "a key appears twice in one mapping",
        "config.unknown_key": "a key does not exist, or not in this section",
        "config.required": "a required key is missing or empty",
        "config.type": "a value has the wrong type",
        "config.range": "a number is too small or too large",
        "config.choice": "a value is not one of the choices of its key",
        "config.duration": "a duration is malformed or out of range",
        "config.url": "a URL is given where a name is expected",
        "config.ports": "hosts and ports differ in number",
        "config.hosts": "hosts and addresses differ in number",
        "config.sizes": "min_size is larger than max_size",
        "config.setting_name": "a name is not a valid name of a session setting",
        "config.setting_twice": "a session setting is given twice",
        "config.pgbouncer": "a setting does not work behind PgBouncer",
        "environment.intrudes": "an environment variable would change the connection",
        # References and secret files
        "reference.malformed": "a reference is malformed",
        "reference.unset": "an environment variable is not set",
        "reference.sensitive_default": "a sensitive key has a default",
        "reference.encoding": "an environment variable is not UTF-8",
        "reference.unresolved": "a reference is used where references are not resolved",
        **{f"secret.{code}": f"a secret file {what}" for code, what in _NOT_READ.items()},
        "secret.moving": "the directory of secret files is replaced again and again while it is read",
        "secret.empty": "a secret file is empty",
        "secret.nul": "a secret file contains a NUL character",
        "secret.bom": "a secret file starts with a byte order mark",
        "secret.encoding": "a secret file is not UTF-8",
        # Other files that connection settings name
        **{f"file.{code}": f"a TLS or password file {what}" for code, what in _NOT_READ.items()},
        "file.not_a_path": "the contents of a file are given instead of its path",
        "file.no_certificate": "a file that should hold certificates holds none",
        "file.shared": "a private key or password file is open to others, so libpq will not use it",
        "file.untrusted": "other accounts can change a file, or what leads to it",
        # The server, asked by a reload or by `pgmonkey check --online`
        "probe.auth": "the server refused the login",
        "probe.hba": "no line of the server's pg_hba.conf accepts the connection",
        "probe.no_database": "the database does not exist, or the role may not connect to it",
        "probe.setting": "the server refused a session setting",
        "probe.tls": "the TLS handshake failed",
        "probe.dns": "the name of the host could not be resolved",
        "probe.refused": "no server accepts connections at this address",
        "probe.timeout": "the server did not answer in time",
        "probe.too_many_connections": "the server, the database or the role has no connection left",
        "probe.other": "the connection failed for another reason",
        # Accepted, and probably not what was meant
        "warning.byte_order_mark": "a file starts with a byte order mark, which is ignored",
        "warning.variable": "a value is `$NAME`, without the braces of a reference",
        "warning.cut": "PostgreSQL cuts the value",
    }
)


class KeyProblem(NamedTuple):
    """Describe what is wrong with one part of a document, before its position is known."""

    path: KeyPath
    code: str
    message: str  # without values
    hint: str | None = None
    at_key: bool = False  # the key is wrong, not its value
    show: bool = False  # the value may be shown, if it is neither sensitive nor from outside
    beside: KeyPath = ()  # another part that it does not agree with


@dataclass(frozen=True, slots=True)
class Positions:
    """Find the file, line and column of the problems of one database."""

    name: str
    path: str
    document: YamlDocument | None = None  # `None` if there is no file
    defaults: Defaults | None = None  # merged under it
    wrapped: bool = False  # it may have the `postgresql:` wrapper of old files

    def problems(self, found: Iterable[KeyProblem]) -> tuple[Problem, ...]:
        """Return problems with their positions, each once, in reading order."""
        return sorted_problems(map(self._problem, dict.fromkeys(found)))

    def _problem(self, found: KeyProblem) -> Problem:
        path, position = self._find(found.path, of_key=found.at_key)
        message = found.message
        if found.beside:
            other, beside = self._find(found.beside)
            if beside is not None:
                file = "" if other == path else f"{other}:"
                message += f" ({found.beside[-1]} at {file}{beside.line}:{beside.column})"
        line, column = position or self._nearest(found.path) or UNKNOWN
        key = dotted(found.path)
        return Problem(path, found.code, message, line, column, key, found.hint, self.name)

    def _find(self, path: KeyPath, *, of_key: bool = False) -> tuple[str, Position | None]:
        """Return the file that has a part, and its position there."""
        if self.document is None or not path:
            return self.path, None
        position = self.document.position(path, of_key=of_key)
        if position is None and self.wrapped:  # inside the old wrapper
            position = self.document.position(("postgresql", *path), of_key=of_key)
        if position is None and self.defaults is not None:
            position = self.defaults.document.position(path, of_key=of_key)
            if position is not None:
                return self.defaults.path, position
        return self.path, position

    def _nearest(self, path: KeyPath) -> Position | None:
        """Return the position of the closest part around a path that the file has."""
        if self.document is None:
            return None
        while path := path[:-1]:
            position = self.document.position(path, of_key=True)
            if position is not None:
                return position
        return None


_WRAPPER: Final = ("postgresql",)
#: What pydantic calls an unknown key, of a dataclass and of a dictionary.
_UNKNOWN_KEY: Final = ("unexpected_keyword_argument", "extra_forbidden")


def schema_problem(details: Mapping[str, Any], path: KeyPath | None = None) -> KeyProblem:
    """Turn one error of pydantic into a problem; the message of pydantic is never shown."""
    path = tuple(details["loc"]) if path is None else path
    at_key = bool(path) and path[-1] == "[key]"
    if at_key:
        path = path[:-1]
    match details["type"]:
        case "pgmonkey":
            context = details["ctx"]
            return KeyProblem(
                path, context["code"], context["message"], context["hint"], at_key, show=not at_key
            )
        case "unexpected_keyword_argument" | "extra_forbidden":
            return _unknown_key(path)
        case "missing":
            return KeyProblem(path, "config.required", f"{path[-1]} is required")
        case "string_type" | "is_instance_of":
            return KeyProblem(path, "config.type", "expected text")
        case _:
            return KeyProblem(path, "config.type", "expected a mapping", show=True)


def meant_key(details: Mapping[str, Any]) -> KeyPath | None:
    """Return the key that an unknown one probably means, for an error of pydantic about one."""
    if details["type"] not in _UNKNOWN_KEY:
        return None
    path = tuple(details["loc"])
    if path == _WRAPPER:
        return ("connection_settings",)
    near = _near(path)
    return (*path[:-1], near) if near else None


def _unknown_key(path: KeyPath) -> KeyProblem:
    key = str(path[-1])
    shown = json.dumps(key if len(key) <= 63 else f"{key[:60]}...")
    strange = "" if key.isascii() else " contains letters that are not ASCII"
    if near := _near(path):
        hint = f'did you mean "{near}"?'
    elif home := _home(key):
        hint = f'"{key}" belongs in {home}'
    elif key == "name" and len(path) == 1:
        hint = "a database has the name of its file"
    elif path == _WRAPPER:
        hint = "the old layout: move its contents up one level"
    else:
        hint = "the reference lists every key, and so does pgmonkey schema"
    message = f"unknown key {shown}{strange}"
    return KeyProblem(path, "config.unknown_key", message, hint, at_key=True)


def _near(path: KeyPath) -> str | None:
    from difflib import get_close_matches  # only when something is wrong

    key = str(path[-1]).strip().lower().replace("-", "_").replace(" ", "_")
    return next(iter(get_close_matches(key, hints_of(path[:-1]), 1, 0.7)), None)


def _home(key: str) -> str | None:
    """Return the section that has a key."""
    if key in hints_of(()):
        return "the top level of the file"
    sections = ("connection_settings", "pool_settings")
    return next((section for section in sections if key in hints_of((section,))), None)


#: How the server names the session setting that it refuses, in the languages that quote so.
_QUOTED: Final = re.compile(r'"([\w.]+)"')
#: The setting that a person looks at first.
_PROBED_KEYS: Final = {
    "auth": "password",
    "hba": "user",
    "no_database": "dbname",
    "tls": "sslmode",
    "dns": "host",
    "refused": "host",
    "timeout": "host",
}


def failed_probe(path: str, name: str, error: ConnectError) -> Problem:
    """Return the problem of a good file with which no connection can be made.

    Args:
        path: The file of the database.
        name: The database.
        error: Why the probe failed.
    """
    code, message = f"probe.{error.reason}", f"cannot connect: {error.text}"
    hint = error.hint or None
    keys = _probed_keys(error.reason, error.text)
    for file in (path, str(Path(path).with_name(DEFAULTS_FILE))):
        document = read_again(file)
        for key in keys:
            if document is not None and (position := document.position(key)) is not None:
                line, column = position
                return Problem(file, code, message, line, column, ".".join(key), hint, name)
    key_path = ".".join(keys[0]) if error.reason in _PROBED_KEYS else None
    return Problem(path, code, message, key=key_path, hint=hint, database=name)


def _probed_keys(reason: str, text: str) -> list[tuple[str, str]]:
    """Return the keys that a failure may be about, the likeliest first."""
    if (key := _PROBED_KEYS.get(reason)) is not None:
        return [("connection_settings", key)]
    if reason != "setting":
        return []
    # Address, role and database are quoted as well; but they are no keys of these sections.
    names = [(section, name) for name in _QUOTED.findall(text) for section in _SESSIONS]
    return [*names, ("connection_settings", "options")]


_SESSIONS: Final = ("sync_settings", "async_settings")
