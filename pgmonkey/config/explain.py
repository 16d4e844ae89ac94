"""Effective values of one database, secrets masked, and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

from pgmonkey.config.interpolation import Template, Variable, has_reference, parse_template
from pgmonkey.config.models import INHERITED, NULLABLE, SECTIONS
from pgmonkey.config.redaction import mask_urls, scrub
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.config.yaml_reader import YamlDocument, read_with_defaults

Steps = tuple[str, ...]
Documents = list[tuple[str, YamlDocument]]


class Source(NamedTuple):
    """Say where one value comes from: a position, or a default of pgmonkey."""

    path: str | None = None
    line: int | None = None
    column: int | None = None
    references: tuple[str, ...] = ()  # variables, defaults and secret files, in words

    def __str__(self) -> str:
        if self.path is None:
            return "default"
        return ", ".join([f"{self.path}:{self.line}:{self.column}", *self.references])


class Value(NamedTuple):
    """Hold one effective value with its dotted key and its source, secrets masked."""

    key: str
    value: Any
    source: Source


def explain(config: DatabaseConfig, *, sources: bool = True) -> tuple[Value, ...]:
    """Return the effective values of a configuration, with secrets masked.

    Reads its file and the defaults for the sources; without, all values look like defaults.
    """
    documents = list(read_with_defaults(config.path)) if sources else []
    return tuple(
        # Scrubbed once more: control characters must not reach a terminal.
        Value(
            ".".join(path),
            scrub(value, config.secrets) if isinstance(value, str) else value,
            _source(documents, config.written_as(path), config.sources.lookup),
        )
        for path, value in _leaves(config.redacted())
    )


def _source(documents: Documents, path: Steps, lookup: Mapping[str, str]) -> Source:
    found = _find(documents, path, lookup)
    if found is None and path[0] in SECTIONS and path[-1] in INHERITED:
        found = _find(documents, path[1:], lookup)
    return found or Source()


def _find(documents: Documents, path: Steps, lookup: Mapping[str, str]) -> Source | None:
    for name, document in documents:
        position = document.position(path)
        if position is None:
            continue
        value = reduce(getitem, path, document.value)
        if value is None and path not in NULLABLE:
            return None  # a null removes the value of the defaults
        return Source(name, *position, tuple(_references(value, lookup)))
    return None


def _references(value: Any, lookup: Mapping[str, str]) -> Iterator[str]:
    """Yield the references of a value in words; never the values behind them."""
    match value:
        case str() if has_reference(value):
            yield from dict.fromkeys(_variables(parse_template(value), lookup))
        case {"from_env": str(name)}:
            yield f"environment variable {name}"
        case {"from_file": str(path)}:
            yield f"secret file {mask_urls(path)}"
        case {"from_command": [str(program), *_]}:
            yield f"command {mask_urls(program)}"
        case {"from_resolver": str(name)}:
            yield f"resolver {mask_urls(name)}"
        case list():
            for item in value:
                yield from _references(item, lookup)


def _variables(template: Template, lookup: Mapping[str, str]) -> Iterator[str]:
    for part in template:
        if not isinstance(part, Variable):
            continue
        found = lookup.get(part.name)
        if found is None or (found == "" and part.empty_is_unset):
            yield f"default of ${{{part.name}}}"
            yield from _variables(part.default or (), lookup)
        else:
            yield f"environment variable {part.name}"


def _leaves(settings: Mapping[str, Any], above: Steps = ()) -> Iterator[tuple[Steps, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def format_value(value: Any) -> str:
    """Return a value of a configuration as people read it."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}s"
        case _:
            return str(value)
