"""Certificates that a server shows: one that cannot be trusted is the first error, and says why."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from pgmonkey import ConnectError, Registry
from tests.kit.certificates import Authority
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secure_server import AUTHORITY, SecureServer
from tests.pool.side import Client, takes, works

pytestmark = pytest.mark.tls


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
