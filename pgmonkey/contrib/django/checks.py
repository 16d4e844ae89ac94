"""The system checks of Django: settings that belong in a file, and files with problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from pgmonkey.config.libpq import keywords
from pgmonkey.contrib.django import config_of

#: What Django's settings call a connection setting.
_SETTINGS: Final = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password"}
#: What Django itself understands in OPTIONS.
_OPTIONS: Final = frozenset(
    {
        *("assume_role", "cursor_factory", "isolation_level"),
        *("prepare_threshold", "server_side_binding"),
    }
)


def misplaced(alias: str, settings: Mapping[str, Any]) -> list[CheckMessage]:
    """Return the problems of the settings of one alias."""
    name = settings.get("REGISTRY_NAME", settings["NAME"])
    found: list[CheckMessage] = []
    if not name:
        found.append(
            Error(
                f'DATABASES["{alias}"] has no NAME.',
                hint="Write the name of the database in the registry: the stem of its file.",
                id="pgmonkey.E001",
            )
        )
    found += (
        _error(f'DATABASES["{alias}"]["{setting}"]', name, f"connection_settings: {key}")
        for setting, key in _SETTINGS.items()
        if settings.get(setting)
    )
    for option, value in (settings.get("OPTIONS") or {}).items():
        where = f'DATABASES["{alias}"]["OPTIONS"]["{option}"]'
        if option == "pool":
            if value:
                found.append(_error(where, name, "pool_settings"))
        elif option in keywords():
            found.append(_error(where, name, f"connection_settings: {option}"))
        elif option not in _OPTIONS:
            found.append(
                Error(
                    f"{where} is no option of this engine.",
                    hint=f"It takes {', '.join(sorted(_OPTIONS))}.",
                    id="pgmonkey.E003",
                )
            )
    return found


def _error(where: str, name: str, key: str) -> CheckMessage:
    return Error(
        f"{where} has no effect here.",
        hint=f"Remove it. It belongs in {name}.yaml of the registry, as `{key}`.",
        id="pgmonkey.E002",
    )


def check_settings(**_: Any) -> list[CheckMessage]:
    """Check the settings of every alias that has this engine."""
    return [
        problem for alias in _aliases() for problem in misplaced(alias, connections.settings[alias])
    ]


def check_files(databases: Iterable[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Check the files behind aliases; it connects to nothing. Commands of a database run this.

    Args:
        databases: The aliases that are asked for.
    """
    found: list[CheckMessage] = []
    for alias in _aliases() & set(databases or ()):
        settings = connections.settings[alias]
        try:
            config_of(settings.get("REGISTRY_NAME", settings["NAME"]))
        except ImproperlyConfigured as error:
            found.append(Error(f'DATABASES["{alias}"]: {error}', id="pgmonkey.E004"))
    return found


def _aliases() -> set[str]:
    return {
        alias
        for alias, settings in connections.settings.items()
        if str(settings["ENGINE"]).startswith("pgmonkey.contrib.django")
    }
