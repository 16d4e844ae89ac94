"""The place where snippets run: a registry directory, its secrets, and real databases behind them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from psycopg import sql

from pgmonkey.demo.workload import TABLES
from tests.docs.snippets import ROOT
from tests.kit import Canary
from tests.kit.secret_volume import SecretVolume
from tests.kit.server import PostgresServer


class Environment:
    """The `registry.d` of the demonstration, with the databases that it declares on the test server.

    Attributes:
        directory: The working directory of the snippets; it has `registry.d`, and the one file of a
            program that was written for pgmonkey 4.0.
        variables: What is set in the environment.
    """

    def __init__(self, directory: Path, server: PostgresServer, canary: Canary) -> None:
        self.directory = directory
        self._server = server
        self._canary = canary
        self._secrets = directory / "secrets"
        shutil.copytree(ROOT / "pgmonkey" / "demo" / "registry.d", directory / "registry.d")
        (directory / ".env").write_text("# for development\nORDERS_LOG=debug\n", encoding="utf-8")
        self.variables = {
            "PGMONKEY_DEMO_HOST": server.host,
            "PGMONKEY_DEMO_PORT": str(server.port),
            "PGMONKEY_DEMO_SECRETS": str(self._secrets),
        }

    @contextmanager
    def databases(self) -> Iterator[None]:
        """Make the roles, databases and tables, and remove them afterwards."""
        try:
            for name, table in TABLES.items():
                user, password = f"{name}_app", self._canary.secret()
                self._server.create_role(user, password)
                self._server.create_database(name, owner=user)
                with self._server.connect(name) as conn:
                    conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(user)))
                    conn.execute(table)
                volume = SecretVolume(self._secrets / name)
                volume.write({"username": user, "password": password})
                if name == "orders":
                    self._write_config(name, user, password)
            yield
        finally:
            for name in TABLES:
                self._server.drop_database(name)
                self._server.drop_role(f"{name}_app")

    def _write_config(self, name: str, user: str, password: str) -> None:
        """Write the one file that a program of pgmonkey 4.0 has."""
        settings = {
            "host": self._server.host,
            "port": self._server.port,
            "dbname": name,
            "user": user,
            "password": password,
        }
        text = yaml.safe_dump({"connection_type": "pool", "connection_settings": settings})
        (self.directory / "config.yaml").write_text(text, encoding="utf-8")

    def shell_variables(self) -> dict[str, str]:
        """Return the environment of a shell in which `pgmonkey` is this very code."""
        path = os.pathsep.join(
            [str(shim(self.directory)), str(Path(sys.executable).parent), os.defpath]
        )
        return {
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.directory),
            **self.variables,
        }


def shim(directory: Path) -> Path:
    """Return a directory whose program `pgmonkey` is this very code."""
    programs = directory / ".bin"
    programs.mkdir(exist_ok=True)
    program = programs / "pgmonkey"
    program.write_text(
        f"#!{sys.executable}\nfrom pgmonkey.cli.app import main\nmain()\n", encoding="utf-8"
    )
    program.chmod(0o755)
    return programs
