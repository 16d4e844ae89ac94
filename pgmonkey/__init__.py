"""A declarative registry of PostgreSQL databases: YAML files in, pooled connections out.

from pgmonkey import Registry

registry = Registry("registry.d")
with registry.get("orders") as conn:
    conn.execute("INSERT INTO orders (item) VALUES (%s)", ["tea"])
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pgmonkey.version import __version__

if sys.platform == "win32":
    raise ImportError(
        "pgmonkey does not run on Windows: it needs poll, fork and the file owners of POSIX;"
        " WSL has them"
    )

if TYPE_CHECKING:
    from pgmonkey.config.env_file import read_env_file
    from pgmonkey.config.legacy import load_config
    from pgmonkey.config.on_demand import Credentials
    from pgmonkey.config.redaction import redact_config
    from pgmonkey.errors import (
        CheckoutTimeout,
        ConfigError,
        ConnectError,
        DatabaseRemovedError,
        EnvInterpolationError,
        HandleClosedError,
        LeftOpenError,
        NestedCheckoutError,
        OverrideError,
        PgmonkeyError,
        Problem,
        RegistryConfigError,
        ReloadRejectedError,
        TooManyWaiting,
        UnknownDatabaseError,
        WrongSideError,
    )
    from pgmonkey.pool.handle import Database
    from pgmonkey.pool.listening import Gap, Listener
    from pgmonkey.registry.manager import PGConnectionManager
    from pgmonkey.registry.registry import Registry
    from pgmonkey.registry.reload import ReloadReport
    from pgmonkey.telemetry.status import Change

# The modules of the public names that are no errors. Each is imported at the first use of its name,
# so `pgmonkey --help` does not wait for psycopg.
_HOMES = {
    "Change": "telemetry.status",
    "Credentials": "config.on_demand",
    "Database": "pool.handle",
    "Gap": "pool.listening",
    "Listener": "pool.listening",
    "PGConnectionManager": "registry.manager",
    "Registry": "registry.registry",
    "ReloadReport": "registry.reload",
    "load_config": "config.legacy",
    "read_env_file": "config.env_file",
    "redact_config": "config.redaction",
}

__all__ = [
    "Change",
    "CheckoutTimeout",
    "ConfigError",
    "ConnectError",
    "Credentials",
    "Database",
    "DatabaseRemovedError",
    "EnvInterpolationError",
    "Gap",
    "HandleClosedError",
    "LeftOpenError",
    "Listener",
    "NestedCheckoutError",
    "OverrideError",
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
    "read_env_file",
    "redact_config",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pgmonkey' has no attribute {name!r}")
    from importlib import import_module

    home = import_module(f"pgmonkey.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
