"""A declarative registry of PostgreSQL databases: YAML files in, pooled connections out.

from pgmonkey import Registry

registry = Registry("registry.d")
with registry.get("orders") as conn:
    conn.execute("INSERT INTO orders (item) VALUES (%s)", ["tea"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgmonkey.version import __version__

if TYPE_CHECKING:
    from pgmonkey.config.legacy import load_config
    from pgmonkey.config.redaction import redact_config
    from pgmonkey.errors import (
        CheckoutTimeout,
        ConfigError,
        ConnectError,
        DatabaseRemovedError,
        EnvInterpolationError,
        HandleClosedError,
        NestedCheckoutError,
        PgmonkeyError,
        Problem,
        RegistryConfigError,
        ReloadRejectedError,
        TooManyWaiting,
        UnknownDatabaseError,
        WrongSideError,
    )
    from pgmonkey.pool.database import Database
    from pgmonkey.registry.manager import PGConnectionManager
    from pgmonkey.registry.registry import Registry
    from pgmonkey.registry.reloader import ReloadReport

# Where each public name lives. They are imported at their first use, so that `pgmonkey --help`
# does not pay for psycopg.
_HOMES = {
    "CheckoutTimeout": "errors",
    "ConfigError": "errors",
    "ConnectError": "errors",
    "Database": "pool.database",
    "DatabaseRemovedError": "errors",
    "EnvInterpolationError": "errors",
    "HandleClosedError": "errors",
    "NestedCheckoutError": "errors",
    "PGConnectionManager": "registry.manager",
    "PgmonkeyError": "errors",
    "Problem": "errors",
    "Registry": "registry.registry",
    "RegistryConfigError": "errors",
    "ReloadRejectedError": "errors",
    "ReloadReport": "registry.reloader",
    "TooManyWaiting": "errors",
    "UnknownDatabaseError": "errors",
    "WrongSideError": "errors",
    "load_config": "config.legacy",
    "redact_config": "config.redaction",
}

__all__ = [
    "CheckoutTimeout",
    "ConfigError",
    "ConnectError",
    "Database",
    "DatabaseRemovedError",
    "EnvInterpolationError",
    "HandleClosedError",
    "NestedCheckoutError",
    "PGConnectionManager",
    "PgmonkeyError",
    "Problem",
    "Registry",
    "RegistryConfigError",
    "ReloadRejectedError",
    "ReloadReport",
    "TooManyWaiting",
    "UnknownDatabaseError",
    "WrongSideError",
    "__version__",
    "load_config",
    "redact_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pgmonkey' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"pgmonkey.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
