"""The errors of pgmonkey. All derive from `PgmonkeyError`.

PgmonkeyError
├── ConfigError                 a configuration that cannot be used; carries its problems
│   └── RegistryConfigError     the same for a whole directory
├── EnvInterpolationError       a reference that cannot be resolved
├── UnknownDatabaseError        no such name in the registry (also a KeyError)
├── DatabaseRemovedError        the file of this database was removed
├── HandleClosedError           the registry or manager of this handle was closed
├── WrongSideError              `with` on an async handle, or the reverse (also a TypeError)
├── NestedCheckoutError         a `normal` or `async` handle inside its own block
├── ConnectError                the server could not be reached (also a psycopg.OperationalError)
│   └── ReloadRejectedError     force_reload: the probe failed, the old generation keeps serving
├── CheckoutTimeout             no connection within the timeout (also a psycopg_pool.PoolTimeout)
└── TooManyWaiting              max_waiting was reached (also a psycopg_pool.TooManyRequests)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, Literal, Self

import psycopg
import psycopg_pool

from pgmonkey.problem import Problem, sorted_problems

__all__ = [
    "CheckoutTimeout",
    "ConfigError",
    "ConnectError",
    "DatabaseRemovedError",
    "EnvInterpolationError",
    "HandleClosedError",
    "NestedCheckoutError",
    "PgmonkeyError",
    "RegistryConfigError",
    "ReloadRejectedError",
    "TooManyWaiting",
    "UnknownDatabaseError",
    "WrongSideError",
]


#: Why a connection could not be made.
Reason = Literal[
    "auth",
    "refused",
    "timeout",
    "dns",
    "tls",
    "too_many_connections",
    "hba",
    "no_database",
    "setting",
    "other",
]

#: Waiting does not mend these: somebody has to change a file or the server.
LASTING: Final[frozenset[Reason]] = frozenset({"auth", "hba", "no_database", "tls", "setting"})


class PgmonkeyError(Exception):
    """Catch every error that pgmonkey raises."""


class ConfigError(PgmonkeyError, ValueError):
    """Report a configuration that cannot be used, with all its problems.

    Args:
        problems: What is wrong; shown in reading order.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted_problems(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class RegistryConfigError(ConfigError):
    """Report every problem of every file of a registry directory."""


class EnvInterpolationError(PgmonkeyError):
    """Report a reference (`${NAME}`, `from_env`, `from_file`) that cannot be resolved."""


class UnknownDatabaseError(PgmonkeyError, KeyError):
    """Report a name that no file of the registry declares."""

    @classmethod
    def among(cls, names: Collection[str], name: str, directory: str) -> Self:
        """Make the error that says which names are near.

        Args:
            names: Those that are declared.
            name: What was asked for.
            directory: That of the registry.
        """
        from difflib import get_close_matches  # only when something is wrong

        near = " or ".join(f'"{one}"' for one in get_close_matches(name, sorted(names), 3, 0.6))
        meant = f"; did you mean {near}?" if near else ""
        shown = name if name.isprintable() else ascii(name)[1:-1]
        return cls(f'no database "{shown}" in {directory}{meant} ({len(names)} declared)')

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would show the repr


class DatabaseRemovedError(PgmonkeyError):
    """Report a checkout of a database whose file was removed."""


class HandleClosedError(PgmonkeyError):
    """Report the use of a handle whose registry or manager was closed."""


class WrongSideError(PgmonkeyError, TypeError):
    """Report `with` on an async handle, or `async with` on a sync one."""


class NestedCheckoutError(PgmonkeyError):
    """Report a block of a one-connection handle inside another one of the same thread or task."""


class ConnectError(PgmonkeyError, psycopg.OperationalError):
    """Report that a connection could not be made.

    Args:
        message: What happened, with the server's reason, scrubbed of secrets.
        database: The name of the database.
        reason: One of `auth`, `refused`, `timeout`, `dns`, `tls`, `too_many_connections`,
            `hba`, `no_database`, `setting`, `other`.
    """

    def __init__(self, message: str, *, database: str = "", reason: str = "other") -> None:
        super().__init__(message)
        self.database = database
        self.reason = reason


class ReloadRejectedError(ConnectError):
    """Report a `force_reload` whose probe failed; the old generation keeps serving."""


class CheckoutTimeout(PgmonkeyError, psycopg_pool.PoolTimeout):
    """Report that no connection was free, or could be made, within the timeout.

    Args:
        message: Database, seconds waited, numbers of the pool, last connect error, hint.
        database: The name of the database.
        reason: The reason of the last failed connect, or `None` when the pool was just busy.
    """

    def __init__(self, message: str, *, database: str = "", reason: str | None = None) -> None:
        super().__init__(message)
        self.database = database
        self.reason = reason


class TooManyWaiting(PgmonkeyError, psycopg_pool.TooManyRequests):
    """Report that `max_waiting` clients wait already."""
