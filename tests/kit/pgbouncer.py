"""A real PgBouncer before a server of the tests, from the distribution's package, or `$PGBOUNCER`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from tests.kit.canary import Canary
from tests.kit.components import need
from tests.kit.database import TemporaryDatabase
from tests.kit.ports import free_port
from tests.kit.process import Process

# PgBouncer refuses to run as root.
_ACCOUNT = "nobody"
_ADMINISTRATOR = "administrator"


def program() -> str:
    """Return the program of PgBouncer."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    found = shutil.which(os.environ.get("PGBOUNCER", "pgbouncer"), path=path)
    return need(found, "PgBouncer (.ci/install-servers)")


def version() -> tuple[int, int]:
    """Return the version of PgBouncer: (1, 18)."""
    command = [program(), "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.match(r"PgBouncer (\d+)\.(\d+)", output)
    assert match is not None, output
    return int(match[1]), int(match[2])


class PgBouncer(Process):
    """Run PgBouncer on loopback, before one database; gone without a trace afterwards.

    Args:
        database: What it leads to. It knows the password of the owner, and logs in with it.
        canary: Makes the password of its own console.
        settings: Lines of its `[pgbouncer]` section.
        databases: Its section `[databases]`, instead of one with this database under its name.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        database: TemporaryDatabase,
        canary: Canary,
        settings: Mapping[str, object],
        databases: str | None = None,
    ) -> None:
        self.port = free_port()
        self._databases = databases or (
            "[databases]\n"
            f"{database.name} = host={database.host} port={database.port} dbname={database.name}"
        )
        self._password = canary.secret()
        self._passwords = {database.user: database.password}
        self._writings = 0
        self._directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self._settings: Mapping[str, object] = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self._directory / "users.txt",
            "admin_users": _ADMINISTRATOR,
            "pool_mode": "transaction",
            **settings,
        }
        self._write()
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            account["user"] = _ACCOUNT
            for its in (self._directory, *self._directory.iterdir()):
                shutil.chown(its, _ACCOUNT)
        super().__init__(
            [program(), str(self._directory / "pgbouncer.ini")], canary=canary, **account
        )
        self.wait_until(self._listens, 10, "PgBouncer listens")

    def __exit__(self, *exception: object) -> None:
        self.send(signal.SIGINT)
        super().__exit__(*exception)
        shutil.rmtree(self._directory)

    @property
    def address(self) -> dict[str, Any]:
        """Its host and port, as `connection_settings` take them."""
        return {"host": self.host, "port": self.port}

    def learn(self, user: str, password: str) -> None:
        """Let it accept this password of a user from now on, and log in at the server with it."""
        self._passwords[user] = password
        self._write()
        self.tell("RELOAD")

    def tell(self, command: str) -> list[dict[str, Any]]:
        """Run one command in its console, and return the rows."""
        with psycopg.connect(
            host=self.host,
            port=self.port,
            dbname="pgbouncer",
            user=_ADMINISTRATOR,
            password=self._password,
            autocommit=True,
            cursor_factory=psycopg.ClientCursor,
        ) as connection:
            cursor = connection.execute(command)
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _write(self) -> None:
        self._writings += 1
        lines = [
            self._databases,
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in self._settings.items()),
        ]
        users = self._passwords | {_ADMINISTRATOR: self._password}
        for name, text in {
            "pgbouncer.ini": "\n".join(lines),
            # It reads the file again if time, in seconds, or size have changed.
            "users.txt": "".join(f'"{user}" "{users[user]}"\n' for user in users)
            + "\n" * self._writings,
        }.items():
            (self._directory / name).write_text(text, encoding="utf-8")

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex((self.host, self.port)) == 0
