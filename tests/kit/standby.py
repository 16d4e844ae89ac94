"""A streaming standby of a test's server."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.kit.server import PostgresServer


class Standby(PostgresServer):
    """Follow a primary, and become one on `promote`.

    Args:
        primary: A server that runs.
    """

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        self._primary = primary
        self.superuser_password = primary.superuser_password

    def _make_cluster(self) -> None:
        super()._make_cluster()
        shutil.rmtree(self.data_directory)
        passfile = self.directory / "passfile"
        passfile.touch(mode=0o600)
        passfile.write_text(f"*:*:*:*:{self.superuser_password}\n", encoding="utf-8")
        self._programs.give(passfile)
        conninfo = self._conninfo(passfile)
        self._programs.run(
            "pg_basebackup",
            f"--dbname={conninfo}",
            f"--pgdata={self.data_directory}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
            cwd=self.directory,
        )
        signal_file = self.data_directory / "standby.signal"
        signal_file.touch()
        self._programs.give(signal_file)
        self._settings["primary_conninfo"] = conninfo

    def _conninfo(self, passfile: Path) -> str:
        return (
            f"host={self._primary.host} port={self._primary.port}"
            f" user={self.superuser} passfile={passfile}"
        )

    def promote(self) -> None:
        """Become a primary; returns when it is one."""
        assert self.execute("SELECT pg_promote(true, 30)") == [(True,)]
