"""The system check of Django that says which settings belong into the file of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.core.checks import CheckMessage, Error
from django.db import connections

from pgmonkey.config.libpq import keywords

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
        hint=f"Remove it. It belongs into {name}.yaml of the registry, as `{key}`.",
        id="pgmonkey.E002",
    )


def check_databases(**_: Any) -> list[CheckMessage]:
    """Check the settings of every alias that has this engine."""
    return [
        problem
        for alias, settings in connections.settings.items()
        if str(settings["ENGINE"]).startswith("pgmonkey.contrib.django")
        for problem in misplaced(alias, settings)
    ]
