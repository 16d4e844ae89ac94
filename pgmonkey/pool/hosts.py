"""Look up the addresses of a host name, with a timeout, which the system's resolver lacks."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.conninfo import timeout_from_conninfo

#: A host name and its port.
Name: TypeAlias = tuple[str, str]
#: The addresses of a name, or why there are none.
Answer: TypeAlias = tuple[str, ...] | OSError

_DEFAULT_PORT: Final = "5432"

# The lookups under way. A resolver that does not answer may keep its thread for longer than any
# client waits, so all clients that look up one name wait for the same thread.
_under_way: Final[dict[Name, Future[Answer]]] = {}
# Guards the step from looking to adding. Never held while waiting.
_lock = threading.Lock()


def resolved(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return connection parameters with the addresses of their hosts.

    A driver asks the system's resolver, which may wait for a dead name server for much longer
    than `connect_timeout`. Given the addresses, it asks no resolver. The server's certificate is
    still compared with the name. Costs a thread for the time of each lookup.

    Args:
        parameters: As for `psycopg.connect`.

    Raises:
        psycopg.OperationalError: no host has an address, or none came within `connect_timeout`.
    """
    lookups = {name: look_up(name) for name in names(parameters)}
    if not lookups:
        return parameters
    timeout = timeout_from_conninfo(dict(parameters))
    wait(lookups.values(), timeout)
    return with_addresses(parameters, _answers(lookups, timeout))


async def resolved_async(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return connection parameters with the addresses of their hosts; see `resolved`."""
    lookups = {name: look_up(name) for name in names(parameters)}
    if not lookups:
        return parameters
    timeout = timeout_from_conninfo(dict(parameters))
    waiting = [asyncio.wrap_future(lookup) for lookup in lookups.values()]
    try:
        await asyncio.wait(waiting, timeout=timeout)
    finally:
        for one in waiting:
            one.cancel()  # the wait, not the lookup: others may wait for that
    return with_addresses(parameters, _answers(lookups, timeout))


def look_up(name: Name) -> Future[Answer]:
    """Begin a lookup by the system's resolver, or join the one under way."""
    with _lock:
        lookup = _under_way.get(name)
        if lookup is None:
            lookup = Future()
            lookup.set_running_or_notify_cancel()
            thread = threading.Thread(
                target=_ask, args=(name, lookup), name=f"pgmonkey-lookup-{name[0]}", daemon=True
            )
            thread.start()
            _under_way[name] = lookup
        return lookup


def _ask(name: Name, lookup: Future[Answer]) -> None:
    answer: Answer
    try:
        found = socket.getaddrinfo(*name, proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM)
        answer = tuple(dict.fromkeys(str(address[0]) for *_, address in found))
    except OSError as error:
        answer = error
    except UnicodeError as error:  # a label of the name is too long, say
        answer = OSError(str(error))
    with _lock:
        _under_way.pop(name, None)
    lookup.set_result(answer)


def _answers(lookups: Mapping[Name, Future[Answer]], timeout: float) -> dict[Name, Answer]:
    return {
        name: lookup.result() if lookup.done() else OSError(f"no answer within {timeout:g} s")
        for name, lookup in lookups.items()
    }


def names(parameters: Mapping[str, Any]) -> list[Name]:
    """Return the hosts that have to be looked up: no addresses, no socket directories."""
    if parameters.get("hostaddr"):
        return []
    return [(host, port) for host, port in _hosts(parameters) if _is_name(host)]


def with_addresses(
    parameters: Mapping[str, Any], answers: Mapping[Name, Answer]
) -> Mapping[str, Any]:
    """Return the parameters with one host for each address; hosts without one are left out.

    Args:
        parameters: As for `psycopg.connect`.
        answers: The result of the lookup of each name.

    Raises:
        psycopg.OperationalError: no host is left.
    """
    entries: list[tuple[str, str, str]] = []
    failed = ""
    for host, port in _hosts(parameters):
        answer = answers.get((host, port))
        if isinstance(answer, OSError):
            failed = f"failed to resolve host {host!r}: {answer}"
        elif answer is None:
            entries.append((host, host if _is_address(host) else "", port))
        else:
            entries += [(host, address, port) for address in answer]
    if not entries:
        raise psycopg.OperationalError(failed)
    hosts, addresses, ports = (",".join(part) for part in zip(*entries, strict=True))
    return {**parameters, "host": hosts, "hostaddr": addresses, "port": ports}


def _hosts(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return host and port of each server that the parameters name."""
    hosts = str(parameters.get("host") or "").split(",")
    ports = str(parameters.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        return []  # the driver says what is wrong
    return [(host, port or _DEFAULT_PORT) for host, port in zip(hosts, ports, strict=True)]


def _is_name(host: str) -> bool:
    return bool(host) and not host.startswith(("/", "@")) and not _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def reset() -> None:
    """Forget the lookups of the parent, whose threads do not exist in a child process."""
    global _lock
    _lock = threading.Lock()  # the parent's may be held for ever
    _under_way.clear()
