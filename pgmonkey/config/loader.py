"""Load one database file: from its bytes to a config, or to all of its problems."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgmonkey.config.interpolation import HOW_TO_RESOLVE, Resolution
from pgmonkey.config.libpq import libpq_variables
from pgmonkey.config.models import SECTIONS
from pgmonkey.config.named_files import NamedFiles
from pgmonkey.config.problems import Finding, Placement, finding_of, meant_key
from pgmonkey.config.redaction import SHORT, Secret, is_sensitive, mask_urls
from pgmonkey.config.rules import inconsistencies
from pgmonkey.config.secret_files import (
    SecretFileError,
    Snapshot,
    SnapshotMovedError,
    from_one_snapshot,
)
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.config.sources import SourceFile, Sources, files_digest, read_source
from pgmonkey.config.yaml_errors import KeyPath
from pgmonkey.config.yaml_reader import LIMIT, Defaults, parse, unreadable
from pgmonkey.errors import ConfigError, EnvInterpolationError, Problem, sorted_problems

if TYPE_CHECKING:
    from pgmonkey.config.models import DatabaseFile


_REFERENCE_CODES: Final = ("reference.", "secret.")

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


def load_file(
    path: str | os.PathLike[str],
    *,
    resolve: bool = True,
    allow_sensitive_defaults: bool = False,
    defaults: str | os.PathLike[str] | None = None,
    isolate: bool = True,
    environ: Mapping[str, str] | None = None,
) -> DatabaseConfig:
    """Load one database.

    Costs one read and about a tenth of a millisecond; nothing is remembered.

    Args:
        path: The file; its name without the suffix is the name of the database.
        resolve: Whether references are replaced.
        allow_sensitive_defaults: Whether sensitive keys may have a default.
        defaults: A file that is merged under this one.
        isolate: Whether libpq's environment variables are kept out, and host, dbname and user
            must be there (a registry); otherwise the older API, where libpq fills the gaps.
        environ: The environment; by default that of the process.

    Raises:
        ConfigError: With every problem of the file.
        EnvInterpolationError: Only with `isolate=False`: a reference cannot be resolved.
        OSError: Only with `isolate=False`: the file cannot be read.

    Example:
        >>> load_file(
        ...     "registry.d/orders.yaml", defaults="registry.d/_defaults.yaml"
        ... ).connection_type
        'pool'
    """
    rules = rules_for(resolve, allow_sensitive_defaults, environ, isolate=isolate)
    under = None if defaults is None else os.fspath(defaults)
    # What raises, below, has none of the file's text in its frames: a traceback shows locals.
    return config_or_raise(_outcome_of_file(os.fspath(path), under, rules), isolate=isolate)


def _outcome_of_file(path: str, under: str | None, rules: Rules) -> Outcome:
    defaults: Defaults | None = None
    if under is not None:
        content, _ = read_file(under, isolate=rules.isolate)
        if isinstance(content, Problem):
            return Outcome(problems=(content,))
        document, problems = parse(content, under)
        if document is None:
            return Outcome(problems=problems)
        defaults = Defaults(under, document)
    content, file = read_file(path, isolate=rules.isolate)
    if isinstance(content, Problem):
        return Outcome(problems=(content,))
    name = os.path.splitext(os.path.basename(path))[0]
    return outcome_of(content, name=name, path=path, rules=rules, defaults=defaults, file=file)


def rules_for(
    resolve: bool,
    allow_sensitive_defaults: bool,
    environ: Mapping[str, str] | None,
    *,
    isolate: bool,
) -> Rules:
    """Return how files are read, for the arguments of a public function."""
    environ = os.environ if environ is None else environ
    return Rules(
        resolve=resolve,
        isolate=isolate,
        allow_sensitive_defaults=allow_sensitive_defaults,
        environ=environ,
        variables=libpq_variables(environ) if isolate else frozenset(),
    )


def read_file(path: str, *, isolate: bool) -> tuple[bytes, SourceFile] | tuple[Problem, None]:
    """Read a config file; a pipe or a device is refused, not waited for."""
    if not isolate:
        # The older API shows the error of the system itself. O_NONBLOCK: a pipe must not block.
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    try:
        content, _, file = from_one_snapshot(lambda snapshot: read_source(snapshot, path, LIMIT))
    except SecretFileError as error:
        return unreadable(path, error), None
    except SnapshotMovedError:
        return Problem(path, "config.moving", "the directory is replaced again and again"), None
    return content, file


def config_or_raise(outcome: Outcome, *, isolate: bool) -> DatabaseConfig:
    """Return the config that was made, or raise its problems."""
    raise_for(outcome.problems, isolate=isolate)
    assert outcome.config is not None
    return outcome.config


def raise_for(problems: Sequence[Problem], *, isolate: bool) -> None:
    """Raise problems, if there are any: as `ConfigError`, or as the older API does."""
    if not problems:
        return
    if not isolate and any(problem.code.startswith(_REFERENCE_CODES) for problem in problems):
        raise EnvInterpolationError("\n".join(map(str, sorted_problems(problems))))
    raise ConfigError(problems)
