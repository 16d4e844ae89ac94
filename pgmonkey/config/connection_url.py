"""The key `url` of the connection settings, taken apart into the keys that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import pq

from pgmonkey.config.interpolation import URL
from pgmonkey.config.mistakes import in_parsed_url, in_url
from pgmonkey.config.problems import KeyProblem
from pgmonkey.config.redaction import Secret, is_sensitive
from pgmonkey.config.yaml_reader import KeyPath

_SECTION: Final = "connection_settings"


class Url(NamedTuple):
    """Hold the connection settings that a `url` gave, or what is wrong with it."""

    settings: Mapping[str, Any] = MappingProxyType({})  # secrets as `Secret`
    given: bool = False
    problems: tuple[KeyProblem, ...] = ()

    @property
    def places(self) -> Mapping[str, tuple[str, ...]]:
        """Where the file has each of the settings: in the url."""
        return _places(frozenset(self.settings))

    def added_to(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a document with the settings of the url, which it does not have."""
        if not self.settings:
            return document
        return {**document, _SECTION: {**document[_SECTION], **self.settings}}

    def has(self, path: KeyPath) -> bool:
        """Tell whether the value at a path is a part of the url."""
        return len(path) > 1 and path[0] == _SECTION and path[1] in self.settings

    def located(self, problem: KeyProblem) -> KeyProblem:
        """Return a problem of a part as one of the url: that is what the file has."""
        beside = URL if self.has(problem.beside) else problem.beside
        if not self.has(problem.path):
            return problem._replace(beside=beside)
        message = f"its {problem.path[1]}: {problem.message}"
        return problem._replace(path=URL, message=message, at_key=False, beside=beside)


def take_url(
    document: dict[str, Any],
    resolve: Callable[[Any], Any],
    below: frozenset[str] = frozenset(),
) -> tuple[dict[str, Any], Url]:
    """Take the `url` out of a document: return the rest of it, and the settings of the url.

    A key of the rest overrides the part of the url with its name. Only the settings `below`, which
    come from the defaults, give way to the url.

    Args:
        document: The document, whose references are not replaced yet.
        resolve: Replaces those of the url; returns `None` if that is not possible, and reported.
        below: Keys of the section.
    """
    section = document.get(_SECTION)
    if not isinstance(section, dict) or "url" not in section:
        return document, Url()
    rest = {key: value for key, value in section.items() if key != "url"}
    url = taken_apart(resolve(section["url"])) if section["url"] is not None else Url()
    over = {key for key, value in rest.items() if value is not None} - below
    settings = {key: value for key, value in url.settings.items() if key not in over}
    rest = {key: value for key, value in rest.items() if key not in settings}
    return {**document, _SECTION: rest}, url._replace(settings=settings)


def taken_apart(url: Any) -> Url:
    """Return the settings that a url stands for, or what is wrong with it; nothing is raised."""
    text = url.reveal() if isinstance(url, Secret) else url
    if text is None:
        return Url(given=True)
    if not isinstance(text, str):
        return Url(given=True, problems=(KeyProblem(URL, "config.type", "expected text"),))
    # White space around it means nothing: a connection string may be a block of YAML.
    text = text.strip()
    parts = None if (mistake := in_url(text)) else _parsed(text)
    if parts is None:
        code, message, hint = mistake or in_parsed_url(text)
        return Url(given=True, problems=(KeyProblem(URL, code, message, hint),))
    return Url({key: Secret(one) if is_sensitive(key) else one for key, one in parts.items()}, True)


def _parsed(text: str) -> dict[str, str] | None:
    """Return what libpq takes from a URI or connection string; `None` if it refuses."""
    try:
        found = {
            option.keyword.decode(): option.val.decode()
            for option in pq.Conninfo.parse(text.encode())
            if option.val is not None
        }
    except (psycopg.Error, UnicodeError):
        return None  # the error quotes the text
    if not found.get("port", "").strip(","):
        found.pop("port", None)  # of several hosts without ports, libpq makes commas
    return found


@lru_cache(maxsize=1024)
def _places(keys: frozenset[str]) -> Mapping[str, tuple[str, ...]]:
    """Return one object for equal keys: many databases have the same."""
    return MappingProxyType(dict.fromkeys(keys, URL))
