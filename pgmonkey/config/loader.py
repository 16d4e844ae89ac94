"""Load one database file: from its bytes to a config, or to all of its problems."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pgmonkey.config.connection_url import Url, take_url
from pgmonkey.config.interpolation import HOW_TO_RESOLVE, LoadOptions, Resolution, has_reference
from pgmonkey.config.models import OWN, POOL_SECTIONS, SECTIONS, DatabaseFile, validate
from pgmonkey.config.named_files import NamedFiles
from pgmonkey.config.on_demand import PASSWORD, USER, Command, OnDemand
from pgmonkey.config.pool_kwargs import lift_kwargs
from pgmonkey.config.problems import KeyProblem, Positions, meant_key, schema_problem
from pgmonkey.config.redaction import Secret, is_sensitive
from pgmonkey.config.rules import inconsistencies
from pgmonkey.config.secret_files import (
    SecretFileError,
    Snapshot,
    SnapshotMovedError,
    from_one_snapshot,
)
from pgmonkey.config.settings import DatabaseConfig, Text
from pgmonkey.config.sources import SourceFile, Sources, files_digest, read_source
from pgmonkey.config.trust import TrustChecker
from pgmonkey.config.yaml_reader import LIMIT, Defaults, KeyPath, parse, unreadable
from pgmonkey.errors import ConfigError, EnvInterpolationError, Problem, sorted_problems

_REFERENCE_CODES: Final = ("reference.", "secret.")
_LONGEST_SHOWN: Final = 24  # characters of a value: it is meant to be a number or a word
_IGNORED_POOL_KEYS: Final = frozenset({"name", "open"})  # ours to choose; 4.0 passed them on
MOVING: Final = KeyProblem(
    (),
    "secret.moving",
    "a directory of secret files is replaced again and again while it is read",
)


class LoadResult(NamedTuple):
    """Hold the config of one file, or its problems in reading order."""

    config: DatabaseConfig | None = None
    problems: tuple[Problem, ...] = ()
    sources: Sources | None = None  # `None` if the file was no document at all


def load_file(
    path: str | os.PathLike[str],
    *,
    resolve: bool = True,
    allow_sensitive_defaults: bool = False,
    isolate: bool = True,
    env: Mapping[str, str] | None = None,
) -> DatabaseConfig:
    """Load one database, without the defaults of a directory.

    Costs one read and about a tenth of a millisecond; nothing is remembered.

    The name of the file, without its suffix, is the name of the database. The options are those
    of `LoadOptions`.

    Raises:
        ConfigError: With every problem of the file.
        EnvInterpolationError: Only with `isolate=False`: a reference cannot be resolved.
        OSError: Only with `isolate=False`: the file cannot be read.

    Example:
        >>> load_file("config.yaml").name
        'config'
    """
    options = LoadOptions(resolve, isolate, allow_sensitive_defaults, env=env)
    # The frames that raise hold none of the file's text: a traceback may show locals.
    return config_or_raise(load_path(os.fspath(path), options), isolate=isolate)


def load_path(path: str, options: LoadOptions) -> LoadResult:
    """Load one database, or find its problems; see `load_file`."""
    content, file = read_file(path, isolate=options.isolate)
    if isinstance(content, Problem):
        return LoadResult(problems=(content,))
    name = os.path.splitext(os.path.basename(path))[0]
    return load_bytes(content, name=name, path=path, options=options, file=file)


def load_bytes(
    content: bytes,
    *,
    name: str,
    path: str,
    options: LoadOptions,
    defaults: Defaults | None = None,
    file: SourceFile | None = None,
    keep_text: bool = False,
) -> LoadResult:
    """Make a config from the bytes of one file, or find its problems.

    Relative paths start at the directory of the path; the defaults are merged under the file. With
    `keep_text`, the config keeps both, so that its references can be resolved again.
    """
    document, problems = parse(content, path)
    if document is None:
        return LoadResult(problems=problems)
    tree: dict[str, Any] = document.value
    if not options.isolate:
        tree = unwrapped(tree, path)
    below = frozenset[str]()
    if defaults is not None:
        below = _below_url(defaults.document.value, tree)
        tree = _merged(defaults.document.value, tree)
    positions = Positions(name, path, document, defaults, wrapped=not options.isolate)
    text = Text(Secret(content.decode()), defaults) if keep_text else None
    return build_config(tree, positions, options=options, file=file, text=text, below=below)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
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


def _below_url(under: Mapping[str, Any], over: Mapping[str, Any]) -> frozenset[str]:
    """Return the connection settings of the defaults, if there is a url over them."""
    section, below = over.get("connection_settings"), under.get("connection_settings")
    if isinstance(section, dict) and section.get("url") is not None and isinstance(below, dict):
        return frozenset(below.keys() - section.keys())
    return frozenset()


def unwrapped(tree: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the content of the `postgresql:` wrapper of old files, if there is one."""
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


def build_config(
    tree: dict[str, Any],
    positions: Positions,
    *,
    options: LoadOptions,
    file: SourceFile | None = None,
    text: Text | None = None,
    below: frozenset[str] = frozenset(),
) -> LoadResult:
    """Resolve, validate and check a document whose defaults are merged in.

    The connection settings `below` come from the defaults, and the `url` does not.
    """
    # Absolute: the files are read again later, and the working directory may be another one then.
    directory = os.path.abspath(os.path.dirname(positions.path))
    lifted = lift_kwargs({key: one for key, one in tree.items() if not key.startswith(OWN)})

    def look(snapshot: Snapshot) -> tuple[Resolution, Url, NamedFiles, dict[str, Any]]:
        resolution = Resolution(options, snapshot, directory)
        rest, url = take_url(lifted.tree, resolution.url, below)
        resolved = url.added_to(resolution.document(rest))
        named = NamedFiles(snapshot, directory, isolate=options.isolate)
        named.read(resolved.get("connection_settings"))
        return resolution, url, named, resolved

    try:
        resolution, url, named, resolved = from_one_snapshot(look)
    except SnapshotMovedError:
        return LoadResult(problems=positions.problems([MOVING]))
    problems = [
        *lifted.problems,
        *named.problems,
        *url.problems,
        *resolution.problems,
        *_of_on_demand(resolution, positions),
    ]
    model = _validated(resolved, resolution, url, problems)
    files = {**resolution.files, **named.files}
    sources = Sources(
        file,
        files,
        resolution.variables,
        options.lookup,
        resolution.modified,
        options.secrets_from,
    )
    if model is None or problems:
        origins = resolution.origins()
        found = [lifted.located(with_origin(url.located(problem), origins)) for problem in problems]
        return LoadResult(None, positions.problems(found, known_secrets(resolved)), sources)
    config = DatabaseConfig(
        model,
        name=positions.name,
        path=positions.path,
        isolate=options.isolate,
        sources=sources,
        files=files_digest(named.contents),
        text=text,
        elsewhere={**url.places, **lifted.paths} if lifted.paths else url.places,
        on_demand=_on_demand(resolution, positions),
    )
    return LoadResult(config, (), sources)


def _on_demand(resolution: Resolution, positions: Positions) -> OnDemand | None:
    source = resolution.on_demand.get(PASSWORD)
    if source is None:
        return None
    return OnDemand(source, USER in resolution.on_demand, positions.place(PASSWORD))


def _of_on_demand(resolution: Resolution, positions: Positions) -> Iterator[KeyProblem]:
    """Yield what is wrong with credentials that are made on demand."""
    for path, source in resolution.on_demand.items():
        if path == USER and resolution.on_demand.get(PASSWORD) is not source:
            message = "the user can be made on demand only together with its password"
            hint = "write the same resolver, key and times for both"
            yield KeyProblem(path, "reference.on_demand", message, hint)
        # Who can write the file could run any program as this account.
        file = positions.file_of(path) if isinstance(source, Command) else None
        distrust = TrustChecker().distrust(file) if file else None
        if distrust is not None:
            message = f"a command is not run for a file that is not trusted: {distrust}"
            yield KeyProblem((*path, "from_command"), "file.untrusted", message, distrust.hint)


def _validated(
    resolved: dict[str, Any], resolution: Resolution, url: Url, problems: list[KeyProblem]
) -> DatabaseFile | None:
    """Validate a resolved document; add what is wrong to the problems."""
    options = resolution.options
    if not options.isolate:
        for section in POOL_SECTIONS:
            if isinstance(resolved.get(section), dict):
                for key in _IGNORED_POOL_KEYS & resolved[section].keys():
                    del resolved[section][key]
    result = validate(resolved)
    model, details = (result, ()) if isinstance(result, DatabaseFile) else (None, result)
    # A key that is there, but wrong already, is not missing: one mistake is one problem.
    failed = frozenset(problem.path[:2] for problem in problems).union(
        filter(None, map(meant_key, details))
    )
    given = failed | resolution.on_demand.keys()
    settings = {path[1] for path in given if len(path) > 1 and path[0] == "connection_settings"}
    names = frozenset(map(str, settings))
    problems += inconsistencies(resolved, options, failed=names, url=url.given)
    origins = resolution.origins() if details else {}
    for one in details:
        problem = schema_problem(one)
        if problem.code == "config.required" and problem.path[:2] in failed:
            continue
        if not url.has(problem.path):  # of a url nothing is quoted
            problem = _with_value(problem, resolved, origins, options)
        problems.append(problem)
    return model


def _origins(path: KeyPath, origins: Mapping[KeyPath, str]) -> list[str]:
    """Return where the value at a path came from, as a whole or in parts."""
    around = [origins[part] for length in range(1, len(path)) if (part := path[:length]) in origins]
    inside = [origin for part, origin in origins.items() if part[: len(path)] == path]
    return list(dict.fromkeys(around + inside))


def with_origin(problem: KeyProblem, origins: Mapping[KeyPath, str]) -> KeyProblem:
    """Say where the value came from if it is not in the file."""
    # A problem of a secret file names the file itself.
    named = problem.at_key or not problem.path or problem.code.startswith("secret.")
    found = [] if named else _origins(problem.path, origins)
    if not found:
        return problem
    return problem._replace(
        message=f"{problem.message}; the value comes from {' and '.join(found)}"
    )


def _with_value(
    problem: KeyProblem,
    resolved: dict[str, Any],
    origins: Mapping[KeyPath, str],
    options: LoadOptions,
) -> KeyProblem:
    """Add the value that was found, unless it is sensitive or came from elsewhere."""
    path = problem.path
    if not problem.show or any(isinstance(step, str) and is_sensitive(step) for step in path):
        return problem
    if _origins(path, origins):
        return problem
    value = _part(resolved, path)
    if value is not None and not options.resolve and has_reference(value):
        return problem._replace(hint=f"references are not resolved here: {HOW_TO_RESOLVE}")
    if value is None or len(value) > _LONGEST_SHOWN or "://" in value:
        return problem
    message = f"{problem.message}, got {json.dumps(value)}"
    return problem._replace(message=message, quoted=value, unquoted=problem.message)


def _part(tree: Any, path: KeyPath) -> str | None:
    """Return the text at a path; `None` if there is none."""
    for step in path:
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            return None
    return tree if isinstance(tree, str) else None


def known_secrets(tree: Any) -> frozenset[str]:
    """Return the secrets of a resolved document."""
    if isinstance(tree, Secret):
        return frozenset({tree.reveal()})
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return frozenset[str]().union(*map(known_secrets, tree))
    return frozenset()


def read_file(path: str, *, isolate: bool) -> tuple[bytes, SourceFile] | tuple[Problem, None]:
    """Read a database file; a pipe or a device is refused, not waited for."""
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


def config_or_raise(result: LoadResult, *, isolate: bool) -> DatabaseConfig:
    """Return the config that was made, or raise its problems."""
    raise_for(result.problems, isolate=isolate)
    assert result.config is not None
    return result.config


def raise_for(problems: Sequence[Problem], *, isolate: bool) -> None:
    """Raise problems, if there are any; as `EnvInterpolationError` where the older API does."""
    if not problems:
        return
    if not isolate and any(problem.code.startswith(_REFERENCE_CODES) for problem in problems):
        raise EnvInterpolationError("\n".join(map(str, sorted_problems(problems))))
    raise ConfigError(problems)
