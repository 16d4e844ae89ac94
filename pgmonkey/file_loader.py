"""The way of one file: from bytes to a config, or to all of its problems."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgmonkey.config import DatabaseConfig
from pgmonkey.connection_settings import FILES
from pgmonkey.consistency import inconsistencies
from pgmonkey.finding import Finding
from pgmonkey.keyed_digest import files_digest
from pgmonkey.layout import SECTIONS, KeyPath, dotted
from pgmonkey.problem import Problem, sorted_problems
from pgmonkey.redaction import SHORT, Secret, is_sensitive, mask_urls
from pgmonkey.resolution import HOW_TO_RESOLVE, Resolution
from pgmonkey.secret_file import (
    SecretFileError,
    Snapshot,
    SnapshotMovedError,
    snapshots,
)
from pgmonkey.sources import SourceFile, Sources
from pgmonkey.yaml_document import YamlDocument, read_yaml
from pgmonkey.yaml_problem import Place, YamlProblem

if TYPE_CHECKING:
    from pgmonkey.database_file import DatabaseFile

_FILE_LIMIT: Final = 1024 * 1024  # bytes of a TLS file: bundles of authorities are large
_CERTIFICATES: Final = ("sslrootcert", "sslcert")
_IGNORED_POOL_KEYS: Final = frozenset({"name", "open"})  # ours to choose; 4.0 passed them on
_FILE_HINTS: Final = {
    "file.missing": "check the path: a relative one starts at the directory of this file",
    "file.not_regular": "name the file itself",
    "file.no_certificate": "it must hold certificates in PEM form",
}
_MOVING: Final = Finding(
    (),
    "secret.moving",
    "a directory of secret files is replaced again and again while it is read",
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Say how files are read.

    Args:
        resolve: Whether references are replaced.
        isolate: Whether libpq's environment variables are kept out, and host, dbname and user
            must be there. That is a registry; the older API leaves gaps to libpq.
        allow_sensitive_defaults: Whether sensitive keys may have a default.
        environ: The environment.
        variables: The variables in it that libpq reads, where nothing is to be filled by them.
    """

    resolve: bool = True
    isolate: bool = True
    allow_sensitive_defaults: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    variables: frozenset[str] = frozenset()


class Outcome(NamedTuple):
    """Hold what became of one file.

    Args:
        config: The config, or `None` if there are problems.
        problems: All of them, in reading order.
        sources: What it was made from; `None` if it was no document at all.
    """

    config: DatabaseConfig | None = None
    problems: tuple[Problem, ...] = ()
    sources: Sources | None = None


class Defaults(NamedTuple):
    """Hold the document that is merged under every database, and the file it came from."""

    path: str
    document: YamlDocument


def parse(content: bytes, path: str) -> tuple[YamlDocument | None, tuple[Problem, ...]]:
    """Parse the bytes of one file; return the document, or what is wrong with it."""
    try:
        document = read_yaml(content)
    except YamlProblem as error:
        place = error.place
        return None, (
            Problem(
                path,
                error.code,
                str(error),
                line=place.line if place else None,
                column=place.column if place else None,
                key=error.key,
                hint=error.hint,
            ),
        )
    if document.value is None:
        return None, (
            Problem(
                path,
                "config.empty",
                "the file is empty; expected a mapping with connection_settings",
                hint="remove the file if the database is to go",
            ),
        )
    if not isinstance(document.value, dict):
        got = "a list" if isinstance(document.value, list) else "text"
        hint = "one database per file" if isinstance(document.value, list) else None
        place = document.place(()) or Place(1, 1)
        message = f"expected a mapping with connection_settings, got {got}"
        return None, (Problem(path, "config.shape", message, place.line, place.column, hint=hint),)
    return document, ()


def outcome_of(
    content: bytes,
    *,
    name: str,
    path: str,
    rules: Rules,
    defaults: Defaults | None = None,
    file: SourceFile | None = None,
) -> Outcome:
    """Make a config from the bytes of one file.

    Args:
        content: The file.
        name: The name of the database.
        path: The file's name, for problems and for relative paths.
        rules: How to read it.
        defaults: What is merged under it.
        file: How the file looked when it was read.
    """
    document, problems = parse(content, path)
    if document is None:
        return Outcome(problems=problems)
    tree: dict[str, Any] = document.value
    if not rules.isolate:
        tree = unwrapped(tree, path)
    if defaults is not None:
        tree = merged(defaults.document.value, tree)
    return Making(tree, document, defaults, name=name, path=path, rules=rules).outcome(file)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document merged over another one: section by section, key by key."""
    result = dict(under)
    for key, value in over.items():
        below = under.get(key)
        if key in SECTIONS and isinstance(below, dict):
            if value is None:
                continue  # an empty section takes nothing away
            if isinstance(value, dict):
                result[key] = {**below, **value}
                continue
        result[key] = value
    return result


def unwrapped(tree: dict[str, Any], path: str) -> dict[str, Any]:
    """Return what is inside the `postgresql:` wrapper of old files, if there is one."""
    inner = tree.get("postgresql")
    if not isinstance(inner, dict):
        return tree
    warnings.warn(
        f"{path}: the postgresql: wrapper is deprecated; move its contents up one level",
        DeprecationWarning,
        stacklevel=_callers_level(),
    )
    return {**{key: value for key, value in tree.items() if key != "postgresql"}, **inner}


def _callers_level() -> int:
    """Return how many frames up the first one outside of this package is."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith("pgmonkey.") and frame.f_back is not None:
        frame = frame.f_back
        level += 1
    return level


class Making:
    """Make one config; collect what is wrong on the way.

    Args:
        tree: What the file says, with the defaults merged under it.
        document: Finds the place of a problem; `None` if there is no file.
        defaults: The same for what came from the defaults.
        name: The name of the database.
        path: The name of the file.
        rules: How to read it.
    """

    __slots__ = (
        "_defaults",
        "_directory",
        "_document",
        "_findings",
        "_name",
        "_path",
        "_resolution",
        "_rules",
        "_tree",
    )

    def __init__(
        self,
        tree: dict[str, Any],
        document: YamlDocument | None,
        defaults: Defaults | None,
        *,
        name: str,
        path: str,
        rules: Rules,
    ) -> None:
        self._tree = tree
        self._document = document
        self._defaults = defaults
        self._name = name
        self._path = path
        self._rules = rules
        self._directory = os.path.dirname(path) if document is not None else ""
        self._findings: list[Finding] = []
        self._resolution: Resolution

    def resolved(self) -> tuple[dict[str, Any], tuple[Problem, ...]]:
        """Return the document with references replaced, and what was wrong with them."""
        for snapshot in snapshots():
            self._resolution = self._new_resolution(snapshot)
            try:
                tree = self._resolution.document(self._tree, keep_nulls=True)
            except SnapshotMovedError:
                continue
            self._findings = list(self._resolution.findings)
            return tree, self._problems()
        self._findings = [_MOVING]
        return {}, self._problems()

    def problem(self, finding: Finding) -> Problem:
        """Return a finding with its place in the file."""
        return self._problem(finding)

    def outcome(self, file: SourceFile | None = None) -> Outcome:
        """Return the config, or all problems."""
        for snapshot in snapshots():
            self._findings.clear()
            self._resolution = self._new_resolution(snapshot)
            try:
                resolved = self._resolution.document(self._tree)
                contents = self._read_files(resolved, snapshot)
            except SnapshotMovedError:
                continue
            break
        else:
            self._findings.append(_MOVING)
            return Outcome(problems=self._problems())
        self._findings += self._resolution.findings
        model = self._validated(resolved)
        resolution = self._resolution
        sources = Sources(
            file, resolution.files, resolution.variables, self._rules.environ, resolution.modified
        )
        if model is None or self._findings:
            return Outcome(None, self._problems(), sources)
        config = DatabaseConfig(
            model,
            name=self._name,
            path=self._path,
            isolate=self._rules.isolate,
            sources=sources,
            files=files_digest(contents),
        )
        return Outcome(config, (), sources)

    def _new_resolution(self, snapshot: Snapshot) -> Resolution:
        rules = self._rules
        return Resolution(
            environ=rules.environ,
            snapshot=snapshot,
            directory=self._directory,
            resolve=rules.resolve,
            defaults_on_secrets=rules.allow_sensitive_defaults,
            defaults_on_paths=rules.isolate,
            unused_defaults=not rules.isolate,
        )

    def _read_files(self, resolved: dict[str, Any], snapshot: Snapshot) -> dict[str, bytes]:
        """Read the files that connection settings name; make their paths absolute."""
        contents: dict[str, bytes] = {}
        connection = resolved.get("connection_settings")
        if not isinstance(connection, dict):
            return contents
        for key in FILES:
            if key not in connection:
                continue
            value = connection[key]
            path = value.reveal() if isinstance(value, Secret) else value
            if not isinstance(path, str) or not _names_file(key, path):
                continue
            if "\n" in path or "-----BEGIN" in path:
                # libpq would quote it as the name of a file that it cannot open.
                del connection[key]
                self._findings.append(
                    Finding(
                        ("connection_settings", key),
                        "file.not_a_path",
                        "expected the path of a file, got what may be its contents (not shown)",
                        f"write the contents to a file, and its path as {key}",
                    )
                )
                continue
            if self._rules.isolate:  # libpq would look in the working directory
                path = os.path.join(os.path.abspath(self._directory), path)
                connection[key] = Secret(path) if isinstance(value, Secret) else path
            self._resolution.files[path] = None
            read_at = time.time_ns()
            try:
                content, status = snapshot.read_bytes(path, _FILE_LIMIT)
            except SecretFileError as error:
                self._file_finding(key, error)
                continue
            contents[key] = content
            if shared := _shared(key, status):
                self._file_finding(key, shared)
            self._resolution.files[path] = SourceFile(path, content, status, read_at, _FILE_LIMIT)
            if key in _CERTIFICATES and b"CERTIFICATE-----" not in content:
                self._file_finding(
                    key, SecretFileError("secret.no_certificate", "contains no certificate")
                )
        return contents

    def _file_finding(self, key: str, error: SecretFileError) -> None:
        if self._rules.isolate:  # elsewhere libpq says so when it connects, as ever
            code = error.code.replace("secret.", "file.")
            message = f"the file that {key} names {error}"
            hint = error.hint or _FILE_HINTS.get(code)
            self._findings.append(Finding(("connection_settings", key), code, message, hint))

    def _validated(self, resolved: dict[str, Any]) -> DatabaseFile | None:
        if not self._rules.isolate:
            for section in ("pool_settings", "async_pool_settings"):
                if isinstance(resolved.get(section), dict):
                    for key in _IGNORED_POOL_KEYS & resolved[section].keys():
                        del resolved[section][key]
        failed = frozenset(finding.path[:2] for finding in self._findings)
        self._findings += inconsistencies(
            resolved,
            isolate=self._rules.isolate,
            variables=self._rules.variables,
            failed=frozenset(
                str(path[1])
                for path in failed
                if len(path) > 1 and path[0] == "connection_settings"
            ),
        )
        # Late: pydantic is the largest import of all, and nobody needs it before the first file.
        from pgmonkey.database_file import DatabaseFile, validate

        result = validate(resolved)
        if isinstance(result, DatabaseFile):
            return result
        for details in result:
            finding = finding_of(details)
            if not (finding.code == "config.required" and finding.path[:2] in failed):
                self._findings.append(self._with_value(finding, resolved))
        return None

    def _with_value(self, finding: Finding, resolved: dict[str, Any]) -> Finding:
        """Add the value that was found, unless it is secret or came from elsewhere."""
        path = finding.path
        if not finding.show or any(isinstance(step, str) and is_sensitive(step) for step in path):
            return finding
        if any(path[:length] in self._resolution.external for length in range(1, len(path) + 1)):
            return finding._replace(
                message=f"{finding.message}; got a value from outside (not shown)"
            )
        if not self._rules.resolve and _part(resolved, path, "${"):
            return finding._replace(hint=f"references are not resolved here: {HOW_TO_RESOLVE}")
        value = _part(resolved, path)
        if value is None or mask_urls(value) != value or "://" in value:
            return finding
        if any(secret in value for secret in _secrets(resolved)):
            return finding  # a password in the wrong place, or twice
        shown = json.dumps(value if len(value) <= 40 else f"{value[:37]}...")
        return finding._replace(message=f"{finding.message}, got {shown}")

    def _problems(self) -> tuple[Problem, ...]:
        return sorted_problems(self._problem(finding) for finding in dict.fromkeys(self._findings))

    def _problem(self, finding: Finding) -> Problem:
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
        if place is None and not self._rules.isolate:  # inside the old wrapper
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


def _names_file(key: str, path: str) -> bool:
    if not path:
        return False
    if key == "sslrootcert" and path == "system":
        return False
    return not (key == "sslkey" and ":" in path and not path.startswith("/"))  # engine:key


def _shared(key: str, status: os.stat_result) -> SecretFileError | None:
    """Apply libpq's own rule for private keys and password files; it says less, and later."""
    mode = status.st_mode
    if key == "sslkey":
        # Its owner alone; what belongs to root may also be read by the group.
        forbidden = stat.S_IRWXO | (stat.S_IRWXG if status.st_uid else stat.S_IWGRP | stat.S_IXGRP)
        said = "libpq refuses it"
    elif key == "passfile":
        forbidden = stat.S_IRWXG | stat.S_IRWXO
        said = "libpq ignores it"
    else:
        return None
    if not mode & forbidden:
        return None
    owner = "root" if status.st_uid == 0 else f"uid {status.st_uid}"
    hint = "chmod 600"
    if key == "sslkey":
        hint += "; in Kubernetes: defaultMode: 0440, with an fsGroup"
    return SecretFileError(
        "secret.shared",
        f"is open to others (mode {stat.S_IMODE(mode):04o}, owned by {owner}): {said}",
        hint,
    )


def _part(tree: Any, path: KeyPath, holding: str = "") -> str | None:
    """Return the text at a path, or `None` if there is none that holds what is asked for."""
    for step in path:
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            return None
    return tree if isinstance(tree, str) and holding in tree else None


def _secrets(tree: Any) -> Iterator[str]:
    """Yield the secrets of a resolved document that are long enough to be recognised."""
    if isinstance(tree, Secret):
        if len(secret := tree.reveal()) >= SHORT:
            yield secret
    elif isinstance(tree, (dict, list)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _secrets(item)


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
        case "extra_forbidden":
            return _unknown(path)
        case "missing":
            return Finding(path, "config.required", f"{path[-1]} is required")
        case "string_type" | "is_instance_of":
            return Finding(path, "config.type", "expected text")
        case _:
            return Finding(path, "config.type", "expected a mapping", show=True)


def _unknown(path: KeyPath) -> Finding:
    from difflib import get_close_matches

    from pgmonkey.database_file import known_keys

    key = str(path[-1])
    shown = json.dumps(key if len(key) <= 63 else f"{key[:60]}...")
    known = known_keys(path[:-1])
    strange = "" if key.isascii() else " contains letters that are not ASCII"
    near = get_close_matches(_plain(key), known, 1, 0.7)
    hint = None
    if near:
        hint = f'did you mean "{near[0]}"?'
    elif home := _home(key):
        hint = f'"{key}" belongs in {home}'
    elif key == "name" and len(path) == 1:
        hint = "a database has the name of its file"
    elif key == "postgresql" and len(path) == 1:
        hint = "the old layout: move its contents up one level"
    else:
        hint = "the reference lists every key, and so does pgmonkey schema"
    return Finding(path, "config.unknown_key", f"unknown key {shown}{strange}", hint, at_key=True)


def _plain(key: str) -> str:
    return key.strip().lower().replace("-", "_").replace(" ", "_")


def _home(key: str) -> str | None:
    from pgmonkey.database_file import known_keys

    sections: Iterable[KeyPath] = ((), ("connection_settings",), ("pool_settings",))
    for section in sections:
        if key in known_keys(section):
            return str(section[0]) if section else "the top level of the file"
    return None
