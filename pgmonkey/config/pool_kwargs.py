"""`kwargs` in a pool section, as in pgmonkey 4.0: settings of psycopg are keys of the database now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pgmonkey.config.models import KWARGS, NULLABLE, POOL_SECTIONS, PSYCOPG_KEYS
from pgmonkey.config.problems import KeyProblem, schema_problem
from pgmonkey.config.yaml_reader import KeyPath

_SECTION = "connection_settings"


class Lifted(NamedTuple):
    """Hold a document in which `kwargs` were moved to the connection settings.

    Args:
        tree: The document.
        paths: Where each setting that was moved is in the file, by its key.
        problems: What could not be moved.
    """

    tree: dict[str, Any]
    paths: Mapping[str, tuple[str, ...]] = {}
    problems: tuple[KeyProblem, ...] = ()

    def located(self, problem: KeyProblem) -> KeyProblem:
        """Return a problem of a setting that was moved at the place that the file has."""
        if len(problem.path) == 2 and problem.path[0] == _SECTION:
            return problem._replace(path=self.paths.get(str(problem.path[1]), problem.path))
        return problem


def lift_kwargs(tree: dict[str, Any]) -> Lifted:
    """Move what is in `kwargs` of the pool sections to the connection settings.

    There they hold for all types of the database. A parameter of libpq is no setting of psycopg:
    it is a problem that says where to write it.
    """
    given = [
        section
        for section in POOL_SECTIONS
        if isinstance(pool := tree.get(section), dict) and KWARGS in pool
    ]
    if not given:
        return Lifted(tree)
    lifted = dict(tree)
    own = tree.get(_SECTION)
    own = _given(own) if isinstance(own, dict) else {}
    connection = dict(own)
    paths: dict[str, tuple[str, ...]] = {}
    problems: list[KeyProblem] = []
    for section in given:
        pool = dict(tree[section])
        kwargs = pool.pop(KWARGS)
        lifted[section] = pool
        if not _is_mapping(kwargs):
            problems.append(KeyProblem((section, KWARGS), "config.type", "expected a mapping"))
            continue
        for key, value in _given(kwargs or {}).items():
            path = (section, KWARGS, key)
            if key not in PSYCOPG_KEYS:
                problems.append(schema_problem({"type": "extra_forbidden", "loc": path}))
            elif connection.setdefault(key, value) != value:
                problems.append(_differs(path, paths.get(key, (_SECTION, key))))
            elif key not in own:
                paths.setdefault(key, path)
    if paths and _is_mapping(tree.get(_SECTION)):
        lifted[_SECTION] = connection
    return Lifted(lifted, paths, tuple(problems))


def _given(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section without the keys that count as absent."""
    return {
        key: value
        for key, value in section.items()
        if value is not None or (_SECTION, key) in NULLABLE
    }


def _is_mapping(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _differs(path: KeyPath, beside: KeyPath) -> KeyProblem:
    return KeyProblem(
        path,
        "config.setting_twice",
        "the setting has another value elsewhere",
        f"write {_SECTION}.{path[-1]}, for all types of the database",
        at_key=True,
        beside=beside,
    )
