"""Rules between the values of one database, and between databases."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.config.interpolation import LoadOptions
from pgmonkey.config.libpq import conflicting_variables, option_settings
from pgmonkey.config.models import POOL_SECTIONS, SESSION_SECTIONS
from pgmonkey.config.problems import KeyProblem
from pgmonkey.config.yaml_reader import KeyPath
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
    tree: Mapping[str, Any], options: LoadOptions, *, failed: frozenset[str], url: bool
) -> Iterator[KeyProblem]:
    """Yield the values of a resolved document that do not fit together.

    Works on any document, also an invalid one, so that all problems of a file are reported at
    once. Connection keywords that `failed` are in the file, but their reference could not be
    resolved, or their name is misspelt: they are not missing. With `url`, there is one, and its
    parts are in the document.
    """
    connection = tree.get("connection_settings")
    if not isinstance(connection, dict):
        connection = {}
    if options.isolate and "connection_settings" in tree:
        yield from _required(connection, failed, url)
        yield from _verified(connection, failed)
    if options.isolate:
        yield from _environment(connection, options.variables)
    yield from _ports(connection)
    for section in POOL_SECTIONS:
        yield from _sizes(section, tree.get(section))
    yield from _sessions(tree, connection)


def _of_connection(key: str, code: str, message: str, hint: str) -> KeyProblem:
    return KeyProblem(("connection_settings", key), code, message, hint)


def _required(
    connection: Mapping[str, Any], failed: frozenset[str], url: bool
) -> Iterator[KeyProblem]:
    if connection.get("service") or failed & {"service", "url"}:
        return
    for key, hint in _REQUIRED.items():
        if key in failed or (key == "host" and connection.get("hostaddr")):
            continue
        if key not in connection and url:
            message = f"{key} is required, and the url has none"
            yield _of_connection("url", "config.required", message, hint)
        elif key not in connection:
            section, message = ("connection_settings",), f"{key} is required"
            yield KeyProblem(section, "config.required", message, hint, at_key=True)
        elif connection[key] == "":
            yield _of_connection(key, "config.required", f"{key} is empty", hint)


def _verified(connection: Mapping[str, Any], failed: frozenset[str]) -> Iterator[KeyProblem]:
    mode = connection.get("sslmode")
    given = connection.keys() | failed
    if mode in ("verify-ca", "verify-full") and not given & {"sslrootcert", "service", "url"}:
        message = f"sslrootcert is required with {mode}"
        hint = "name the file of the authority's certificate, or write sslrootcert: system"
        yield _of_connection("sslmode", "config.required", message, hint)


def _environment(connection: Mapping[str, Any], variables: frozenset[str]) -> Iterator[KeyProblem]:
    for variable, keyword in conflicting_variables(connection, variables):
        message = f"{variable} is set and would change the connection"
        hint = f"unset it, or set {keyword} in the file" if keyword else "unset it"
        yield KeyProblem((), "environment.intrudes", message, hint)


def _ports(connection: Mapping[str, Any]) -> Iterator[KeyProblem]:
    port = connection.get("port")
    # Count only in what may be ports: anything else may hold a secret.
    ports = _count(port) if not isinstance(port, str) or _PORTS.fullmatch(port) else 0
    names, addresses = _count(connection.get("host")), _count(connection.get("hostaddr"))
    hosts = max(names, addresses)
    if ports > 1 and ports != hosts:
        message = f"{ports} ports for {count(hosts, 'host')}"
        hint = "give one port for all hosts, or one for each"
        yield _of_connection("port", "config.ports", message, hint)
    if addresses and names and addresses != names:
        plural = "" if addresses == 1 else "es"
        message = f"{addresses} address{plural} for {count(names, 'host')}"
        yield _of_connection("hostaddr", "config.hosts", message, "give one address for each host")


def _count(value: Any) -> int:
    if isinstance(value, str):
        return value.count(",") + 1 if value else 0
    return len(value) if isinstance(value, list) else 0


def _sizes(section: str, settings: Any) -> Iterator[KeyProblem]:
    if not isinstance(settings, dict):
        return
    low, high = _size(settings.get("min_size")), _size(settings.get("max_size"))
    if low is not None and high is not None and low > high:
        yield KeyProblem(
            (section, "min_size"),
            "config.sizes",
            "min_size is larger than max_size",
            "raise max_size or lower min_size",
            beside=(section, "max_size"),
        )


def _size(text: Any) -> int | None:
    """Return the number that a text is; more than the schema's 12 digits are slow to convert."""
    digits = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 12
    return int(text) if digits else None


def _sessions(tree: Mapping[str, Any], connection: Mapping[str, Any]) -> Iterator[KeyProblem]:
    options = connection.get("options")
    pgbouncer = tree.get("pooler") == "pgbouncer"
    taken = option_settings(options) if isinstance(options, str) and options else frozenset()
    for section in SESSION_SECTIONS:
        settings = tree.get(section)
        seen: dict[str, str] = {}
        for name in settings if isinstance(settings, dict) else ():
            lowered = str(name).lower()
            if pgbouncer:
                yield _behind_pgbouncer(
                    (section, name),
                    "session settings don't work behind PgBouncer: the next transaction may run "
                    "on another server connection",
                    _FOR_THE_ROLE,
                )
            elif lowered in taken:
                message = "the setting is also in connection_settings.options"
                yield _twice((section, name), message, ("connection_settings", "options"))
            elif lowered in seen:
                message = f"the same setting as {seen[lowered]}"
                yield _twice((section, name), message, (section, seen[lowered]))
            seen[lowered] = str(name)
    if pgbouncer and options:
        message = "PgBouncer refuses a connection with options"
        yield _behind_pgbouncer(("connection_settings", "options"), message, _FOR_THE_ROLE)


_FOR_THE_ROLE: Final = "set it for the role: ALTER ROLE ... SET ..."


def _behind_pgbouncer(path: KeyPath, message: str, hint: str) -> KeyProblem:
    return KeyProblem(path, "config.pgbouncer", message, hint, at_key=True)


def _twice(path: KeyPath, message: str, beside: KeyPath) -> KeyProblem:
    hint = "keep one of them"
    return KeyProblem(path, "config.setting_twice", message, hint, at_key=True, beside=beside)


def shortfalls(
    configs: Collection[DatabaseConfig], max_connections: int | None, path: str
) -> Iterator[Problem]:
    """Yield a problem for each budget that is smaller than the sum of `min_size` under it.

    Such pools could never be filled: the last databases to be used would get no connection. Each
    database counts with its connection type.
    """
    servers: dict[str, list[DatabaseConfig]] = {}
    for config in configs:
        servers.setdefault(config.server, []).append(config)
    if max_connections is not None:
        yield from _shortfall("all databases", list(configs), max_connections, path)
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
