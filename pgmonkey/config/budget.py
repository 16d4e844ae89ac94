"""How many server connections a fleet of processes can open. Pure arithmetic.

A process opens the pool of each database, of the type that its file declares; an async type has one
pool in each event loop. A pool has `max_size` connections, and one more while it rotates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig


class Fleet(NamedTuple):
    """How many processes run the registry: `workers` in each replica, with `loops` event loops."""

    replicas: int = 1
    workers: int = 1
    loops: int = 1

    @property
    def processes(self) -> int:
        """The number of processes."""
        return self.replicas * self.workers


class Demand(NamedTuple):
    """What one process can open for one database.

    Args:
        name: The database.
        server: As its file names it: host and port.
        pools: How many pools it has in one process.
        max_size: How many connections each of them has at most.
        cap: Its `max_connections`: over how many to the server this process opens no more.
        through_pgbouncer: Whether the server is PgBouncer.
    """

    name: str
    server: str
    pools: int = 1
    max_size: int = 1
    cap: int | None = None
    through_pgbouncer: bool = False

    @property
    def open(self) -> int:
        """How many connections there are when every pool is full."""
        return self.pools * self.max_size

    @property
    def rotating(self) -> int:
        """How many there are while each pool replaces one of its connections."""
        return self.pools * (self.max_size + 1)


class Limits(NamedTuple):
    """What a server allows, as the login of one database sees it; `None` is no limit.

    Args:
        identity: Equal for two names of one server.
        max_connections: That of the server.
        superuser_reserved_connections: How many of them are for superusers alone.
        reserved_connections: How many are for them and for the roles that may use these.
        may_use_reserved: Whether this login is such a role.
        superuser: Whether it is a superuser. No limit of a role or a database counts for one.
        role: The role that logs in.
        role_limit: How many connections the role may have.
        database: The database on the server.
        database_limit: How many connections the database may have.
        in_use: How many connections there are at this moment, of all roles.
    """

    identity: str
    max_connections: int
    superuser_reserved_connections: int
    reserved_connections: int
    may_use_reserved: bool
    superuser: bool
    role: str
    role_limit: int | None
    database: str
    database_limit: int | None
    in_use: int

    @property
    def reserved(self) -> int:
        """How many connections are kept for others."""
        if self.superuser:
            return 0
        for_roles = 0 if self.may_use_reserved else self.reserved_connections
        return self.superuser_reserved_connections + for_roles

    @property
    def not_reserved(self) -> int:
        """How many connections the server has for this login, if no other one has any."""
        return self.max_connections - self.reserved

    def allowed(self) -> tuple[int, str]:
        """Return how many connections there may be, and what sets the limit.

        Example:
            >>> limits = Limits("", 100, 3, 0, False, False, "app", 5, "orders", None, 7)
            >>> limits.allowed()
            (5, 'the CONNECTION LIMIT of the role')
            >>> limits._replace(role_limit=None).allowed()
            (97, 'max_connections of the server')
        """
        found = [
            (self.not_reserved, "max_connections of the server"),
            (self.role_limit, "the CONNECTION LIMIT of the role"),
            (self.database_limit, "the CONNECTION LIMIT of the database"),
        ]
        return min((limit, whose) for limit, whose in found if limit is not None)


Scope = Literal["server", "role", "database", "pgbouncer"]


class Sum(NamedTuple):
    """What the fleet can open against one limit.

    Args:
        server: The server, under each name that the files have for it.
        scope: Whose limit it is.
        name: The role or database; empty for the others.
        databases: The databases of the registry that count.
        open: How many connections the fleet has when every pool is full.
        rotating: How many it has while every pool rotates.
        limit: How many are allowed; `None` if that is not known.
    """

    server: str
    scope: Scope
    name: str
    databases: tuple[str, ...]
    open: int
    rotating: int
    limit: int | None

    @property
    def left(self) -> int | None:
        """How many more there could be; negative if there are too many."""
        return None if self.limit is None else self.limit - self.rotating

    @property
    def over(self) -> bool:
        """Whether the fleet can open more than is allowed."""
        return self.left is not None and self.left < 0


def demand_of(config: DatabaseConfig, loops: int, kind: ConnectionType | None = None) -> Demand:
    """Return what one process with so many event loops can open for a database.

    Args:
        config: The database.
        loops: How many event loops it has.
        kind: The connection type; that of the file if there is none.
    """
    kind = kind or config.connection_type
    return Demand(
        config.name,
        config.server,
        loops if kind in ("async", "async_pool") else 1,
        config.pool(kind).max_size,
        config.max_connections,
        config.pooler == "pgbouncer",
    )


def of_process(demands: Iterable[Demand]) -> tuple[int, int]:
    """Return what one process can open for some databases: all pools full, and all rotating.

    A database with `max_connections` opens a connection only while the process has fewer to the
    server. So the most is reached when those with the smallest caps open first.
    """
    found = [0, 0]
    of_server: dict[str, list[Demand]] = {}
    for one in demands:
        of_server.setdefault(one.server, []).append(one)
    for there in of_server.values():
        reached = [0, 0]
        for one in sorted(there, key=lambda one: inf if one.cap is None else one.cap):
            for at, wanted in enumerate((one.open, one.rotating)):
                room = wanted if one.cap is None else max(0, one.cap - reached[at])
                reached[at] += min(wanted, room)
        found = [sum(pair) for pair in zip(found, reached, strict=True)]
    return found[0], found[1]


def budget(
    demands: Sequence[Demand], fleet: Fleet, limits: Mapping[str, Limits] | None = None
) -> tuple[Sum, ...]:
    """Return what a fleet can open against each limit, server by server.

    Args:
        demands: What one process can open.
        fleet: How many processes there are.
        limits: What the servers allow, by the name of the database that was asked with.
    """
    limits = limits or {}
    return tuple(
        one
        for through_pgbouncer, there in _servers(demands, limits)
        for one in _sums(there, fleet, limits, through_pgbouncer=through_pgbouncer)
    )


def _servers(
    demands: Sequence[Demand], limits: Mapping[str, Limits]
) -> Iterator[tuple[bool, list[Demand]]]:
    """Yield the demands of each server, which the files may know under several names."""
    known = {one.server: limits[one.name].identity for one in demands if one.name in limits}
    servers: dict[tuple[bool, str], list[Demand]] = {}
    for one in sorted(demands):
        key = (one.through_pgbouncer, known.get(one.server, one.server))
        servers.setdefault(key, []).append(one)
    for (through_pgbouncer, _), there in servers.items():
        yield through_pgbouncer, there


def _sums(
    there: Sequence[Demand],
    fleet: Fleet,
    limits: Mapping[str, Limits],
    *,
    through_pgbouncer: bool,
) -> Iterator[Sum]:
    server = ", ".join(sorted({one.server for one in there}))

    def total(scope: Scope, name: str, counted: Sequence[Demand], limit: int | None) -> Sum:
        names = tuple(one.name for one in counted)
        full, rotating = (each * fleet.processes for each in of_process(counted))
        return Sum(server, scope, name, names, full, rotating, limit)

    if through_pgbouncer:  # what it allows is in its own settings
        yield total("pgbouncer", "", there, None)
        return
    seen = {one.name: limits[one.name] for one in there if one.name in limits}
    least = min((found.not_reserved for found in seen.values()), default=None)
    yield total("server", "", there, least)
    for role, limit in sorted(_limits((one.role, one.role_limit) for one in seen.values())):
        its = [one for one in there if one.name in seen and seen[one.name].role == role]
        yield total("role", role, its, limit)
    for name, limit in sorted(_limits((one.database, one.database_limit) for one in seen.values())):
        its = [one for one in there if one.name in seen and seen[one.name].database == name]
        yield total("database", name, its, limit)


def _limits(found: Iterable[tuple[str, int | None]]) -> set[tuple[str, int]]:
    return {(name, limit) for name, limit in found if limit is not None}
