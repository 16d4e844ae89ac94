"""Credentials made on demand: what `from_command` and `from_resolver` declare, and what they give."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
    """What a resolver returns if there is more to say than a password.

    Args:
        password: The password or token.
        user: The user that it belongs to; `None` for the one of the file. When a later call returns
            another one, all connections are replaced.
        expires_at: Until when new connections may use them, in unix seconds; `None`: for the
            `refresh` of the file. For the lease of a user, say an earlier time than its end:
            connections are replaced from that time on.

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


def read_reference(
    value: Mapping[str, Any],
    path: KeyPath,
    *,
    expand: Callable[[str, KeyPath], str | None],
    directory: str,
    resolvers: Mapping[str, ResolverFunction] | None,
) -> Source | KeyProblem | None:
    """Return the source that a reference declares, or what is wrong with it.

    Args:
        value: The mapping with `from_command` or `from_resolver`.
        path: Its place.
        expand: Replaces the references in a text; `None` if that is not possible, and reported.
        directory: Where relative paths start.
        resolvers: The functions of the application; `None` if they are not known here.
    """
    kind = "from_command" if "from_command" in value else "from_resolver"
    if unknown := sorted(value.keys() - _BESIDE[kind]):
        allowed = ", ".join(sorted(_BESIDE[kind] - {kind}))
        return KeyProblem(
            path,
            "reference.malformed",
            f"expected nothing beside {kind} but {allowed}",
            did_you_mean(unknown[0], _BESIDE[kind]),
        )
    if path != PASSWORD and not (kind == "from_resolver" and path == USER):
        return KeyProblem(
            (*path, kind),
            "reference.on_demand",
            "only the password can be made on demand, and with a resolver the user beside it",
        )
    seconds: list[float] = []
    for key, default in (("refresh", _REFRESH), ("timeout", _TIMEOUT)):
        found = _seconds(value.get(key) or default, (*path, key), expand)
        if not isinstance(found, float):
            return found
        seconds.append(found)
    if kind == "from_command":
        return _command(value[kind], (*path, kind), expand, directory, *seconds)
    return _resolver(value, path, expand, resolvers, *seconds)


def _seconds(
    text: Any, path: KeyPath, expand: Callable[[str, KeyPath], str | None]
) -> float | KeyProblem | None:
    written = expand(text, path) if isinstance(text, str) else ""
    if written is None:
        return None
    try:
        seconds = parse_duration(written)
    except DurationError as error:
        return KeyProblem(path, "config.duration", str(error), error.hint)
    if seconds > 0:
        return seconds
    return KeyProblem(path, "config.duration", "expected a duration longer than zero")


def _command(
    written: Any,
    path: KeyPath,
    expand: Callable[[str, KeyPath], str | None],
    directory: str,
    refresh: float,
    timeout: float,
) -> Source | KeyProblem | None:
    if not _is_list_of_texts(written):
        hint = "write a list: [program, argument, argument]; there is no shell"
        return KeyProblem(path, "reference.malformed", "expected a program and arguments", hint)
    arguments = [expand(one, (*path, index)) for index, one in enumerate(written)]
    if any(one is None or "\0" in one for one in arguments):
        return (
            None
            if None in arguments
            else KeyProblem(path, "config.nul", "an argument contains a NUL character")
        )
    found = tuple(map(str, arguments))
    if "/" in found[0]:
        found = (os.path.join(directory, found[0]), *found[1:])
    hidden = tuple(
        Secret(one) for one, before in zip(found[1:], written[1:], strict=True) if one != before
    )
    key = ("command", found, directory, refresh, timeout)
    return _sources.setdefault(key, Command(found, directory, refresh, timeout, hidden))


def _is_list_of_texts(written: Any) -> bool:
    return (
        isinstance(written, list)
        and bool(written)
        and all(isinstance(one, str) for one in written)
        and bool(written[0])
    )


def _resolver(
    value: Mapping[str, Any],
    path: KeyPath,
    expand: Callable[[str, KeyPath], str | None],
    resolvers: Mapping[str, ResolverFunction] | None,
    refresh: float,
    timeout: float,
) -> Source | KeyProblem | None:
    name, key = value["from_resolver"], value.get("key") or ""
    if not isinstance(name, str) or not name or not isinstance(key, str):
        message = "expected the name of a resolver, and a text as its key"
        return KeyProblem((*path, "from_resolver"), "reference.malformed", message)
    expanded = expand(key, (*path, "key"))
    if expanded is None:
        return None
    function = (resolvers or {}).get(name)
    if function is None and resolvers is not None:
        known = entry_point_names()
        if name not in known:
            return _no_resolver(name, (*path, "from_resolver"), {*known, *resolvers})
    made_of = ("resolver", name, expanded, refresh, timeout, id(function))
    return _sources.setdefault(made_of, Resolver(name, expanded, refresh, timeout, function))


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
