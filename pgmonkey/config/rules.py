"""Consistency: what must hold between the values of one database, and between databases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.config.libpq import intruders, option_settings
from pgmonkey.config.problems import Finding
from pgmonkey.errors import Problem, count

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig


_REQUIRED: Final = {
    "host": "a socket directory is written as an absolute path",
    "dbname": "libpq would use the name of the user",
    "user": "libpq would use the account of the operating system, which a container may not have",
}

_PORTS: Final = re.compile(r"[0-9, ]*")


def inconsistencies(
    tree: Mapping[str, Any],
    *,
    isolate: bool,
    variables: frozenset[str],
    failed: frozenset[str] = frozenset(),
) -> Iterator[Finding]:
    """Yield what does not fit together in a resolved document.

    Works on what is there, however wrong the rest is, so that all problems come at once.

    Args:
        tree: The resolved document.
        isolate: Whether it is a registry's: nothing is filled from the environment there.
        variables: The variables in the environment that libpq reads.
        failed: Connection keywords that are in the file, but whose reference could not be
            resolved, or whose name is misspelt: they are not missing.
    """
    connection = tree.get("connection_settings")
    if not isinstance(connection, dict):
        connection = {}
    if isolate and "connection_settings" in tree:
        yield from _required(connection, failed)
        yield from _verified(connection, failed)
    if isolate:
        yield from _environment(connection, variables)
    yield from _ports(connection)
    for section in ("pool_settings", "async_pool_settings"):
        yield from _sizes(section, tree.get(section))
    yield from _sessions(tree, connection)


def _required(connection: Mapping[str, Any], failed: frozenset[str]) -> Iterator[Finding]:
    if connection.get("service") or "service" in failed:
        return
    for key, hint in _REQUIRED.items():
        if key in failed or (key == "host" and connection.get("hostaddr")):
            continue
        if key not in connection:
            yield Finding(
                ("connection_settings",), "config.required", f"{key} is required", hint, at_key=True
            )
        elif connection[key] == "":
            yield Finding(("connection_settings", key), "config.required", f"{key} is empty", hint)


def _verified(connection: Mapping[str, Any], failed: frozenset[str]) -> Iterator[Finding]:
    mode = connection.get("sslmode")
    given = connection.keys() | failed
    if mode in ("verify-ca", "verify-full") and not given & {"sslrootcert", "service"}:
        yield Finding(
            ("connection_settings", "sslmode"),
            "config.required",
            f"sslrootcert is required with {mode}",
            "name the file of the authority's certificate, or write sslrootcert: system",
        )


def _environment(connection: Mapping[str, Any], variables: frozenset[str]) -> Iterator[Finding]:
    for variable, keyword in intruders(connection, variables):
        hint = f"unset it, or set {keyword} in the file" if keyword else "unset it"
        yield Finding(
            (), "environment.intrudes", f"{variable} is set and would change the connection", hint
        )


def _ports(connection: Mapping[str, Any]) -> Iterator[Finding]:
    port = connection.get("port")
    # Only of what may be ports: the number of commas in anything else is nobody's business.
    ports = _count(port) if not isinstance(port, str) or _PORTS.fullmatch(port) else 0
    hosts = max(_count(connection.get("host")), _count(connection.get("hostaddr")))
    if ports > 1 and ports != hosts:
        yield Finding(
            ("connection_settings", "port"),
            "config.ports",
            f"{ports} ports for {count(hosts, 'host')}",
            "give one port for all hosts, or one for each",
        )
    addresses, names = _count(connection.get("hostaddr")), _count(connection.get("host"))
    if addresses and names and addresses != names:
        yield Finding(
            ("connection_settings", "hostaddr"),
            "config.hosts",
            f"{addresses} address{'' if addresses == 1 else 'es'} for {count(names, 'host')}",
            "give one address for each host",
        )


def _count(value: Any) -> int:
    if isinstance(value, str):
        return value.count(",") + 1 if value else 0
    return len(value) if isinstance(value, list) else 0


def _sizes(section: str, settings: Any) -> Iterator[Finding]:
    if not isinstance(settings, dict):
        return
    low, high = settings.get("min_size"), settings.get("max_size")
    if not (isinstance(low, str) and isinstance(high, str)):
        return
    # Up to 12 digits, as the schema has it: converting more is slow, or refused by Python.
    if not (low.isascii() and low.isdigit() and len(low) <= 12):
        return
    if not (high.isascii() and high.isdigit() and len(high) <= 12):
        return
    if int(low) > int(high):
        yield Finding(
            (section, "min_size"),
            "config.sizes",
            "min_size is larger than max_size",
            "raise max_size or lower min_size",
            beside=(section, "max_size"),
        )


def _sessions(tree: Mapping[str, Any], connection: Mapping[str, Any]) -> Iterator[Finding]:
    options = connection.get("options")
    pgbouncer = tree.get("pooler") == "pgbouncer"
    taken = option_settings(options) if isinstance(options, str) and options else frozenset()
    for section in ("sync_settings", "async_settings"):
        settings = tree.get(section)
        if not isinstance(settings, dict):
            continue
        seen: dict[str, str] = {}
        for name in settings:
            lowered = str(name).lower()
            if pgbouncer:
                yield Finding(
                    (section, name),
                    "config.pgbouncer",
                    "session settings don't work behind PgBouncer: the next transaction may run "
                    "on another server connection",
                    "set it for the role: ALTER ROLE ... SET ...",
                    at_key=True,
                )
            elif lowered in taken:
                yield Finding(
                    (section, name),
                    "config.setting_twice",
                    "the setting is also in connection_settings.options",
                    "keep one of them",
                    at_key=True,
                    beside=("connection_settings", "options"),
                )
            elif lowered in seen:
                yield Finding(
                    (section, name),
                    "config.setting_twice",
                    f"the same setting as {seen[lowered]}",
                    "keep one of them",
                    at_key=True,
                    beside=(section, seen[lowered]),
                )
            seen[lowered] = str(name)
    if not pgbouncer:
        return
    if options:
        yield Finding(
            ("connection_settings", "options"),
            "config.pgbouncer",
            "PgBouncer refuses a connection with options",
            "set it for the role: ALTER ROLE ... SET ...",
            at_key=True,
        )
    if connection.get("prepare_threshold") is not None:
        yield Finding(
            ("connection_settings", "prepare_threshold"),
            "config.pgbouncer",
            "server-side prepared statements don't work behind PgBouncer's transaction pooling",
            "remove it, or write null",
            at_key=True,
        )


def shortfalls(
    configs: Iterable[DatabaseConfig], max_connections: int | None, path: str
) -> Iterator[Problem]:
    """Yield a problem for each budget that is smaller than the sum of `min_size` under it.

    Such pools could never be filled: the last databases to be used would get no connection.

    Args:
        configs: The databases of a registry, each counted for the type that its file says.
        max_connections: What all of them may have together, or `None`.
        path: Where the problems are said to be.
    """
    servers: dict[str, list[DatabaseConfig]] = {}
    everywhere = []
    for config in configs:
        everywhere.append(config)
        servers.setdefault(config.server, []).append(config)
    if max_connections is not None:
        yield from _shortfall("all databases", everywhere, max_connections, path)
    for server, of_server in sorted(servers.items()):
        limits = [one.max_connections for one in of_server if one.max_connections is not None]
        if limits:
            yield from _shortfall(f"the databases on {server}", of_server, min(limits), path)


def _shortfall(who: str, configs: list[DatabaseConfig], limit: int, path: str) -> Iterator[Problem]:
    kept = {config.name: config.pool(config.connection_type).min_size for config in configs}
    total = sum(kept.values())
    if total <= limit:
        return
    largest = sorted(kept.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{name} {size}" for name, size in largest[:8])
    more = f" and {len(largest) - 8} more" if len(largest) > 8 else ""
    yield Problem(
        path,
        "registry.max_connections",
        f"{who} keep {total} connections open (min_size), and max_connections is {limit}",
        hint=f"raise max_connections, or lower min_size ({listed}{more})",
    )
