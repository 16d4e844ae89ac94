"""The errors of pgmonkey, and the problems that they report. All errors derive from `PgmonkeyError`.

PgmonkeyError
├── ConfigError                 a configuration that cannot be used; carries its problems
│   └── RegistryConfigError     the same for a whole directory
├── EnvInterpolationError       a reference that cannot be resolved
├── UnknownDatabaseError        no such name in the registry (also a KeyError)
├── DatabaseRemovedError        the file of this database was removed
├── HandleClosedError           the registry or manager of this handle was closed
├── WrongSideError              `with` on an async handle, or the reverse (also a TypeError)
├── NestedCheckoutError         a `normal` or `async` handle inside its own block
├── OverrideError               a block of `override(rollback=True)` that cannot go on, or was left open
├── LeftOpenError               a block ended inside a pipeline, COPY or stream (also a psycopg.ProgrammingError)
├── ConnectError                the server could not be reached (also a psycopg.OperationalError)
│   └── ReloadRejectedError     force_reload: the probe failed, the old connections keep serving
├── CheckoutTimeout             no connection within the timeout (also a psycopg_pool.PoolTimeout)
└── TooManyWaiting              max_waiting was reached (also a psycopg_pool.TooManyRequests)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, Self

import psycopg
import psycopg_pool

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
    "configure",
    "credentials",
    "other",
]

#: The reasons that go away only when a file, the server or the program is changed.
LASTING: Final[frozenset[Reason]] = frozenset(
    {"auth", "hba", "no_database", "tls", "setting", "configure"}
)

#: What precedes the first problem of rejected files in other errors of their database.
REJECTED: Final = "its files are rejected"


@dataclass(frozen=True, slots=True)
class Problem:
    """Describe one thing that is wrong in one file.

    Problems are values: they are collected, sorted, printed and turned into JSON. A message
    or a hint never holds the value of a sensitive key, nor a value that came from outside
    the file, nor the length of either.

    Args:
        path: The file.
        code: The stable name of the kind of problem, such as `config.type`.
        message: What is wrong and what was expected, in one line.
        line: The line, counted from 1; `None` when the problem has no line (a missing file).
        column: The column, counted from 1.
        key: The dotted key, such as `connection_settings.port`.
        hint: What to do about it, in one line.
        database: The name of the database that the file declares, where it has a valid one.

    Example:
        >>> print(Problem("orders.yaml", "config.type", "expected an integer", line=7, column=9,
        ...               key="connection_settings.port", hint="write 5432"))
        orders.yaml:7:9: connection_settings.port: expected an integer  [config.type]
          hint: write 5432
    """

    path: str
    code: str
    message: str
    line: int | None = None
    column: int | None = None
    key: str | None = None
    hint: str | None = None
    database: str | None = None

    def __str__(self) -> str:
        place = ":".join(
            str(part) for part in (self.path, self.line, self.column) if part is not None
        )
        key = f"{self.key}: " if self.key else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{place}: {key}{self.message}  [{self.code}]{hint}"

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the problem as a plain dictionary, for JSON."""
        return asdict(self)


def sorted_problems(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the problems in reading order: by file, then by position."""
    return tuple(
        sorted(problems, key=lambda p: (p.path, p.line or 0, p.column or 0, p.key or "", p.code))
    )


def did_you_mean(word: str, known: Iterable[str], *, most: int = 1) -> str | None:
    """Return the hint that names similar words; `None` if there are none."""
    from difflib import get_close_matches  # only when something is wrong

    near = " or ".join(f'"{one}"' for one in get_close_matches(word, sorted(known), most, 0.6))
    return f"did you mean {near}?" if near else None


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def summary(problems: Sequence[Problem]) -> str:
    """Return how many problems there are in how many files, in one line."""
    files = {problem.path for problem in problems}
    return f"{count(len(problems), 'problem')} in {count(len(files), 'file')}"


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
        """Return the error for a name that is not among those of a registry, with similar ones."""
        near = did_you_mean(name, names, most=3)
        meant = f"; {near}" if near else ""
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
    """Report a block inside another block of the same `normal` or `async` handle.

    The handle has one connection, and the outer block of this thread or task uses it.
    """


class LeftOpenError(PgmonkeyError, psycopg.ProgrammingError):
    """Report a block that ended while something was open on its connection.

    It can be a pipeline, a COPY, a `stream()` or `notifies()` that still has a reader, a statement
    that another thread or task runs, or a two-phase transaction that was not prepared. What was not
    committed is rolled back, and the connection is closed.
    """


class OverrideError(PgmonkeyError):
    """Report a block that does not fit into the transaction of `override(rollback=True)`.

    Its connection was lost, a COMMIT or ROLLBACK was sent as SQL, the override ended while the
    block was open, or the block was made before the override.
    """


class ConnectError(PgmonkeyError, psycopg.OperationalError):
    """Report that a connection could not be made.

    Args:
        text: What happened, in the words of the server or of libpq, scrubbed of secrets.
        database: The name of the database.
        reason: One of `auth`, `refused`, `timeout`, `dns`, `tls`, `too_many_connections`,
            `hba`, `no_database`, `setting`, `configure`, `credentials`, `other`.
        hint: What to do about it, in one line.
        rejected: If the files of this database are rejected: their first problem, with file, line
            and key. The last good configuration is in use.

    Example:
        >>> error = ConnectError("Connection refused", database="orders", reason="refused",
        ...                      hint="is the server running?")
        >>> print(error)
        orders: cannot connect: Connection refused [refused]
          hint: is the server running?
    """

    def __init__(
        self,
        text: str,
        *,
        database: str = "",
        reason: Reason = "other",
        hint: str = "",
        rejected: str = "",
    ) -> None:
        # Pickle and copy call the class with `args`, then restore the attributes.
        super().__init__(text)
        self.text = text
        self.database = database
        self.reason = reason
        self.hint = hint
        self.rejected = rejected

    def __str__(self) -> str:
        message = f"cannot connect: {self.text} [{self.reason}]"
        return _composed(self.database, message, self.hint, self.rejected)


class ReloadRejectedError(ConnectError):
    """Report a `force_reload` whose probe failed; the old connections keep serving."""


class CheckoutTimeout(PgmonkeyError, psycopg_pool.PoolTimeout):
    """Report that no connection was free, or could be made, within the timeout.

    Args:
        message: Seconds waited, numbers of the pool, and who holds its connections longest.
        database: The name of the database.
        reason: The reason of the last failed connect, or `None` when the pool was just busy.
        text: What happened then, in the words of the server or of libpq, scrubbed of secrets;
            empty when the pool was just busy.
        hint: What to do about it, in one line.
        rejected: As in `ConnectError`.

    Example:
        >>> error = CheckoutTimeout("no connection within 2.00 s", database="orders",
        ...                         reason="refused", text="Connection refused")
        >>> print(error)
        orders: no connection within 2.00 s
          the last connect failed: Connection refused [refused]
    """

    def __init__(
        self,
        message: str,
        *,
        database: str = "",
        reason: Reason | None = None,
        text: str = "",
        hint: str = "",
        rejected: str = "",
    ) -> None:
        super().__init__(message)
        self.database = database
        self.reason = reason
        self.text = text
        self.hint = hint
        self.rejected = rejected

    def __str__(self) -> str:
        message = str(self.args[0])
        if self.reason is not None:
            message += f"\n  the last connect failed: {self.text} [{self.reason}]"
        return _composed(self.database, message, self.hint, self.rejected)


class TooManyWaiting(PgmonkeyError, psycopg_pool.TooManyRequests):
    """Report a checkout while `max_waiting` others already wait."""


def _composed(database: str, message: str, hint: str, rejected: str) -> str:
    where = f"{database}: " if database else ""
    reason = f"\n  {REJECTED}: {rejected}" if rejected else ""
    advice = f"\n  hint: {hint}" if hint else ""
    return f"{where}{message}{reason}{advice}"
