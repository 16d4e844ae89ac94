"""Connect to servers as applications do, and ask what they are and what they allow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    import psycopg

    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import Problem
    from pgmonkey.pool._sync.connection import SyncPooledConnection

_WORKERS: Final = 8
#: How often a round trip is measured: the fastest counts.
_TRIPS: Final = 3

#: What makes a `Server`. Behind a pooler pg_stat_ssl describes the pooler's own connection.
ABOUT_SERVER: Final = (
    "SELECT current_setting('server_version'), session_user, current_user, current_database(),"
    " pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', s.version, s.cipher"
    " FROM (SELECT) AS here LEFT JOIN pg_stat_ssl AS s ON s.pid = pg_backend_pid()"
)
#: What makes a `Limits`. There are reserved connections for roles since PostgreSQL 16.
_ABOUT_LIMITS: Final = (
    "SELECT current_setting('max_connections')::int,"
    " current_setting('superuser_reserved_connections')::int,"
    " coalesce(current_setting('reserved_connections', true)::int, 0),"
    " coalesce((SELECT pg_has_role(session_user, oid, 'USAGE') FROM pg_roles"
    " WHERE rolname = 'pg_use_reserved_connections'), false),"
    " r.rolsuper, nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1),"
    " (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL)"
    " FROM pg_roles AS r, pg_database AS d"
    " WHERE r.rolname = session_user AND d.datname = current_database()"
)

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Collection[T]) -> list[R]:
    """Call a function with each item, a few at a time, and return the results in their order.

    The threads are daemons: Ctrl-C must not wait for a server that does not answer, as the end of
    an executor would.
    """
    waiting: SimpleQueue[tuple[T, Future[R]]] = SimpleQueue()
    outcomes = []
    for item in items:
        outcome: Future[R] = Future()
        outcomes.append(outcome)
        waiting.put((item, outcome))

    def work() -> None:
        while True:
            try:
                item, outcome = waiting.get_nowait()
            except Empty:
                return
            try:
                outcome.set_result(function(item))
            except BaseException as error:  # noqa: BLE001 - raised where the outcome is asked for
                outcome.set_exception(error)

    threads = [
        threading.Thread(target=work, name=f"pgmonkey-connect-{number}", daemon=True)
        for number in range(min(_WORKERS, len(outcomes)))
    ]
    for thread in threads:
        thread.start()
    results = [outcome.result() for outcome in outcomes]
    for thread in threads:
        thread.join()
    return results


def connected(config: DatabaseConfig) -> SyncPooledConnection | Problem:
    """Connect once, with the type of the file; return the problem if that fails."""
    # Late: what looks at files alone must not wait for the import of the pool.
    from pgmonkey.config.failed_probes import failed_probe
    from pgmonkey.pool._sync.connecting import connect
    from pgmonkey.pool.failures import ConnectFailure

    connection = connect(config, config.connection_type)
    if isinstance(connection, ConnectFailure):
        return failed_probe(config, connection.error(config.name))
    return connection


class Server(NamedTuple):
    """Describe the server behind one connection, and who the connection is for it."""

    host: str
    port: int
    version: str
    database: str
    user: str
    role: str
    standby: bool
    read_only: bool
    encrypted: bool
    tls_version: str | None
    tls_cipher: str | None

    @classmethod
    def behind(
        cls,
        connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
        row: tuple[Any, ...] | None,
    ) -> Server:
        """Return what the answer to the question says, and what the driver knows itself."""
        assert row is not None
        version, user, role, database, standby, read_only, tls_version, tls_cipher = row
        info = connection.info
        encrypted = bool(connection.pgconn.ssl_in_use)
        return cls(
            info.host,
            info.port,
            version,
            database,
            user,
            role,
            standby,
            read_only,
            encrypted,
            tls_version if encrypted else None,
            tls_cipher if encrypted else None,
        )

    def lines(self) -> dict[str, str]:
        """Return it for people."""
        on_socket = self.host.startswith("/")
        address = self.host if on_socket else f"{self.host}:{self.port}"
        tls = "none: a local socket" if on_socket else "none: the connection is not encrypted"
        if self.encrypted:
            tls = f"{self.tls_version}, {self.tls_cipher}" if self.tls_version else "yes"
        transactions = "read-only" if self.read_only else "read-write"
        return {
            "server": f"PostgreSQL {self.version} at {address}",
            "database": self.database,
            "user": self.user if self.role == self.user else f"{self.user}, acting as {self.role}",
            "tls": tls,
            "transactions": f"{transactions}, on a standby" if self.standby else transactions,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return it as a plain dictionary, for JSON."""
        tls = {"version": self.tls_version, "cipher": self.tls_cipher} if self.encrypted else None
        values = self._asdict()
        return {
            **{key: values[key] for key in ("host", "port", "version", "database")},
            **{key: values[key] for key in ("user", "role", "standby", "read_only")},
            "tls": tls,
        }


class Limits(NamedTuple):
    """Hold how many connections a server allows to a role, and what sets the limits."""

    max_connections: int
    superuser_reserved_connections: int
    reserved_connections: int
    #: Whether the role may use those.
    may_use_reserved: bool
    superuser: bool
    #: The CONNECTION LIMIT of the role; `None` for any number.
    role: int | None
    #: The CONNECTION LIMIT of the database; `None` for any number.
    database: int | None
    #: How many there are at this moment, of all roles.
    in_use: int

    @property
    def reserved(self) -> int:
        """How many connections are kept for others."""
        if self.superuser:
            return 0
        for_roles = 0 if self.may_use_reserved else self.reserved_connections
        return self.superuser_reserved_connections + for_roles

    def allowed(self) -> tuple[int, str]:
        """Return how many connections there may be for the role, and what sets the limit.

        Example:
            >>> Limits(100, 3, 0, False, False, 5, None, 7).allowed()
            (5, 'the CONNECTION LIMIT of the role')
            >>> Limits(100, 3, 0, False, True, 5, None, 7).allowed()  # a superuser
            (100, 'max_connections of the server')
        """
        found = [(self.max_connections - self.reserved, "max_connections of the server")]
        if not self.superuser:
            limits = {"role": self.role, "database": self.database}
            found += [
                (limit, f"the CONNECTION LIMIT of the {whose}")
                for whose, limit in limits.items()
                if limit is not None
            ]
        return min(found)

    def line(self) -> str:
        """Return it for people."""
        allowed, limit = self.allowed()
        reserved = f"{self.reserved} reserved, " if self.reserved else ""
        return (
            f"{allowed} allowed by {limit}; {self.max_connections} in all, {reserved}"
            f"{self.in_use} in use"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as a plain dictionary, for JSON."""
        return {**self._asdict(), "allowed": self.allowed()[0]}


class Found(NamedTuple):
    """What one connection has shown. Times are in seconds."""

    server: Server
    limits: Limits
    connect: float
    round_trip: float


def find(config: DatabaseConfig) -> Found | Problem:
    """Connect once, and ask the server; return the problem if that fails."""
    import psycopg
    from psycopg.rows import tuple_row

    from pgmonkey.config.failed_probes import failed_probe
    from pgmonkey.config.redaction import scrub
    from pgmonkey.errors import Problem
    from pgmonkey.pool.failures import classify

    began = time.monotonic()
    connection = connected(config)
    if isinstance(connection, Problem):
        return connection
    seconds = time.monotonic() - began
    try:
        # The row factory of the file is for its application.
        with connection.cursor(row_factory=tuple_row) as cursor:
            server = Server.behind(connection, cursor.execute(ABOUT_SERVER).fetchone())
            # What was written in the wrong place may be a secret.
            server = server._replace(
                host=scrub(server.host, config.secrets),
                database=scrub(server.database, config.secrets),
                user=scrub(server.user, config.secrets),
                role=scrub(server.role, config.secrets),
            )
            (row,) = cursor.execute(_ABOUT_LIMITS)
            trips = []
            for _ in range(_TRIPS):
                began = time.monotonic()
                cursor.execute("SELECT 1")
                trips.append(time.monotonic() - began)
    except psycopg.Error as error:
        return failed_probe(config, classify(error, config).error(config.name))
    finally:
        connection.close()
    return Found(server, Limits(*row), seconds, min(trips))


def milliseconds(seconds: float) -> str:
    """Return a time for people."""
    return f"{seconds * 1000:.1f} ms"


def described(title: str, lines: Mapping[str, str]) -> str:
    """Return a title, and below it what has a name and a text."""
    return "\n".join([title, *(f"  {name:<14}{text}" for name, text in lines.items())])
