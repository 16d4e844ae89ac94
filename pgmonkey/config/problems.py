"""Problems: the catalogue of codes, and how a problem gets its file, line and column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgmonkey.config.models import hints_of
from pgmonkey.config.yaml_errors import KeyPath, Place, dotted
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
        "registry.no_such_database": "a name that was asked for has no file",
        "registry.max_connections": "max_connections is smaller than what the pools keep open",
        "config.file_name": "the name of a file is no name of a database",
        "config.declared_twice": "two files declare the same database",
        # The file
        **{f"config.{code}": f"a database file {what}" for code, what in _NOT_READ.items()},
        "config.moving": "the directory of the file is replaced again and again while it is read",
        "config.empty": "a file says nothing",
        "config.encoding": "a file, or a value in a dictionary, is not UTF-8",
        "config.nul": "a file or a value contains a NUL character",
        "config.control_character": "a file contains a control character",
        "config.syntax": "a file is no YAML",
        "config.multi_document": "a file holds several YAML documents",
        "config.shape": "a file is no mapping",
        "config.tag": "a YAML tag; none is allowed",
        "config.alias": "a YAML alias without its anchor, or inside of it",
        "config.merge": "a YAML merge key without a mapping",
        "config.too_deep": "a file is nested deeper than 20 levels",
        "config.too_many_nodes": "a file holds more than 2,000 values, with aliases expanded",
        # Keys and values
        "config.key": "a key is not text",
        "config.duplicate_key": "a key appears twice in one mapping",
        "config.unknown_key": "a key that there is not, or not here",
        "config.required": "something that must be there is missing or empty",
        "config.type": "a value is of another type than its key takes",
        "config.range": "a number is too small or too large",
        "config.choice": "a value is none of the few that its key takes",
        "config.duration": "a duration that cannot be read, or makes no sense",
        "config.url": "a URL where a name is expected",
        "config.ports": "hosts and ports differ in number",
        "config.hosts": "hosts and addresses differ in number",
        "config.sizes": "min_size is larger than max_size",
        "config.setting_name": "a name that no session setting can have",
        "config.setting_twice": "a session setting is given twice",
        "config.pgbouncer": "something that does not work behind PgBouncer",
        "environment.intrudes": "an environment variable would change the connection",
        # References and secret files
        "reference.malformed": "a reference that cannot be read",
        "reference.unset": "an environment variable is not set",
        "reference.sensitive_default": "a sensitive key has a default",
        "reference.encoding": "an environment variable is not UTF-8",
        "reference.unresolved": "a reference where none is resolved",
        **{f"secret.{code}": f"a secret file {what}" for code, what in _NOT_READ.items()},
        "secret.moving": "the directory of secret files is replaced again and again",
        "secret.empty": "a secret file is empty",
        "secret.nul": "a secret file contains a NUL character",
        "secret.bom": "a secret file starts with a byte order mark",
        "secret.encoding": "a secret file is not UTF-8",
        # Other files that connection settings name
        **{f"file.{code}": f"a TLS or password file {what}" for code, what in _NOT_READ.items()},
        "file.not_a_path": "the contents of a file stand where its path should",
        "file.no_certificate": "a file that should hold certificates holds none",
        "file.shared": "a private key or password file is open to others, so libpq will not use it",
        "file.untrusted": "other accounts can change a file, or what leads to it",
        # The server, asked by a reload or by `pgmonkey check --online`
        "probe.auth": "the server refused the login",
        "probe.hba": "the server's pg_hba.conf has no place for it",
        "probe.no_database": "there is no such database, or the role may not connect to it",
        "probe.setting": "the server refused a session setting",
        "probe.tls": "TLS could not be agreed on",
        "probe.dns": "the name of the host could not be resolved",
        "probe.refused": "nothing accepts connections there",
        "probe.timeout": "nothing answered in time",
        "probe.too_many_connections": "the server, the database or the role is full",
        "probe.other": "another reason, in the server's words",
        # Nothing is wrong
        "doubt.byte_order_mark": "a file of YAML starts with a byte order mark, which is left out",
        "doubt.variable": "a value is `$NAME`, without the braces of a reference",
        "doubt.cut": "PostgreSQL keeps less of the value than was written",
    }
)


class Finding(NamedTuple):
    """Describe what is wrong with one part of a configuration.

    Args:
        path: Keys and indexes from the top of the document.
        code: The stable code of the problem.
        message: What is wrong; without values.
        hint: What to do about it.
        at_key: Whether the key is wrong, not its value.
        show: Whether the value may be shown, if it is neither sensitive nor from outside.
        beside: Another part that it does not agree with; the message says where that is.
    """

    path: KeyPath
    code: str
    message: str
    hint: str | None = None
    at_key: bool = False
    show: bool = False
    beside: KeyPath = ()


class Placement:
    """Turn what was found in the document of one database into problems with their places.

    Args:
        name: The name of the database.
        path: The name of the file.
        document: What it says; `None` if there is no file.
        defaults: What is merged under it.
        wrapped: Whether it may have the `postgresql:` wrapper of old files.
    """

    __slots__ = ("_defaults", "_document", "_name", "_path", "_wrapped")

    def __init__(
        self,
        name: str,
        path: str,
        document: YamlDocument | None = None,
        defaults: Defaults | None = None,
        *,
        wrapped: bool = False,
    ) -> None:
        self._name = name
        self._path = path
        self._document = document
        self._defaults = defaults
        self._wrapped = wrapped

    def problems(self, findings: Iterable[Finding]) -> tuple[Problem, ...]:
        """Return findings with their places, each once, in reading order."""
        return sorted_problems(map(self.problem, dict.fromkeys(findings)))

    def problem(self, finding: Finding) -> Problem:
        """Return one finding with its place."""
        path, place = self._where(finding.path, of_key=finding.at_key)
        if place is None:
            place = self._nearest(finding.path)
        message = finding.message
        if finding.beside:
            other, beside = self._where(finding.beside)
            if beside is not None:
                file = "" if other == path else f"{other}:"
                message += f" ({finding.beside[-1]} at {file}{beside.line}:{beside.column})"
        return Problem(
            path,
            finding.code,
            message,
            line=place.line if place else None,
            column=place.column if place else None,
            key=dotted(finding.path),
            hint=finding.hint,
            database=self._name,
        )

    def _where(self, path: KeyPath, *, of_key: bool = False) -> tuple[str, Place | None]:
        """Return the file that has a part, and its place there."""
        if self._document is None or not path:
            return self._path, None
        place = self._document.place(path, of_key=of_key)
        if place is None and self._wrapped:  # inside the old wrapper
            place = self._document.place(("postgresql", *path), of_key=of_key)
        if place is None and self._defaults is not None:
            place = self._defaults.document.place(path, of_key=of_key)
            if place is not None:
                return self._defaults.path, place
        return self._path, place

    def _nearest(self, path: KeyPath) -> Place | None:
        """Return the place of the closest part around a path that the file has."""
        if self._document is None:
            return None
        while path := path[:-1]:
            place = self._document.place(path, of_key=True)
            if place is not None:
                return place
        return None


_WRAPPER: Final = ("postgresql",)
#: What pydantic calls an unknown key, of a dataclass and of a dictionary.
_UNKNOWN: Final = ("unexpected_keyword_argument", "extra_forbidden")


def finding_of(details: Mapping[str, Any], path: KeyPath | None = None) -> Finding:
    """Turn one error of pydantic into a finding; what it says itself is never used."""
    path = tuple(details["loc"]) if path is None else path
    at_key = bool(path) and path[-1] == "[key]"
    if at_key:
        path = path[:-1]
    match details["type"]:
        case "pgmonkey":
            context = details["ctx"]
            return Finding(
                path, context["code"], context["say"], context["hint"], at_key, show=not at_key
            )
        case "unexpected_keyword_argument" | "extra_forbidden":
            return _unknown(path)
        case "missing":
            return Finding(path, "config.required", f"{path[-1]} is required")
        case "string_type" | "is_instance_of":
            return Finding(path, "config.type", "expected text")
        case _:
            return Finding(path, "config.type", "expected a mapping", show=True)


def meant_key(details: Mapping[str, Any]) -> KeyPath | None:
    """Return the key that was meant, if an error of pydantic is about one that is unknown.

    Args:
        details: The error.
    """
    if details["type"] not in _UNKNOWN:
        return None
    path = tuple(details["loc"])
    if path == _WRAPPER:
        return ("connection_settings",)
    near = _near(path)
    return (*path[:-1], near) if near else None


def _unknown(path: KeyPath) -> Finding:
    key = str(path[-1])
    shown = json.dumps(key if len(key) <= 63 else f"{key[:60]}...")
    strange = "" if key.isascii() else " contains letters that are not ASCII"
    hint = None
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
    return Finding(path, "config.unknown_key", f"unknown key {shown}{strange}", hint, at_key=True)


def _near(path: KeyPath) -> str | None:
    from difflib import get_close_matches

    near = get_close_matches(_plain(str(path[-1])), hints_of(path[:-1]), 1, 0.7)
    return near[0] if near else None


def _plain(key: str) -> str:
    return key.strip().lower().replace("-", "_").replace(" ", "_")


def _home(key: str) -> str | None:
    sections: Iterable[KeyPath] = ((), ("connection_settings",), ("pool_settings",))
    for section in sections:
        if key in hints_of(section):
            return str(section[0]) if section else "the top level of the file"
    return None


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
    message, hint = f"cannot connect: {error.text}", error.hint or None
    code = f"probe.{error.reason}"
    candidates = _candidates(error.reason, error.text)
    for file in (path, str(Path(path).with_name(DEFAULTS_FILE))):
        document = read_again(file)
        for key in candidates:
            if document is not None and (place := document.place(key)) is not None:
                return Problem(
                    file,
                    code,
                    message,
                    line=place.line,
                    column=place.column,
                    key=".".join(key),
                    hint=hint,
                    database=name,
                )
    key_path = ".".join(candidates[0]) if error.reason in _KEYS else None
    return Problem(path, code, message, key=key_path, hint=hint, database=name)


def _candidates(reason: str, text: str) -> list[tuple[str, str]]:
    """Return the keys that a failure may be about, the likeliest first."""
    if (key := _KEYS.get(reason)) is not None:
        return [(_SECTION, key)]
    if reason != "setting":
        return []
    # Address, role and database are quoted as well; but they are no keys of these sections.
    in_sections = [(section, name) for name in _QUOTED.findall(text) for section in _SETTINGS]
    return [*in_sections, (_SECTION, "options")]
