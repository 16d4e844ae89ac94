"""Credentials made on demand: what `from_command` and `from_resolver` declare, and what they give."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from pgmonkey.config.durations import DurationError, parse_duration
from pgmonkey.config.problems import KeyProblem
from pgmonkey.config.redaction import MASK, Secret
from pgmonkey.config.yaml_reader import KeyPath
from pgmonkey.errors import did_you_mean

#: The references that are read when a connection is made.
KINDS: Final = frozenset({"from_command", "from_resolver"})
#: Where packages declare resolvers.
GROUP: Final = "pgmonkey.resolvers"
PASSWORD: Final = ("connection_settings", "password")
USER: Final = ("connection_settings", "user")

_BESIDE: Final = {
    "from_command": frozenset({"from_command", "refresh", "timeout"}),
    "from_resolver": frozenset({"from_resolver", "key", "refresh", "timeout"}),
}
_REFRESH: Final = "10min"
_TIMEOUT: Final = "10s"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Credentials:
    """Hold a password that a resolver returns with its user, or with the time when it expires.

    Args:
        password: The password or token.
        user: The user that it belongs to; `None` for the one of the file. When a later call returns
            another one, all connections are replaced.
        expires_at: Until when new connections may use them, in Unix time; `None`: for the `refresh`
            of the file. For the lease of a user, give a time before its end: connections are
            replaced from then on.

    Example:
        >>> print(Credentials("tea", user="app-7", expires_at=1893456000.0))
        Credentials(***REDACTED***)
    """

    password: str
    user: str | None = None
    expires_at: float | None = None

    def __repr__(self) -> str:
        return f"Credentials({MASK})"


#: A function of the application that makes a credential, or a coroutine function. It gets the `key`
#: of the file.
ResolverFunction: TypeAlias = Callable[[str], Any]


@dataclass(frozen=True, slots=True, repr=False, eq=False, weakref_slot=True)
class Command:
    """Declare a program whose output is a password. Equal ones are one object."""

    arguments: tuple[str, ...]
    directory: str
    #: How long its output is used for new connections, and how long it may run, in seconds.
    refresh: float
    timeout: float
    #: Variables over those of this process, which may change.
    env: Mapping[str, str] | None
    #: The arguments that came from outside of the file: its errors may quote them.
    hidden: tuple[Secret, ...]

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"the command {os.path.basename(self.arguments[0])}"


@dataclass(frozen=True, slots=True, repr=False, eq=False, weakref_slot=True)
class Resolver:
    """Declare a function that makes a password, or `Credentials`. Equal ones are one object."""

    name: str
    key: str
    #: How long the result is used unless it says that, and how long a call may take, in seconds.
    refresh: float
    timeout: float
    #: `None`: the entry point of this name.
    function: ResolverFunction | None

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"the resolver {self.name}"


Source: TypeAlias = Command | Resolver

# By what they are made of. A source lives as long as a configuration uses it, and with it what it
# gave last: a reload of a file that still says the same reads nothing again.
_sources: Final[WeakValueDictionary[tuple[Any, ...], Source]] = WeakValueDictionary()


class OnDemand(NamedTuple):
    """How the password of a database is made, or its user and password.

    Args:
        source: What makes them.
        gives_user: Whether the user comes from there, too.
        place: File, line, column and key, for messages.
    """

    source: Source
    gives_user: bool
    place: str


def entry_point_names() -> frozenset[str]:
    """Return the names of the resolvers that installed packages declare."""
    from importlib import metadata  # slow to import, and seldom needed

    return frozenset(metadata.entry_points(group=GROUP).names)


@dataclass(frozen=True, slots=True)
class Reader:
    """Read the references of one document that declare credentials made on demand.

    Args:
        expand: Replaces the references in a text; `None` if that is not possible, and reported.
        report: Takes what is wrong.
        directory: Where relative paths start.
        env: The variables that commands get over the environment; `None` if there are none.
        resolvers: The functions of the application; `None` if they are not known here.
    """

    expand: Callable[[str, KeyPath], str | None]
    report: Callable[[KeyProblem], object]
    directory: str
    env: Mapping[str, str] | None
    resolvers: Mapping[str, ResolverFunction] | None

    def source(self, value: Mapping[str, Any], path: KeyPath) -> Source | None:
        """Return what a mapping with `from_command` or `from_resolver` declares, if it is right."""
        kind = "from_command" if "from_command" in value else "from_resolver"
        if unknown := sorted(value.keys() - _BESIDE[kind]):
            allowed = ", ".join(sorted(_BESIDE[kind] - {kind}))
            message = f"expected nothing beside {kind} but {allowed}"
            hint = did_you_mean(unknown[0], _BESIDE[kind])
            self._refuse(path, "reference.malformed", message, hint)
            return None
        if path != PASSWORD and not (kind == "from_resolver" and path == USER):
            message = (
                "only the password can be made on demand, and with a resolver the user beside it"
            )
            self._refuse((*path, kind), "reference.on_demand", message)
            return None
        refresh = self._seconds(value.get("refresh") or _REFRESH, (*path, "refresh"))
        timeout = self._seconds(value.get("timeout") or _TIMEOUT, (*path, "timeout"))
        read = self._command if kind == "from_command" else self._resolver
        return read(value, path, refresh, timeout)

    def _refuse(self, path: KeyPath, code: str, message: str, hint: str | None = None) -> None:
        self.report(KeyProblem(path, code, message, hint))

    def _seconds(self, written: Any, path: KeyPath) -> float | None:
        text = self.expand(written, path) if isinstance(written, str) else ""
        if text is None:
            return None
        message, hint = "expected a duration longer than zero", None
        try:
            if (seconds := parse_duration(text)) > 0:
                return seconds
        except DurationError as error:
            message, hint = str(error), error.hint
        self._refuse(path, "config.duration", message, hint)
        return None

    def _command(
        self,
        value: Mapping[str, Any],
        path: KeyPath,
        refresh: float | None,
        timeout: float | None,
    ) -> Source | None:
        written, path = value["from_command"], (*path, "from_command")
        if not _is_list_of_texts(written):
            hint = "write a list: [program, argument, argument]; there is no shell"
            message = "expected a program and arguments"
            self._refuse(path, "reference.malformed", message, hint)
            return None
        expanded = [self.expand(one, (*path, at)) for at, one in enumerate(written)]
        arguments = [one for one in expanded if one is not None]
        if any("\0" in one for one in arguments):
            self._refuse(path, "config.nul", "an argument contains a NUL character")
            return None
        if len(arguments) < len(written) or refresh is None or timeout is None:
            return None
        # An argument that another file has as text may be quoted there, and not here.
        given = tuple(one != before for one, before in zip(arguments, written, strict=True))
        hidden = tuple(Secret(one) for one in compress(arguments, given))
        if "/" in arguments[0]:
            arguments[0] = os.path.join(self.directory, arguments[0])
        key = ("command", *arguments, given, self.directory, refresh, timeout, id(self.env))
        made = Command(tuple(arguments), self.directory, refresh, timeout, self.env, hidden)
        return _sources.setdefault(key, made)

    def _resolver(
        self,
        value: Mapping[str, Any],
        path: KeyPath,
        refresh: float | None,
        timeout: float | None,
    ) -> Source | None:
        name, written, path = (
            value["from_resolver"],
            value.get("key") or "",
            (*path, "from_resolver"),
        )
        if not isinstance(name, str) or not name or not isinstance(written, str):
            message = "expected the name of a resolver, and a text as its key"
            self._refuse(path, "reference.malformed", message)
            return None
        key = self.expand(written, (*path[:-1], "key"))
        function = (self.resolvers or {}).get(name)
        if function is None and self.resolvers is not None:
            installed = entry_point_names()
            if name not in installed:
                self.report(_no_resolver(name, path, {*installed, *self.resolvers}))
                return None
        if key is None or refresh is None or timeout is None:
            return None
        made_of = ("resolver", name, key, refresh, timeout, id(function))
        return _sources.setdefault(made_of, Resolver(name, key, refresh, timeout, function))


def _is_list_of_texts(written: Any) -> bool:
    return (
        isinstance(written, list)
        and bool(written)
        and all(isinstance(one, str) for one in written)
        and bool(written[0])
    )


def _no_resolver(name: str, path: KeyPath, known: Iterable[str]) -> KeyProblem:
    hint = did_you_mean(name, known) or (
        f"give it to the registry, Registry(..., resolvers={{...}}), or install a package that"
        f" has an entry point of this name in the group {GROUP}"
    )
    return KeyProblem(
        path,
        "reference.no_resolver",
        f"there is no resolver {name}",
        hint,
        quoted=name,
        unquoted="there is no such resolver (its name is not shown: it may be a secret)",
    )
