"""A database engine for Django: `"ENGINE": "pgmonkey.contrib.django"`, and "NAME" as in the registry.

    DATABASES = {"default": {"ENGINE": "pgmonkey.contrib.django", "NAME": "orders"}}
    PGMONKEY = {"REGISTRY": BASE_DIR / "registry.d"}

It is Django's own engine for PostgreSQL on connections of a registry. Each alias has a pool of its
own (see `Database.with_own_pool`), of up to `max_size` connections, so that no other code gets
connections that are set up for Django. docs/recipes/django.md has the rest.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.errors import PgmonkeyError, did_you_mean
from pgmonkey.registry.registry import Registry

__all__ = ["get_registry"]

_WHERE: Final = (
    'PGMONKEY = {"REGISTRY": BASE_DIR / "registry.d"} in the settings names the directory of the'
    " registry; so does the environment variable PGMONKEY_REGISTRY"
)
#: The registries that were made here, by their directories.
_made: Final[dict[str, Registry]] = {}
# Guards `_made`: the first requests come side by side. Held while files are read.
_lock = threading.Lock()


def get_registry() -> Registry:
    """Return the registry of this project, the same one every time.

    For code that is not Django's: `get_registry().get("orders")` gives plain connections of the
    same database. The first call reads the files; nothing is read while Django starts.

    Raises:
        ImproperlyConfigured: the settings name none, or its files have problems.
    """
    where = _setting()
    if isinstance(where, Registry):
        return where
    path = os.path.abspath(where)  # noqa: PTH100 - as `Registry` does: a link stays a link
    with _lock:
        registry = _made.get(path)
        if registry is None or registry.closed:
            try:
                registry = _made[path] = Registry(path)
            except PgmonkeyError as error:
                raise ImproperlyConfigured(str(error)) from error
    return registry


def config_of(name: str) -> DatabaseConfig:
    """Return the configuration of a database that is in force.

    Raises:
        ImproperlyConfigured: there is none.
    """
    registry = get_registry()
    try:
        registry.get(name)  # raises what is wrong
        config = registry.config(name)
    except PgmonkeyError as error:
        raise ImproperlyConfigured(str(error)) from error
    assert config is not None
    return config


def _setting() -> Any:
    """Return what the settings, or the environment, say of the registry."""
    given = getattr(settings, "PGMONKEY", {})
    if not isinstance(given, dict):
        raise ImproperlyConfigured(f"PGMONKEY is a dictionary: {_WHERE}")
    for key in given:
        if key != "REGISTRY":
            hint = did_you_mean(str(key), ["REGISTRY"])
            raise ImproperlyConfigured(
                f"PGMONKEY has no key {key!r}" + (f"; {hint}" if hint else f": {_WHERE}")
            )
    where = given.get("REGISTRY")
    if where is None:
        where = os.environ.get("PGMONKEY_REGISTRY")
    if where is None:
        raise ImproperlyConfigured(_WHERE)
    if not isinstance(where, (Registry, str, os.PathLike)):
        raise ImproperlyConfigured(
            f'PGMONKEY["REGISTRY"] is a path or a Registry, not {type(where).__name__}'
        )
    return where


def _renew_lock() -> None:
    """Take a new lock, in a child process whose parent may have held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
