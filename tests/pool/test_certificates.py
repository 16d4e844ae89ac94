"""Certificates that a server shows: one that cannot be trusted is the first error, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgmonkey import ConnectError, Registry
from tests.kit.canary import Canary
from tests.kit.certificates import Authority
from tests.kit.components import postgres_with_tls
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.leaks import session_servers_key
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secure_server import SecureServer
from tests.kit.server import PostgresServer
from tests.pool.side import Client, takes, works

pytestmark = pytest.mark.tls

AUTHORITY = Authority("the authority that clients trust")


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[SecureServer]:
    """A server with TLS, for the tests of this module."""
    with PostgresServer(binaries=postgres_with_tls()) as server:
        pytestconfig.stash[session_servers_key].append(server)
        secure = SecureServer(server, tmp_path_factory.mktemp("certificates"))
        secure.present(AUTHORITY)
        for setting, value in (
            ("ssl_cert_file", "server.crt"),
            ("ssl_key_file", "server.key"),
            ("ssl", "on"),
        ):
            server.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
        server.reload()
        eventually(lambda: server.execute("SHOW ssl") == [("on",)], 5, "TLS is on")
        yield secure
        pytestconfig.stash[session_servers_key].remove(server)


@pytest.fixture
def orders(secure: SecureServer, canary: Canary) -> Iterator[TemporaryDatabase]:
    """A database of the server with TLS."""
    database = TemporaryDatabase.create(secure.server, canary)
    yield database
    database.disconnect()
    database.assert_unused()
    database.drop()


@pytest.mark.parametrize(
    "fault, says",
    [
        ("expired", "certificate verify failed"),
        ("of another authority", "certificate verify failed"),
        ("for another name", "does not match host name"),
    ],
)
def test_a_certificate_that_cannot_be_trusted_is_the_first_error_and_heals_by_itself(
    secure: SecureServer,
    orders: TemporaryDatabase,
    registry_dir: RegistryDirectory,
    tmp_path: Path,
    connection_type: str,
    fault: str,
    says: str,
) -> None:
    """Open sessions serve on; a new one fails at once with `tls`; a good certificate mends it."""
    trusted = tmp_path / "ca.crt"
    trusted.write_text(AUTHORITY.pem)
    files = {"sslmode": "verify-full", "sslrootcert": str(trusted)}
    one = {"min_size": 1, "max_size": 1}
    registry_dir.declare(
        "orders",
        orders,
        connection_type,
        connection=files,
        pool_settings=one,
        async_pool_settings=one,
    )

    def is_refused() -> bool:
        try:
            orders.connect(**files).close()
        except psycopg.OperationalError:
            return True
        return False

    with Registry(registry_dir, metrics=None) as registry:
        client = Client(registry)
        before = client.fill(1)
        try:
            if fault == "expired":
                secure.present(AUTHORITY, days=-1)
            elif fault == "for another name":
                secure.present(AUTHORITY, common_name="db.example")
            else:
                secure.present(Authority("nobody that clients know"))
            eventually(is_refused, 10, "the server shows it")
            assert client.fill(1) == before
            orders.terminate_backends()

            with takes(2), pytest.raises(ConnectError) as caught:
                client.ask(timeout=20)
            assert caught.value.reason == "tls"
            assert says in str(caught.value)
            assert "check sslmode and the certificate files" in str(caught.value)
        finally:
            secure.present(AUTHORITY)
        eventually(lambda: not is_refused(), 10, "the server shows the good one")
        eventually(
            lambda: client.handle.status().idle == 1, 20, "it is tried again without a client"
        )
        assert works(client)
        client.close()
