"""The problems of good files that only a server can show."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pgmonkey.config.interpolation import origin_of
from pgmonkey.config.models import SESSION_SECTIONS
from pgmonkey.config.yaml_reader import read_with_defaults
from pgmonkey.errors import Problem, count

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import ConnectError

#: How the server names the session setting that it refuses, in the languages that quote so.
_QUOTED: Final = re.compile(r'"([\w.]+)"')
#: The setting that a person looks at first.
_PROBED_KEYS: Final = {
    "auth": "password",
    "credentials": "password",
    "hba": "user",
    "no_database": "dbname",
    "tls": "sslmode",
    "dns": "host",
    "refused": "host",
    "timeout": "host",
}


def failed_probe(config: DatabaseConfig, error: ConnectError) -> Problem:
    """Return the problem of a good file with which no connection can be made."""
    path, name = config.path, config.name
    # With the name: the position may be in the defaults, which many databases have.
    text = (
        error.text.removeprefix(f"{config.on_demand.place}: ") if config.on_demand else error.text
    )
    code, message = f"probe.{error.reason}", f"cannot connect to {name}: {text}"
    hint = error.hint or None
    keys = [config.written_as(key) for key in _probed_keys(error.reason, error.text)]
    key_path = ".".join(keys[0]) if error.reason in _PROBED_KEYS else None
    problem = Problem(path, code, message, key=key_path, hint=hint, database=name)
    return _where_written(config, problem, keys)


def _probed_keys(reason: str, text: str) -> list[tuple[str, str]]:
    """Return the keys that a failure may be about, the likeliest first."""
    if (key := _PROBED_KEYS.get(reason)) is not None:
        return [("connection_settings", key)]
    if reason != "setting":
        return []
    # The server quotes address, role and database as well; no key has their names.
    names = [(section, name) for name in _QUOTED.findall(text) for section in SESSION_SECTIONS]
    return [*names, ("connection_settings", "options")]


def pool_too_large(config: DatabaseConfig, allowed: int, limit: str) -> Problem | None:
    """Return the problem of a pool that may become larger than a server allows, if it may.

    Args:
        config: One whose connection type has a pool.
        allowed: How many connections the server allows at most.
        limit: What sets that limit.
    """
    kind = config.connection_type
    size = config.pool(kind).max_size
    if size <= allowed:
        return None
    key = (f"{kind}_settings", "max_size")
    message = f"max_size is {size}, and {limit} allows {count(allowed, 'connection')}"
    hint = "lower max_size, or raise the limit: each process has a pool of its own"
    problem = Problem(
        config.path, "probe.max_size", message, key=".".join(key), hint=hint, database=config.name
    )
    return _where_written(config, problem, [key])


def _where_written(
    config: DatabaseConfig, problem: Problem, keys: Iterable[tuple[str, ...]]
) -> Problem:
    """Return a problem at the first of its keys that is written, with the origin of the value."""
    for file, document in read_with_defaults(config.path):
        for key in keys:
            if (position := document.position(key)) is None:
                continue
            written, sources, hint = document.value[key[0]][key[1]], config.sources, problem.hint
            origin = origin_of(written, sources.lookup.get, sources.secrets_from)
            if origin is not None:
                hint = f"{hint}; the value comes from {origin}" if hint else f"see {origin}"
            line, column = position
            return replace(
                problem, path=file, line=line, column=column, key=".".join(key), hint=hint
            )
    return problem
