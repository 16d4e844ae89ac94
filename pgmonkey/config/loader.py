"""The loader: from files to configs and problems. What the layers above import."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pgmonkey.config.config_file import Defaults, parse, unreadable
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.file_loader import MOVING, Making, Outcome, Rules, outcome_of, unwrapped
from pgmonkey.config.finding import Finding
from pgmonkey.config.layout import SECTIONS, KeyPath
from pgmonkey.config.libpq import libpq_variables
from pgmonkey.config.placement import Placement
from pgmonkey.config.redaction import RedactedDict, Secret
from pgmonkey.config.references import has_reference
from pgmonkey.config.scan import Scan
from pgmonkey.config.schema_finding import finding_of
from pgmonkey.config.secret_files import (
    SecretFileError,
    Snapshot,
    SnapshotMovedError,
    from_one_snapshot,
)
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.config.sources import SourceFile, read_source
from pgmonkey.config.yaml_errors import DEEPEST
from pgmonkey.config.yaml_reader import LIMIT
from pgmonkey.errors import ConfigError, EnvInterpolationError
from pgmonkey.problem import Problem, sorted_problems

__all__ = [
    "DirectoryLoader",
    "Scan",
    "config_from_dict",
    "config_of",
    "load_config",
    "load_file",
    "outcome_of_dict",
]

_REFERENCE_CODES: Final = ("reference.", "secret.")


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
    rules = _rules(resolve, allow_sensitive_defaults, environ, isolate=isolate)
    under = None if defaults is None else os.fspath(defaults)
    # What raises, below, has none of the file's text in its frames: a traceback shows locals.
    return _config(_outcome_of_file(os.fspath(path), under, rules), isolate=isolate)


def _outcome_of_file(path: str, under: str | None, rules: Rules) -> Outcome:
    defaults: Defaults | None = None
    if under is not None:
        content, _ = _read(under, isolate=rules.isolate)
        if isinstance(content, Problem):
            return Outcome(problems=(content,))
        document, problems = parse(content, under)
        if document is None:
            return Outcome(problems=problems)
        defaults = Defaults(under, document)
    content, file = _read(path, isolate=rules.isolate)
    if isinstance(content, Problem):
        return Outcome(problems=(content,))
    name = os.path.splitext(os.path.basename(path))[0]
    return outcome_of(content, name=name, path=path, rules=rules, defaults=defaults, file=file)


def config_from_dict(
    mapping: Mapping[str, Any],
    *,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
    name: str = "dict",
    environ: Mapping[str, str] | None = None,
) -> DatabaseConfig:
    """Make a config from a dictionary that has the shape of a file.

    Args:
        mapping: The dictionary; numbers, booleans and paths may be native.
        resolve_env: Whether references are replaced; relative paths are relative to the working
            directory.
        allow_sensitive_defaults: Whether sensitive keys may have a default.
        name: The name of the database.
        environ: The environment; by default that of the process.

    Raises:
        ConfigError: With every problem of it.
        EnvInterpolationError: A reference cannot be resolved.

    Example:
        >>> config_from_dict({"connection_settings": {"host": "db", "port": 5432}}).name
        'dict'
    """
    outcome = outcome_of_dict(
        mapping,
        resolve_env=resolve_env,
        allow_sensitive_defaults=allow_sensitive_defaults,
        name=name,
        environ=environ,
    )
    del mapping  # what raises, below, has no secret in its frames
    return config_of(outcome)


def config_of(outcome: Outcome) -> DatabaseConfig:
    """Return the config of a dictionary, or raise its problems as `config_from_dict` does."""
    return _config(outcome, isolate=False)


def outcome_of_dict(
    mapping: Mapping[str, Any],
    *,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
    name: str = "dict",
    environ: Mapping[str, str] | None = None,
) -> Outcome:
    """Make a config from a dictionary, or find its problems; raises nothing.

    For a caller whose own frames must not hold the dictionary when something is raised. The
    arguments are those of `config_from_dict`.
    """
    rules = _rules(resolve_env, allow_sensitive_defaults, environ, isolate=False)
    where = f"<{name}>"
    findings: list[Finding] = []
    tree = _as_text(mapping, (), findings)
    if not findings and not isinstance(tree, dict):
        findings = [Finding((), "config.shape", "expected a mapping")]
    placement = Placement(name, where)
    if findings:
        return Outcome(problems=placement.problems(findings))
    tree = unwrapped(tree, where)
    return Making(tree, placement, name=name, path=where, directory="", rules=rules).outcome()


def load_config(
    file_path: str | os.PathLike[str],
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
) -> dict[str, Any]:
    """Return what a file says, as a plain dictionary.

    `psycopg.connect(**config["connection_settings"])` works with it: values are text, numbers and
    booleans by their keys. Printing it shows no secret. Nothing is required, and unknown keys
    stay.

    Args:
        file_path: The file.
        resolve_env: Whether references are replaced; otherwise they stay as they are written.
        allow_sensitive_defaults: Whether sensitive keys may have a default.

    Raises:
        EnvInterpolationError: A reference cannot be resolved.
        ConfigError: The file is no YAML mapping, or a value has the wrong type.
        OSError: The file cannot be read.

    Example:
        >>> load_config("orders.yaml", resolve_env=True)
        {'connection_settings': {'host': 'db', 'password': '***REDACTED***'}}
    """
    rules = _rules(resolve_env, allow_sensitive_defaults, None, isolate=False)
    result, problems = _plain_file(os.fspath(file_path), rules)
    if problems:
        del result
        _raise_for(problems, isolate=False)
    return result


def _plain_file(path: str, rules: Rules) -> tuple[RedactedDict, Sequence[Problem]]:
    nothing = RedactedDict()
    content, _ = _read(path, isolate=False)
    if isinstance(content, Problem):
        return nothing, (content,)
    document, problems = parse(content, path)
    if document is None:
        return nothing, problems
    tree = unwrapped(document.value, path)
    placement = Placement("", path, document, wrapped=True)
    findings: list[Finding] = []
    if rules.resolve:
        tree, findings = _resolved(tree, os.path.dirname(path), rules)
        if findings:
            return nothing, placement.problems(findings)
    result = _typed(tree, findings, resolved=rules.resolve)
    return result, placement.problems(findings)


def _resolved(
    tree: dict[str, Any], directory: str, rules: Rules
) -> tuple[dict[str, Any], list[Finding]]:
    def look(snapshot: Snapshot) -> tuple[dict[str, Any], list[Finding]]:
        resolution = rules.resolution(snapshot, directory)
        return resolution.document(tree, keep_nulls=True), resolution.findings

    try:
        return from_one_snapshot(look)
    except SnapshotMovedError:
        return {}, [MOVING]


def _rules(
    resolve: bool,
    allow_sensitive_defaults: bool,
    environ: Mapping[str, str] | None,
    *,
    isolate: bool,
) -> Rules:
    environ = os.environ if environ is None else environ
    return Rules(
        resolve=resolve,
        isolate=isolate,
        allow_sensitive_defaults=allow_sensitive_defaults,
        environ=environ,
        variables=libpq_variables(environ) if isolate else frozenset(),
    )


def _read(path: str, *, isolate: bool) -> tuple[bytes, SourceFile] | tuple[Problem, None]:
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


def _config(outcome: Outcome, *, isolate: bool) -> DatabaseConfig:
    _raise_for(outcome.problems, isolate=isolate)
    assert outcome.config is not None
    return outcome.config


def _raise_for(problems: Sequence[Problem], *, isolate: bool) -> None:
    if not problems:
        return
    if not isolate and any(problem.code.startswith(_REFERENCE_CODES) for problem in problems):
        raise EnvInterpolationError("\n".join(map(str, sorted_problems(problems))))
    raise ConfigError(problems)


def _as_text(value: Any, path: KeyPath, findings: list[Finding]) -> Any:
    """Return native values as a file would have them: as text."""
    if value is None or isinstance(value, Secret):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if value.isascii() or _encodes(value):
            return str(value)
        findings.append(Finding(path, "config.encoding", "the value is not UTF-8 text"))
        return None
    if len(path) < DEEPEST:
        if isinstance(value, Mapping):
            return _mapping_as_text(value, path, findings)
        if isinstance(value, (list, tuple)):
            return [_as_text(item, (*path, index), findings) for index, item in enumerate(value)]
    findings.append(Finding(path, "config.type", "expected text, a number, a list or a mapping"))
    return None


def _mapping_as_text(
    value: Mapping[Any, Any], path: KeyPath, findings: list[Finding]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(key, str):
            result[key] = _as_text(item, (*path, key), findings)
        else:
            findings.append(Finding(path, "config.key", "keys must be text"))
    return result


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _typed(tree: dict[str, Any], findings: list[Finding], *, resolved: bool) -> RedactedDict:
    """Return plain values that print without secrets, each with the type of its key."""
    result = RedactedDict()
    for key, value in tree.items():
        if key in SECTIONS and isinstance(value, dict):
            result[key] = RedactedDict(
                {
                    name: _plain(item, (key, name), findings, resolved=resolved)
                    for name, item in value.items()
                }
            )
        else:
            result[key] = _plain(value, (key,), findings, resolved=resolved)
    return result


def _plain(value: Any, path: KeyPath, findings: list[Finding], *, resolved: bool) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, dict):
        return RedactedDict(
            {
                key: _plain(item, (*path, key), findings, resolved=resolved)
                for key, item in value.items()
            }
        )
    if value is None or (not resolved and isinstance(value, str) and has_reference(value)):
        return value
    if isinstance(value, str) and not value:
        return value
    from pgmonkey.config.models import typed_value

    typed, details = typed_value(path, value)
    if details is not None:
        findings.append(finding_of(details, path))
    elif isinstance(typed, list):
        return [
            _plain(item, (*path, index), findings, resolved=resolved)
            for index, item in enumerate(typed)
        ]
    return typed
