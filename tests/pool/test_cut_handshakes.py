"""Networks that fail while a connection is made with TLS: no certificate is to blame."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, Registry
from pgmonkey.pool.failures import classify
from tests.kit.database import TemporaryDatabase
from tests.kit.dictionaries import config_from_dict
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy, End
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secure_server import AUTHORITY, SecureServer
from tests.pool.side import Client, takes, works

pytestmark = pytest.mark.tls

#: Bytes between two places where the handshake is cut.
STEP = 41


@pytest.fixture
def network(secure: SecureServer, orders: TemporaryDatabase) -> Iterator[ChaosProxy]:
    """A network before the server with TLS."""
    with ChaosProxy(secure.server.host, secure.server.port) as network:
        yield network


@pytest.fixture
def trusting(network: ChaosProxy, tmp_path: Path) -> dict[str, Any]:
    """Connection settings through the network, with TLS and every check of the certificate."""
    trusted = tmp_path / "ca.crt"
    trusted.write_text(AUTHORITY.pem)
    return {
        "host": network.host,
        "port": network.port,
        "sslmode": "verify-full",
        "sslrootcert": str(trusted),
    }


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("sslmode", ["verify-full", "prefer"])
def test_a_handshake_that_is_cut_anywhere_is_refused(
    network: ChaosProxy,
    orders: TemporaryDatabase,
    trusting: dict[str, Any],
    sslmode: str,
    end: End,
) -> None:
    """After the server's `S`, inside its hello, after its certificate, before its last word.

    With `prefer` libpq tries again without TLS, which is cut too, as it takes fewer bytes.
    """
    settings = orders.parameters(**trusting | {"sslmode": sslmode})
    psycopg.connect(**settings | {"sslmode": "disable"}).close()
    plain = network.server_bytes
    psycopg.connect(**settings).close()
    total = plain if sslmode == "prefer" else network.server_bytes - plain
    config = config_from_dict({"connection_settings": {"host": network.host}})
    reasons = {}
    for after in [0, 1, 2, *range(STEP, total - STEP, STEP)]:
        network.set("cut", after=after, end=end)
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(**settings)
        failure = classify(caught.value, config)
        reasons[after] = failure.reason, failure.text
    assert {reason for reason, _ in reasons.values()} == {"refused"}, reasons


@pytest.mark.slow
@pytest.mark.parametrize("end", ["fin", "rst", "silence"])
def test_clients_succeed_soon_after_an_outage_that_cuts_handshakes(
    network: ChaosProxy,
    orders: TemporaryDatabase,
    registry_dir: RegistryDirectory,
    trusting: dict[str, Any],
    connection_type: str,
    end: End,
) -> None:
    """The network ends every handshake after the `S` for ten seconds: clients wait until it is over.

    Nothing tells them to look at certificates, and the first success comes within two seconds.
    """
    sizes = {"min_size": 1, "max_size": 2}
    registry_dir.declare(
        "orders",
        orders,
        connection_type,
        connection=trusting | {"connect_timeout": 2},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )
    with Registry(registry_dir, metrics=None) as registry:
        client = Client(registry)
        client.fill(2)
        network.set("cut", after=1, end=end)
        network.kill()
        began = time.monotonic()
        while time.monotonic() - began < 8:
            with takes(1, 1), pytest.raises(CheckoutTimeout) as caught:
                client.ask(timeout=1)
            assert caught.value.reason in (None, "timeout" if end == "silence" else "refused")
            assert "certificate" not in str(caught.value)
        answers = [client.ask_soon(timeout=20) for _ in range(10)]
        eventually(lambda: client.handle.status().waiting == 10, 5, "they wait")
        network.set("pass")
        with takes(2):
            assert [answer.result(20) for answer in answers] == [1] * 10
        assert works(client)
        assert set(client.errors()) == {"timeout"}
        client.close()
