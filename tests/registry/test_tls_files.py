"""TLS files: their content is part of the configuration, whatever their names do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from cryptography import x509

from pgmonkey import Registry
from tests.kit.canary import Canary
from tests.kit.certificates import Authority
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secure_server import SecureServer, secure_server
from tests.pool.side import SIDES, Client

pytestmark = pytest.mark.tls


@pytest.fixture
def authority() -> Authority:
    """The authority that has signed the server's first certificate."""
    return Authority("first authority")


@pytest.fixture
def secure(tmp_path: Path, authority: Authority) -> Iterator[SecureServer]:
    """A running server with TLS."""
    with secure_server(authority, tmp_path / "certificates") as secure:
        yield secure


@pytest.fixture
def orders(secure: SecureServer, canary: Canary) -> Iterator[TemporaryDatabase]:
    """A database of the server with TLS."""
    database = TemporaryDatabase.create(secure.server, canary)
    yield database
    database.disconnect()
    database.assert_unused()


def declare(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str = "pool",
    **files: str,
) -> None:
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={"sslmode": "verify-full", **files},
        pool_settings={"min_size": 1, "max_size": 3},
    )


def session(registry: Registry) -> Any:
    """Return the backend of a checkout that starts now, and the serial of its client certificate."""
    with registry.get("orders").connection(timeout=5) as connection:
        return connection.execute(
            "SELECT pid, client_serial::text FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl"
        ).fetchone()


def accepts(probe: Callable[[], object]) -> bool:
    try:
        probe()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("connection_type", SIDES)
def test_a_new_authority_in_the_same_file_is_a_rotation(
    registry_dir: RegistryDirectory,
    secure: SecureServer,
    orders: TemporaryDatabase,
    authority: Authority,
    events: CapturedEvents,
    tmp_path: Path,
    connection_type: str,
) -> None:
    """The server moves to another authority, the bundle is extended: nothing fails in between."""
    bundle = tmp_path / "trusted" / "ca.crt"
    bundle.parent.mkdir()
    bundle.write_text(authority.pem)
    declare(registry_dir, orders, connection_type, sslrootcert=str(bundle))
    second = Authority("second authority")
    numbers = prometheus_client.CollectorRegistry()

    def version() -> float | None:
        return numbers.get_sample_value("pgmonkey_config_version", {"database": "orders"})

    with Registry(registry_dir, metrics=numbers) as registry, closing(Client(registry)) as client:

        def backend() -> Any:
            return client.ask("SELECT pid FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl")

        first = backend()
        assert first is not None
        events.wait("watch.started")
        secure.present(second)
        eventually(
            lambda: (
                not accepts(
                    lambda: orders.connect(sslmode="verify-full", sslrootcert=str(bundle)).close()
                )
            ),
            5,
            "the old bundle does not do any more",
        )
        assert backend() == first, "the session that is there goes on"
        assert version() == 1

        extended = bundle.with_name("new")
        extended.write_text(authority.pem + second.pem)
        extended.replace(bundle)
        applied = events.wait("config.applied", database="orders", timeout=10)
        assert applied["changed"] == ["connection_settings.sslrootcert"]
        assert backend() != first
        events.wait("database.rotated", old=1, new=2)
        assert version() == 2


@pytest.mark.parametrize(
    "bad, code", [("garbage", "rejected"), ("another authority", "probe.tls"), ("gone", "rejected")]
)
def test_a_bundle_that_goes_bad_is_rejected_and_the_sessions_go_on(
    registry_dir: RegistryDirectory,
    secure: SecureServer,
    orders: TemporaryDatabase,
    authority: Authority,
    events: CapturedEvents,
    tmp_path: Path,
    bad: str,
    code: str,
) -> None:
    """No certificate in the file, the wrong one, no file: stale, with the reason; then mended."""
    bundle = tmp_path / "trusted" / "ca.crt"
    bundle.parent.mkdir()
    bundle.write_text(authority.pem)
    declare(registry_dir, orders, sslrootcert=str(bundle))
    with Registry(registry_dir, metrics=None, removal_delay=0.3) as registry:
        first = session(registry)
        events.wait("watch.started")
        if bad == "gone":
            bundle.unlink()
        else:
            bundle.write_text("garbage" if bad == "garbage" else Authority("another").pem)
        rejected = events.wait("config.rejected", database="orders", timeout=10)
        if code != "rejected":
            assert rejected["code"] == code
        status = registry.status().databases[0]
        assert status.state == "stale"
        assert "cert" in str(status.problems[0]).lower()
        assert session(registry) == first

        bundle.write_text(authority.pem)
        eventually(lambda: registry.status().databases[0].state == "ready", 10, "it is mended")
        assert session(registry) is not None


def test_a_new_client_certificate_is_shown_by_the_next_checkout(
    registry_dir: RegistryDirectory,
    secure: SecureServer,
    orders: TemporaryDatabase,
    authority: Authority,
    events: CapturedEvents,
    tmp_path: Path,
) -> None:
    """cert-manager renews certificate and key under the same names: a rotation, by content."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "ca.crt").write_text(authority.pem)
    certificate, key = authority.issue(orders.user, own, name="client")
    declare(
        registry_dir,
        orders,
        sslrootcert=str(own / "ca.crt"),
        sslcert=str(certificate),
        sslkey=str(key),
    )

    def serial() -> str:
        return str(x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number)

    with Registry(registry_dir, metrics=None) as registry:
        first = session(registry)
        assert first[1] == serial()
        events.wait("watch.started")
        authority.issue(orders.user, own, name="client")
        eventually(lambda: session(registry)[1] == serial(), 10, "the new one is in use")
        assert first[1] != serial()
        # The rotation is seen by a checkout a moment before it is reported.
        eventually(
            lambda: (
                {"connection_settings.sslcert", "connection_settings.sslkey"}
                <= {key for event in events.named("config.applied") for key in event["changed"]}
            ),
            10,
            "both files are named as changed",
        )
