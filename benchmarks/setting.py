"""The setting of a benchmark: a server, a directory of files, and the arguments to connect."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit.server import PostgresServer

PASSWORD = "bench-password"

TEXT = """\
connection_type: {connection_type}
connection_settings:
  host: {host}
  port: {port}
  dbname: postgres
  user: app
  password: {password}
  autocommit: {autocommit}
{more}
pool_settings: {{min_size: {low}, max_size: {high}}}
async_pool_settings: {{min_size: {low}, max_size: {high}}}
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """Be where the ways of one benchmark meet: all connect to the same server, as `app`."""

    server: PostgresServer
    directory: Path

    @property
    def arguments(self) -> dict[str, Any]:
        """Return what `psycopg.connect` takes."""
        return {
            "host": self.server.host,
            "port": self.server.port,
            "dbname": "postgres",
            "user": "app",
            "password": PASSWORD,
        }

    def declare(
        self,
        name: str,
        connection_type: str,
        *,
        size: int = 1,
        min_size: int = 1,
        port: int | None = None,
        autocommit: bool = False,
        more: str = "",
    ) -> Path:
        """Write the file of one database."""
        path = self.directory / f"{name}.yaml"
        text = TEXT.format(
            connection_type=connection_type,
            host=self.server.host,
            port=port or self.server.port,
            password=PASSWORD,
            autocommit=str(autocommit).lower(),
            low=min_size,
            high=size,
            more=more,
        )
        new = path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)
        return path


@contextmanager
def setting(**settings: str) -> Iterator[Setting]:
    """Give a server with a role, and an empty directory.

    Args:
        settings: Lines of `postgresql.conf`.
    """
    with PostgresServer(settings=settings) as server, tempfile.TemporaryDirectory() as name:
        server.create_role("app", PASSWORD)
        yield Setting(server, Path(name))
