"""The key `url` of the connection settings, taken apart into the keys that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import pq

from pgmonkey.config.interpolation import has_reference, unresolved
from pgmonkey.config.mistakes import in_parsed_url, in_url
from pgmonkey.config.problems import KeyProblem
from pgmonkey.config.redaction import Secret, is_sensitive
from pgmonkey.config.yaml_reader import KeyPath

_SECTION: Final = "connection_settings"
_PATH: Final[KeyPath] = (_SECTION, "url")


class UrlParts(NamedTuple):
    """Say which connection settings a `url` gave, or what is wrong with it."""

    keys: frozenset[str] = frozenset()
    given: bool = False
    problems: tuple[KeyProblem, ...] = ()

    def has(self, path: KeyPath) -> bool:
        """Tell whether the value at a path is a part of the url."""
        return len(path) > 1 and path[0] == _SECTION and path[1] in self.keys

    def located(self, problem: KeyProblem) -> KeyProblem:
        """Return a problem of a part as one of the url: that is what the file has."""
        beside = _PATH if self.has(problem.beside) else problem.beside
        if not self.has(problem.path):
            return problem._replace(beside=beside)
        message = f"its {problem.path[1]}: {problem.message}"
        return problem._replace(path=_PATH, message=message, at_key=False, beside=beside)


_NONE: Final = UrlParts()


def take_apart(
    connection: Any,
    below: frozenset[str] = frozenset(),
    made: Iterable[str] = (),
    *,
    resolved: bool = True,
) -> UrlParts:
    """Replace `url` in a section by the keys that it stands for.

    The other keys override its parts, also those whose values are `made` on demand, without those
    `below`: they come from the defaults, and the url does not. If references are not resolved, one in the url is a problem.
    """
    if not isinstance(connection, dict) or "url" not in connection:
        return _NONE
    url = connection.pop("url")
    text = url.reveal() if isinstance(url, Secret) else url
    if not isinstance(text, str):
        problem = KeyProblem(_PATH, "config.type", "expected text")
        return UrlParts(given=True, problems=(problem,))
    if not resolved and has_reference(text):
        return UrlParts(given=True, problems=(unresolved(_PATH),))
    # White space around it means nothing: a connection string may be a block of YAML.
    text = text.strip()
    parts = None if (mistake := in_url(text)) else _parsed(text)
    if parts is None:
        code, message, hint = mistake or in_parsed_url(text)
        return UrlParts(given=True, problems=(KeyProblem(_PATH, code, message, hint),))
    taken = parts.keys() - (connection.keys() | set(made)) | (parts.keys() & below)
    for key in taken:
        connection[key] = Secret(parts[key]) if is_sensitive(key) else parts[key]
    return UrlParts(_shared(frozenset(taken)), given=True)


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
def _shared(keys: frozenset[str]) -> frozenset[str]:
    """Return one object for equal sets: many databases have the same."""
    return keys
