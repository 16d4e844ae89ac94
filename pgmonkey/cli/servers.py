"""Connect to servers as applications do, and ask what they are and what they allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    import psycopg

    from pgmonkey.config.budget import Limits
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
    "SELECT pg_postmaster_start_time()::text || ' ' || current_setting('port'),"
    " current_setting('max_connections')::int,"
    " current_setting('superuser_reserved_connections')::int,"
    " coalesce(current_setting('reserved_connections', true)::int, 0),"
    " coalesce((SELECT pg_has_role(session_user, oid, 'USAGE') FROM pg_roles"
    " WHERE rolname = 'pg_use_reserved_connections'), false),"
    " r.rolsuper,"
    " r.rolname::text, CASE WHEN r.rolconnlimit >= 0 AND NOT r.rolsuper THEN r.rolconnlimit END,"
    " d.datname::text, CASE WHEN d.datconnlimit >= 0 AND NOT r.rolsuper THEN d.datconnlimit END,"
    " (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL)"
    " FROM pg_roles AS r, pg_database AS d"
    " WHERE r.rolname = session_user AND d.datname = current_database()"
)

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Collection[T]) -> list[R]:
    """Call a function with each item, a few at a time, and return the results in their order.

    Ctrl-C does not wait for a server that does not answer.
    """
    from pgmonkey.registry.workers import Workers

    workers = Workers("pgmonkey-connect", _WORKERS)
    outcomes: list[Future[R]] = [Future() for _ in items]

    def work(item: T, outcome: Future[R]) -> None:
        try:
            outcome.set_result(function(item))
        except BaseException as error:  # noqa: BLE001 - raised where the outcome is asked for
            outcome.set_exception(error)

    for item, outcome in zip(items, outcomes, strict=True):
        workers.submit(partial(work, item, outcome))
    return [outcome.result() for outcome in outcomes]


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
        from pgmonkey.config.settings import host_and_port

        on_socket = self.host.startswith("/")
        place = self.host if on_socket else host_and_port(self.host, str(self.port))
        tls = "none: a local socket" if on_socket else "none: the connection is not encrypted"
        if self.encrypted:
            tls = f"{self.tls_version}, {self.tls_cipher}" if self.tls_version else "yes"
        transactions = "read-only" if self.read_only else "read-write"
        return {
            "server": f"PostgreSQL {self.version} at {place}",
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
            limits = limits_of(cursor, config)
            trips = []
            for _ in range(_TRIPS):
                began = time.monotonic()
                cursor.execute("SELECT 1")
                trips.append(time.monotonic() - began)
    except psycopg.Error as error:
        return failed_probe(config, classify(error, config).error(config.name))
    finally:
        connection.close()

    def shown(text: str) -> str:
        return scrub(text, config.secrets)  # one that was written in the wrong place

    return Found(
        server._replace(
            host=shown(server.host),
            database=shown(server.database),
            user=shown(server.user),
            role=shown(server.role),
        ),
        limits,
        seconds,
        min(trips),
    )


def limits_of(cursor: psycopg.Cursor[tuple[Any, ...]], config: DatabaseConfig) -> Limits:
    """Ask a server what it allows to the login of a database."""
    from pgmonkey.config.budget import Limits
    from pgmonkey.config.redaction import scrub

    (row,) = cursor.execute(_ABOUT_LIMITS)
    found = Limits(*row)
    return found._replace(
        role=scrub(found.role, config.secrets), database=scrub(found.database, config.secrets)
    )
