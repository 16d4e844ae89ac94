"""A new database for each test."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from tests.kit.canary import Canary
from tests.kit.eventually import eventually
from tests.kit.server import PostgresServer

_numbers = itertools.count(1)


@dataclass
class TemporaryDatabase:
    """A fresh database and its owner, whose password is made from the session's canary."""

    server: PostgresServer
    canary: Canary = field(repr=False)
    name: str
    user: str
    password: str = field(repr=False)
    host: str
    port: int
    _opened: list[psycopg.Connection[tuple[Any, ...]]] = field(default_factory=list, repr=False)

    @classmethod
    def create(cls, server: PostgresServer, canary: Canary) -> TemporaryDatabase:
        """Create the role and the database, both with a name that was never used before."""
        name = f"test_{next(_numbers)}"
        password = canary.secret()
        server.create_database_with_owner(name, password)
        return cls(server, canary, name, name, password, server.host, server.port)

    def drop(self) -> None:
        """End the sessions of the database, and drop it and its owner."""
        with self.server.connect() as conn:
            for statement, name in (
                ("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
                ("DROP ROLE IF EXISTS {}", self.user),
            ):
                conn.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def parameters(self, **overrides: Any) -> dict[str, Any]:
        """Return what psycopg.connect and `connection_settings` take, the password included."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.name,
            "user": self.user,
            "password": self.password,
        } | overrides

    def connect(self, **overrides: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect as the owner, without pgmonkey; closed when the test ends."""
        conn = psycopg.connect(**self.parameters(**overrides))
        self._opened.append(conn)
        return conn

    def disconnect(self) -> None:
        """Close what `connect` opened."""
        while self._opened:
            self._opened.pop().close()

    def execute(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """Run one statement in this database as superuser."""
        return self.server.execute(statement, *params, dbname=self.name)

    def rotate(self) -> str:
        """Give the owner a new password on the server, and return it."""
        password = self.canary.secret()
        self.server.set_password(self.user, password)
        self.password = password
        return password

    def connection_limit(self, limit: int) -> None:
        """Limit the connections of the owner, -1 for any number."""
        self.server.execute(
            sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(sql.Identifier(self.user), limit)
        )

    def backends(self) -> list[dict[str, Any]]:
        """Return the sessions in this database, as another role sees them."""
        columns = ("pid", "application_name", "state", "query")
        rows = self.server.execute(
            f"SELECT {', '.join(columns)} FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type = 'client backend'"
            " AND application_name <> 'embedded_server' ORDER BY backend_start",
            self.name,
        )
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def terminate_backends(self) -> int:
        """End every session in this database; return how many there were."""
        rows = self.server.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type = 'client backend'"
            " AND application_name <> 'embedded_server'",
            self.name,
        )
        return len(rows)

    def assert_unused(self, timeout: float = 5.0) -> None:
        """Fail if a session stays in the database."""
        try:
            eventually(lambda: not self.server.running or not self.backends(), timeout)
        except AssertionError:
            raise AssertionError(
                f"somebody is still connected to {self.name}: {self.backends()}"
            ) from None
