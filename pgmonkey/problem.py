"""A problem: one thing wrong in one file, with its place and the way to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Final

_NOT_READ: Final = {
    "missing": "does not exist, or is a link that leads nowhere",
    "permission": "may not be read by this process",
    "not_regular": "is a directory, a pipe, a socket or a device",
    "too_large": "is larger than it may be",
    "unreadable": "cannot be read for another reason of the system",
}

#: Every code, and what it means. A code never changes its meaning, and none is taken away within
#: a major version.
CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The registry
        "registry.missing": "the directory does not exist",
        "registry.not_a_directory": "a file is where the directory should be",
        "registry.permission": "the directory may not be read by this process",
        "registry.unreadable": "the directory cannot be read for another reason of the system",
        "registry.moving": "the directory is replaced again and again while it is read",
        "registry.no_such_database": "a name that was asked for has no file",
        "registry.max_connections": "max_connections is smaller than what the pools keep open",
        "config.file_name": "the name of a file is no name of a database",
        "config.declared_twice": "two files declare the same database",
        # The file
        **{f"config.{code}": f"a database file {what}" for code, what in _NOT_READ.items()},
        "config.moving": "the directory of the file is replaced again and again while it is read",
        "config.empty": "a file says nothing",
        "config.encoding": "a file, or a value in a dictionary, is not UTF-8",
        "config.nul": "a file or a value contains a NUL character",
        "config.control_character": "a file contains a control character",
        "config.syntax": "a file is no YAML",
        "config.multi_document": "a file holds several YAML documents",
        "config.shape": "a file is no mapping",
        "config.tag": "a YAML tag; none is allowed",
        "config.alias": "a YAML alias without its anchor, or inside of it",
        "config.merge": "a YAML merge key without a mapping",
        "config.too_deep": "a file is nested deeper than 20 levels",
        "config.too_many_nodes": "a file holds more than 2,000 values, with aliases expanded",
        # Keys and values
        "config.key": "a key is not text",
        "config.duplicate_key": "a key appears twice in one mapping",
        "config.unknown_key": "a key that there is not, or not here",
        "config.required": "something that must be there is missing or empty",
        "config.type": "a value is of another type than its key takes",
        "config.range": "a number is too small or too large",
        "config.choice": "a value is none of the few that its key takes",
        "config.duration": "a duration that cannot be read, or makes no sense",
        "config.url": "a URL where a name is expected",
        "config.ports": "hosts and ports differ in number",
        "config.hosts": "hosts and addresses differ in number",
        "config.sizes": "min_size is larger than max_size",
        "config.setting_name": "a name that no session setting can have",
        "config.setting_twice": "a session setting is given twice",
        "config.pgbouncer": "something that does not work behind PgBouncer",
        "environment.intrudes": "an environment variable would change the connection",
        # References and secret files
        "reference.malformed": "a reference that cannot be read",
        "reference.unset": "an environment variable is not set",
        "reference.sensitive_default": "a sensitive key has a default",
        "reference.encoding": "an environment variable is not UTF-8",
        "reference.unresolved": "a reference where none is resolved",
        **{f"secret.{code}": f"a secret file {what}" for code, what in _NOT_READ.items()},
        "secret.moving": "the directory of secret files is replaced again and again",
        "secret.empty": "a secret file is empty",
        "secret.nul": "a secret file contains a NUL character",
        "secret.bom": "a secret file starts with a byte order mark",
        "secret.encoding": "a secret file is not UTF-8",
        # Other files that connection settings name
        **{f"file.{code}": f"a TLS or password file {what}" for code, what in _NOT_READ.items()},
        "file.not_a_path": "the contents of a file stand where its path should",
        "file.no_certificate": "a file that should hold certificates holds none",
        "file.shared": "a private key or password file is open to others, so libpq will not use it",
        "file.untrusted": "other accounts can change a file, or what leads to it",
        # The server, asked by a reload or by `pgmonkey check --online`
        "probe.auth": "the server refused the login",
        "probe.hba": "the server's pg_hba.conf has no place for it",
        "probe.no_database": "there is no such database, or the role may not connect to it",
        "probe.setting": "the server refused a session setting",
        "probe.tls": "TLS could not be agreed on",
        "probe.dns": "the name of the host could not be resolved",
        "probe.refused": "nothing accepts connections there",
        "probe.timeout": "nothing answered in time",
        "probe.too_many_connections": "the server, the database or the role is full",
        "probe.other": "another reason, in the server's words",
        # Nothing is wrong
        "doubt.byte_order_mark": "a file of YAML starts with a byte order mark, which is left out",
        "doubt.variable": "a value is `$NAME`, without the braces of a reference",
        "doubt.cut": "PostgreSQL keeps less of the value than was written",
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Describe one thing that is wrong in one file.

    Problems are values: they are collected, sorted, printed and turned into JSON. A message
    or a hint never holds the value of a sensitive key, nor a value that came from outside
    the file, nor the length of either.

    Args:
        path: The file, as it was named to the loader.
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


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`.

    Args:
        number: How many.
        noun: The noun for one.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def summary(problems: Sequence[Problem]) -> str:
    """Return how many problems there are in how many files, in one line."""
    files = {problem.path for problem in problems}
    return f"{count(len(problems), 'problem')} in {count(len(files), 'file')}"
