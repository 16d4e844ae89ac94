"""What the schema finds wrong, in our own words: what pydantic says itself is never shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pgmonkey.config.finding import Finding
from pgmonkey.config.layout import KeyPath

_WRAPPER: Final = ("postgresql",)


def finding_of(details: Mapping[str, Any], path: KeyPath | None = None) -> Finding:
    """Turn one error of pydantic into a finding; what it says itself is never used."""
    path = tuple(details["loc"]) if path is None else path
    at_key = bool(path) and path[-1] == "[key]"
    if at_key:
        path = path[:-1]
    match details["type"]:
        case "pgmonkey":
            context = details["ctx"]
            return Finding(
                path, context["code"], context["say"], context["hint"], at_key, show=not at_key
            )
        case "extra_forbidden":
            return _unknown(path)
        case "missing":
            return Finding(path, "config.required", f"{path[-1]} is required")
        case "string_type" | "is_instance_of":
            return Finding(path, "config.type", "expected text")
        case _:
            return Finding(path, "config.type", "expected a mapping", show=True)


def meant_key(details: Mapping[str, Any]) -> KeyPath | None:
    """Return the key that was meant, if an error of pydantic is about one that is unknown.

    Args:
        details: The error.
    """
    if details["type"] != "extra_forbidden":
        return None
    path = tuple(details["loc"])
    if path == _WRAPPER:
        return ("connection_settings",)
    near = _near(path)
    return (*path[:-1], near) if near else None


def _unknown(path: KeyPath) -> Finding:
    key = str(path[-1])
    shown = json.dumps(key if len(key) <= 63 else f"{key[:60]}...")
    strange = "" if key.isascii() else " contains letters that are not ASCII"
    hint = None
    if near := _near(path):
        hint = f'did you mean "{near}"?'
    elif home := _home(key):
        hint = f'"{key}" belongs in {home}'
    elif key == "name" and len(path) == 1:
        hint = "a database has the name of its file"
    elif path == _WRAPPER:
        hint = "the old layout: move its contents up one level"
    else:
        hint = "the reference lists every key, and so does pgmonkey schema"
    return Finding(path, "config.unknown_key", f"unknown key {shown}{strange}", hint, at_key=True)


def _near(path: KeyPath) -> str | None:
    from difflib import get_close_matches

    from pgmonkey.config.models import known_keys

    near = get_close_matches(_plain(str(path[-1])), known_keys(path[:-1]), 1, 0.7)
    return near[0] if near else None


def _plain(key: str) -> str:
    return key.strip().lower().replace("-", "_").replace(" ", "_")


def _home(key: str) -> str | None:
    from pgmonkey.config.models import known_keys

    sections: Iterable[KeyPath] = ((), ("connection_settings",), ("pool_settings",))
    for section in sections:
        if key in known_keys(section):
            return str(section[0]) if section else "the top level of the file"
    return None
