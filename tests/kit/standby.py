"""A streaming standby of a test's server."""

from __future__ import annotations

import shutil
from pathlib import Path

from pgmonkey.embedded_server import EmbeddedServer


class Standby(EmbeddedServer):
    """Follow a primary, and become one on `promote`.

    Args:
        primary: A server that runs.
    """

    def __init__(self, primary: EmbeddedServer) -> None:
        super().__init__()
        self._primary = primary
        self.superuser_password = primary.superuser_password

    def _make_cluster(self) -> None:
        super()._make_cluster()
        shutil.rmtree(self.data_directory)
        passfile = self.directory / "passfile"
        passfile.touch(mode=0o600)
        passfile.write_text(f"*:*:*:*:{self.superuser_password}\n", encoding="utf-8")
        self._give(passfile)
        conninfo = self._conninfo(passfile)
        self._run(
            "pg_basebackup",
            f"--dbname={conninfo}",
            f"--pgdata={self.data_directory}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        )
        signal_file = self.data_directory / "standby.signal"
        signal_file.touch()
        self._give(signal_file)
        self._settings["primary_conninfo"] = conninfo

    def _conninfo(self, passfile: Path) -> str:
        return (
            f"host={self._primary.host} port={self._primary.port}"
            f" user={self.superuser} passfile={passfile}"
        )

    def _accepts(self, pid: int) -> bool:
        try:
            lock = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        lines = [line.strip() for line in lock.splitlines()]
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7] in ("standby", "ready")

    def promote(self) -> None:
        """Become a primary; returns when it is one."""
        assert self.execute("SELECT pg_promote(true, 30)") == [(True,)]
