"""A PostgreSQL server with TLS."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kit.certificates import Authority
from tests.kit.components import postgres_with_tls
from tests.kit.eventually import eventually
from tests.kit.server import PostgresServer

AUTHORITY = Authority("the authority that clients trust")


@dataclass
class SecureServer:
    """A server with TLS, whose certificate can be replaced while it runs."""

    server: PostgresServer
    directory: Path

    def present(
        self, authority: Authority, *, common_name: str | None = None, days: int = 30
    ) -> None:
        """Let the server show a certificate of this authority from now on."""
        name = common_name or self.server.host
        self._install(authority.issue(name, self.directory, days=days))

    def trust(self, authority: Authority) -> None:
        """Let the server accept client certificates of this authority."""
        path = self.directory / "clients.crt"
        path.write_text(authority.pem)
        self._install((path,))

    def _install(self, paths: tuple[Path, ...]) -> None:
        data = self.server.data_directory
        owner = data.stat()
        for path in paths:
            target = data / path.name
            temporary = data / f"new_{path.name}"
            shutil.copyfile(path, temporary)
            temporary.chmod(0o600)
            shutil.chown(temporary, owner.st_uid, owner.st_gid)
            temporary.replace(target)
        self.server.reload()


@contextmanager
def secure_server(authority: Authority, directory: Path) -> Iterator[SecureServer]:
    """Run a server whose certificate, and those of its clients, are of an authority.

    Args:
        authority: The authority.
        directory: Where certificates are made.
    """
    directory.mkdir()
    with PostgresServer(binaries=postgres_with_tls()) as server:
        secure = SecureServer(server, directory)
        secure.present(authority)
        secure.trust(authority)
        for setting, value in (
            ("ssl_cert_file", "server.crt"),
            ("ssl_key_file", "server.key"),
            ("ssl_ca_file", "clients.crt"),
            ("ssl", "on"),
        ):
            server.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
        server.reload()
        eventually(lambda: server.execute("SHOW ssl") == [("on",)], 5, "TLS is on")
        yield secure
