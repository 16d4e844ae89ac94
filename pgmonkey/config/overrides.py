"""What a program gives in the place of the connection settings of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pgmonkey.config.connection_url import Url, taken_apart
from pgmonkey.config.libpq import keywords
from pgmonkey.config.models import PSYCOPG_KEYS, typed_value
from pgmonkey.config.problems import KeyProblem, schema_problem
from pgmonkey.config.redaction import Secret, is_sensitive
from pgmonkey.errors import did_you_mean

#: What psycopg itself takes: settings that are no text, and objects.
OWN: Final = frozenset({"autocommit", "prepare_threshold"})
_OBJECTS: Final = frozenset({"context", "row_factory", "cursor_factory"})
#: What a url says or leaves to its default, whatever the file has: a password must not get to
#: another server than its own.
_OF_URL: Final = (
    "host",
    "hostaddr",
    "port",
    "dbname",
    "service",
    "target_session_attrs",
    "user",
    "password",
    "passfile",
    "scram_client_key",
    "scram_server_key",
)

_HINTS: Final = {
    "conninfo": "give it as url=..., or its parts, such as dbname=...",
    "statement_timeout": 'give it as options="-c statement_timeout=..."',
    "search_path": 'give it as options="-c search_path=..."',
    **{key: "set it on the connection" for key in PSYCOPG_KEYS if key not in OWN},
}


class Overrides(NamedTuple):
    """Hold what a program gives in the place of the settings of a file, secrets as `Secret`.

    Args:
        settings: Connection settings; `None` leaves one to its default.
        options: Objects of the program, which psycopg takes as they are: factories and adapters.
        names: What the program has given, `url` among them.
    """

    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    names: tuple[str, ...] = ()

    @classmethod
    def taken_from(cls, given: dict[str, Any], *, checked: bool = False) -> Overrides:
        """Take arguments of `psycopg.connect`, and `url`, out of a dictionary that a traceback may show.

        Args:
            given: The arguments; it is empty afterwards.
            checked: Take no objects, only what a file can have.

        Raises:
            TypeError: psycopg does not know one of them, or it is an object.
            ValueError: the url cannot be used, or a value can never work.
        """
        values = dict(given)
        given.clear()
        known = {*keywords(), *OWN, *_OBJECTS, "url"}
        unknown = sorted(values.keys() - known)
        options = {key: values.pop(key) for key in _OBJECTS & values.keys()}
        settings = {key: _protected(key, value) for key, value in values.items() if key in known}
        names = tuple(sorted(settings))
        values.clear()
        if unknown:
            hint = _HINTS.get(unknown[0]) or did_you_mean(unknown[0], known)
            raise TypeError(
                f'"{unknown[0]}" is no parameter of a connection' + (f"; {hint}" if hint else "")
            )
        if checked and options:
            raise TypeError(f"{min(options)} is no setting of a file; give it to `configure`")
        settings, wrong = _understood(settings)
        if wrong:
            raise ValueError(wrong)
        return cls(settings, options, names)


def _understood(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return settings with those of their url, and what is wrong with one, if something is.

    Then none are left in the dictionary: of a url with a mistake, any part may be the password.
    """
    given = dict(settings)
    settings.clear()
    url = Url() if (text := given.pop("url", None)) is None else taken_apart(text)
    if url.problems:
        return {}, _sentence("url", url.problems[0])
    if url.given:
        given = {**dict.fromkeys(_OF_URL & keywords().keys()), **url.settings, **given}
    for key, value in given.items():
        if "\0" in (value.reveal() if isinstance(value, Secret) else str(value)):
            return {}, f"{key}: the value contains a NUL character"
        if value is None or isinstance(value, Secret):
            continue
        path = ("connection_settings", key)
        written = str(value).lower() if isinstance(value, int) else value  # as in a file
        given[key], details = typed_value(path, written)
        if details is not None:
            problem = url.located(schema_problem(details, path))
            return {}, _sentence(str(problem.path[-1]), problem)
    return given, ""


def _sentence(key: str, problem: KeyProblem) -> str:
    return f"{key}: {problem.message}" + (f"; {problem.hint}" if problem.hint else "")


def _protected(key: str, value: Any) -> Any:
    """Return a value as a file would have it: numbers as text, secrets hidden."""
    if value is None or key in OWN:
        return value
    if key == "url":
        return Secret(value) if isinstance(value, str) else object()
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return Secret(text) if is_sensitive(key) else text
