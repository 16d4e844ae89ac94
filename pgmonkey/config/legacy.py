"""The older API: `load_config`, and configs from dictionaries. No key is required there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pgmonkey.config.connection_url import Url, take_url
from pgmonkey.config.interpolation import LoadOptions, Resolution, has_reference, is_utf8
from pgmonkey.config.loader import (
    MOVING,
    LoadResult,
    build_config,
    known_secrets,
    raise_for,
    read_file,
    unwrapped,
    with_origin,
)
from pgmonkey.config.models import typed_value
from pgmonkey.config.problems import KeyProblem, Positions, schema_problem
from pgmonkey.config.redaction import RedactedDict, Secret
from pgmonkey.config.secret_files import Snapshot, SnapshotMovedError, from_one_snapshot
from pgmonkey.config.yaml_reader import DEEPEST, KeyPath, parse
from pgmonkey.errors import Problem


def load_dict(
    mapping: Mapping[str, Any], options: LoadOptions, *, name: str = "dict"
) -> LoadResult:
    """Make a config from a dictionary that has the shape of a file, or find its problems.

    Numbers, booleans and paths may be native. Relative paths start at the working directory.
    Raises nothing: when the caller raises the problems, its frames must not hold the dictionary.
    """
    path = f"<{name}>"
    problems: list[KeyProblem] = []
    tree = _as_text(mapping, (), problems)
    if not problems and not isinstance(tree, dict):
        problems = [KeyProblem((), "config.shape", "expected a mapping")]
    positions = Positions(name, path)
    if problems:
        return LoadResult(problems=positions.problems(problems))
    tree = unwrapped(tree, path)
    return build_config(tree, positions, options=options)


def load_config(
    file_path: str | os.PathLike[str],
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
) -> dict[str, Any]:
    """Return the content of a file as a plain dictionary.

    `psycopg.connect(**config["connection_settings"])` works with it: each value has the type of
    its key. First remove the settings that `psycopg.connect` does not take (`isolation_level`,
    `read_only`, `deferrable`, `prepared_max`), and those that are a name here, not a function or
    class (`row_factory`, `cursor_factory`). Printing it shows no secret. No key is required, and
    unknown keys stay.

    Args:
        file_path: The file.
        resolve_env: Whether references are replaced; otherwise they stay in the text.
        allow_sensitive_defaults: Whether sensitive keys may have a default.

    Raises:
        EnvInterpolationError: A reference cannot be resolved.
        ConfigError: The file is no YAML mapping, or a value has the wrong type.
        OSError: The file cannot be read.

    Example:
        >>> load_config("orders.yaml", resolve_env=True)
        {'connection_settings': {'host': 'db', 'password': '***REDACTED***'}}
    """
    options = LoadOptions(
        resolve_env, isolate=False, allow_sensitive_defaults=allow_sensitive_defaults
    )
    result, problems = _plain_file(os.fspath(file_path), options)
    if problems:
        del result
        raise_for(problems, isolate=False)
    return result


def _plain_file(path: str, options: LoadOptions) -> tuple[RedactedDict, Sequence[Problem]]:
    nothing = RedactedDict()
    content, _ = read_file(path, isolate=False)
    if isinstance(content, Problem):
        return nothing, (content,)
    document, problems = parse(content, path)
    if document is None:
        return nothing, problems
    tree = unwrapped(document.value, path)
    positions = Positions("", path, document, wrapped=True)
    found: list[KeyProblem] = []
    origins: dict[KeyPath, str] = {}

    def look(snapshot: Snapshot) -> tuple[dict[str, Any], Url, Resolution]:
        resolution = Resolution(options, snapshot, os.path.dirname(path))
        rest, url = take_url(tree, resolution.url)
        return url.added_to(resolution.document(rest, keep_nulls=True)), url, resolution

    url = Url()
    if options.resolve:
        try:
            tree, url, resolution = from_one_snapshot(look)
        except SnapshotMovedError:
            return nothing, positions.problems([MOVING])
        found, origins = resolution.problems, resolution.origins()
        message = "the value is made for each connection, so it cannot be returned"
        hint = "use get_database_connection, or a Registry"
        found += [
            KeyProblem(path, "reference.on_demand", message, hint) for path in resolution.on_demand
        ]
    elif not _refers(tree):
        rest, url = take_url(tree, lambda written: written)
        tree = url.added_to(rest)
    found += url.problems
    secrets = known_secrets(tree)
    if not found:
        result = RedactedDict(_plain(tree, (), found, resolved=options.resolve))
        if not found:
            return result, ()
    located = [with_origin(url.located(one), origins) for one in found]
    return nothing, positions.problems(located, secrets)


def _refers(tree: dict[str, Any]) -> bool:
    """Tell whether the url of a document is a reference, or has one in it."""
    section = tree.get("connection_settings")
    url = section.get("url") if isinstance(section, dict) else None
    return isinstance(url, dict) or (isinstance(url, str) and has_reference(url))


def _as_text(value: Any, path: KeyPath, found: list[KeyProblem]) -> Any:
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
        if is_utf8(value):
            return str(value)
        found.append(KeyProblem(path, "config.encoding", "the value is not UTF-8 text"))
        return None
    if len(path) < DEEPEST:
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                found.append(KeyProblem(path, "config.key", "keys must be text"))
            return {
                key: _as_text(item, (*path, key), found)
                for key, item in value.items()
                if isinstance(key, str)
            }
        if isinstance(value, (list, tuple)):
            return [_as_text(item, (*path, index), found) for index, item in enumerate(value)]
    found.append(KeyProblem(path, "config.type", "expected text, a number, a list or a mapping"))
    return None


def _plain(value: Any, path: KeyPath, found: list[KeyProblem], *, resolved: bool) -> Any:
    """Return a value with the type of its key; printed, it shows no secret."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, dict):
        return RedactedDict(
            {
                key: _plain(item, (*path, key), found, resolved=resolved)
                for key, item in value.items()
            }
        )
    if value is None or value == "":
        return value
    if not resolved and isinstance(value, str) and has_reference(value):
        return value
    typed, details = typed_value(path, value)
    if details is not None:
        found.append(schema_problem(details, path))
    elif isinstance(typed, list):
        return [
            _plain(item, (*path, index), found, resolved=resolved)
            for index, item in enumerate(typed)
        ]
    return typed
