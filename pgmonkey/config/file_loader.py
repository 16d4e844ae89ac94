"""The way of one file: from bytes to a config, or to all of its problems."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgmonkey.config.config_file import Defaults, parse
from pgmonkey.config.finding import Finding
from pgmonkey.config.interpolation import HOW_TO_RESOLVE, Resolution
from pgmonkey.config.keyed_digest import files_digest
from pgmonkey.config.layout import SECTIONS, KeyPath
from pgmonkey.config.named_files import NamedFiles
from pgmonkey.config.placement import Placement
from pgmonkey.config.redaction import SHORT, Secret, is_sensitive, mask_urls
from pgmonkey.config.rules import inconsistencies
from pgmonkey.config.schema_finding import finding_of, meant_key
from pgmonkey.config.secret_files import Snapshot, SnapshotMovedError, from_one_snapshot
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.config.sources import SourceFile, Sources
from pgmonkey.problem import Problem

if TYPE_CHECKING:
    from pgmonkey.config.models import DatabaseFile

_IGNORED_POOL_KEYS: Final = frozenset({"name", "open"})  # ours to choose; 4.0 passed them on
#: What is found where a directory of secret files never stands still.
MOVING: Final = Finding(
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

    def resolution(self, snapshot: Snapshot, directory: str) -> Resolution:
        """Return what replaces the references of one document.

        Args:
            snapshot: Reads the secret files.
            directory: What relative paths are relative to.
        """
        return Resolution(
            environ=self.environ,
            snapshot=snapshot,
            directory=directory,
            resolve=self.resolve,
            defaults_on_secrets=self.allow_sensitive_defaults,
            defaults_on_paths=self.isolate,
            unused_defaults=not self.isolate,
        )


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
    placement = Placement(name, path, document, defaults, wrapped=not rules.isolate)
    directory = os.path.dirname(path)
    return Making(tree, placement, name=name, path=path, directory=directory, rules=rules).outcome(
        file
    )


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
        placement: Finds the place of what is wrong.
        name: The name of the database.
        path: The name of the file.
        directory: What relative paths are relative to.
        rules: How to read it.
    """

    __slots__ = ("_directory", "_findings", "_name", "_path", "_placement", "_rules", "_tree")

    def __init__(
        self,
        tree: dict[str, Any],
        placement: Placement,
        *,
        name: str,
        path: str,
        directory: str,
        rules: Rules,
    ) -> None:
        self._tree = tree
        self._placement = placement
        self._name = name
        self._path = path
        self._directory = directory
        self._rules = rules
        self._findings: list[Finding] = []

    def outcome(self, file: SourceFile | None = None) -> Outcome:
        """Return the config, or all problems."""
        try:
            resolution, named, resolved = from_one_snapshot(self._read)
        except SnapshotMovedError:
            return Outcome(problems=self._placement.problems([MOVING]))
        self._findings = [*named.findings, *resolution.findings]
        model = self._validated(resolved, resolution.external)
        sources = Sources(
            file,
            {**resolution.files, **named.files},
            resolution.variables,
            self._rules.environ,
            resolution.modified,
        )
        if model is None or self._findings:
            return Outcome(None, self._placement.problems(self._findings), sources)
        config = DatabaseConfig(
            model,
            name=self._name,
            path=self._path,
            isolate=self._rules.isolate,
            sources=sources,
            files=files_digest(named.contents),
        )
        return Outcome(config, (), sources)

    def _read(self, snapshot: Snapshot) -> tuple[Resolution, NamedFiles, dict[str, Any]]:
        resolution = self._rules.resolution(snapshot, self._directory)
        resolved = resolution.document(self._tree)
        named = NamedFiles(snapshot, self._directory, isolate=self._rules.isolate)
        named.read(resolved.get("connection_settings"))
        return resolution, named, resolved

    def _validated(self, resolved: dict[str, Any], external: set[KeyPath]) -> DatabaseFile | None:
        if not self._rules.isolate:
            for section in ("pool_settings", "async_pool_settings"):
                if isinstance(resolved.get(section), dict):
                    for key in _IGNORED_POOL_KEYS & resolved[section].keys():
                        del resolved[section][key]
        # Late: pydantic is the largest import of all, and nobody needs it before the first file.
        from pgmonkey.config.models import DatabaseFile, validate

        result = validate(resolved)
        model, details = (result, ()) if isinstance(result, DatabaseFile) else (None, result)
        # What is there, but wrong already, is not missing: one mistake is one problem.
        failed = frozenset(finding.path[:2] for finding in self._findings).union(
            filter(None, map(meant_key, details))
        )
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
        for one in details:
            finding = finding_of(one)
            if not (finding.code == "config.required" and finding.path[:2] in failed):
                self._findings.append(self._with_value(finding, resolved, external))
        return model

    def _with_value(
        self, finding: Finding, resolved: dict[str, Any], external: set[KeyPath]
    ) -> Finding:
        """Add the value that was found, unless it is secret or came from elsewhere."""
        path = finding.path
        if not finding.show or any(isinstance(step, str) and is_sensitive(step) for step in path):
            return finding
        if any(path[:length] in external for length in range(1, len(path) + 1)):
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
