"""The databases of the demonstration, and the files that an operator would edit."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from pgmonkey.demo.server import EmbeddedServer
from pgmonkey.demo.workload import TABLES

_FILES: Final = Path(__file__).with_name("registry.d")


class Shop:
    """Three databases, a copy of the files that declare them, and their secrets.

    All files are in the directory of the first server, whose guard removes them even after a
    SIGKILL.

    Args:
        server: Where the databases are at first; it runs.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        self.registry = server.directory / "registry.d"
        self.secrets = server.directory / "secrets"
        self.servers = [server]
        #: The server of each database.
        self.places = dict.fromkeys(TABLES, server)

    def create(self) -> None:
        """Write the files; create a role, a database and its table for each name."""
        self.registry.mkdir()
        for path in _FILES.iterdir():
            (self.registry / path.name).write_text(path.read_text("utf-8"), encoding="utf-8")
        for name in TABLES:
            directory = self.secrets / name
            directory.mkdir(parents=True)
            _write(directory / "username", f"{name}_app")
            self.write_password(name, secrets.token_urlsafe(24))
            self._fill(name)

    def close(self) -> None:
        """Stop the servers to which databases were moved."""
        for server in self.servers[1:]:
            server.close()

    def write_password(self, name: str, password: str) -> None:
        """Replace the secret file of a database; a reader sees the old or the new one."""
        _write(self.secrets / name / "password", password)

    def rotate(self, name: str) -> None:
        """Give a role a new password: first on the server, then in its file."""
        password = secrets.token_urlsafe(24)
        self.places[name].set_password(f"{name}_app", password)
        self.write_password(name, password)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text in the file of a database."""
        path = self.registry / f"{name}.yaml"
        path.write_text(path.read_text("utf-8").replace(old, new), encoding="utf-8")

    def move(self, name: str) -> EmbeddedServer:
        """Make another server for a database, without its rows, and change its file."""
        server = EmbeddedServer()
        self.servers.append(server)
        server.start()
        self.places[name] = server
        self._fill(name)
        self.edit(name, "  dbname:", f"  port: {server.port}\n  dbname:")
        return server

    def _fill(self, name: str) -> None:
        """Create the role, the database and its table."""
        server, user = self.places[name], f"{name}_app"
        server.create_role(user, (self.secrets / name / "password").read_text("utf-8"))
        server.create_database(name, owner=user)
        with server.connect(name) as conn:
            conn.execute(f"SET ROLE {user}")
            conn.execute(TABLES[name])


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.touch(mode=0o600)
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)
