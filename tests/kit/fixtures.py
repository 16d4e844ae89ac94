"""The fixtures of the test kit."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
import structlog

from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.leaks import LeakPlugin, session_servers_key
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secret_volume import SecretVolume
from tests.kit.secure_server import AUTHORITY, SecureServer, secure_server
from tests.kit.server import PostgresServer

T = TypeVar("T")


class Share(Protocol):
    """Make a context whose threads and child processes may outlive the test that enters it."""

    def __call__(self, make: Callable[[], AbstractContextManager[T]]) -> AbstractContextManager[T]:
        """Return the context, to be entered."""


@pytest.fixture(scope="session")
def share(pytestconfig: pytest.Config) -> Share:
    """What a fixture of a module or a session enters its browser or its service with."""
    plugin = pytestconfig.pluginmanager.get_plugin("pgmonkey-leaks")
    assert isinstance(plugin, LeakPlugin)
    return plugin.shared


@pytest.fixture(scope="session")
def session_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The PostgreSQL of the whole session. Tests ask for `server`."""
    settings = {"max_connections": "200", "max_prepared_transactions": "10"}
    with PostgresServer(settings=settings) as server:
        pytestconfig.stash[session_servers_key].append(server)
        yield server


@pytest.fixture
def server(session_server: PostgresServer) -> Iterator[PostgresServer]:
    """The session's PostgreSQL, running again after a test that stopped it."""
    session_server.start()
    yield session_server
    session_server.start()


@pytest.fixture
def database(server: PostgresServer, canary: Canary) -> Iterator[TemporaryDatabase]:
    """A new database and its owner; no session may be left in it after the test."""
    database = TemporaryDatabase.create(server, canary)
    yield database
    database.disconnect()
    server.start()
    try:
        database.assert_unused()
    finally:
        database.drop()


@pytest.fixture(scope="module")
def module_database(session_server: PostgresServer, canary: Canary) -> Iterator[TemporaryDatabase]:
    """One database for all tests of a module."""
    database = TemporaryDatabase.create(session_server, canary)
    yield database
    session_server.start()
    database.drop()


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[SecureServer]:
    """A server with TLS, for the tests of one module."""
    with secure_server(AUTHORITY, tmp_path_factory.mktemp("tls") / "certificates") as secure:
        pytestconfig.stash[session_servers_key].append(secure.server)
        yield secure
        pytestconfig.stash[session_servers_key].remove(secure.server)


@pytest.fixture
def shared_database(
    server: PostgresServer, module_database: TemporaryDatabase
) -> Iterator[TemporaryDatabase]:
    """The database of this module; no session may be left in it after a test."""
    yield module_database
    module_database.disconnect()
    server.start()
    module_database.assert_unused()


@pytest.fixture
def proxy(server: PostgresServer, database: TemporaryDatabase) -> Iterator[ChaosProxy]:
    """A network before the server that fails on demand; closed before the database is checked."""
    with ChaosProxy(server.host, server.port) as proxy:
        yield proxy


@pytest.fixture
def volume(tmp_path: Path) -> SecretVolume:
    """An empty Kubernetes secret volume."""
    return SecretVolume(tmp_path / "secrets")


@pytest.fixture
def registry_dir(tmp_path: Path) -> RegistryDirectory:
    """An empty registry directory."""
    return RegistryDirectory(tmp_path / "registry.d")


@pytest.fixture(params=["asyncio", "uvloop"])
def each_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loops of the test are those of asyncio, then those of uvloop."""
    if request.param == "uvloop":
        import uvloop

        monkeypatch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)
        monkeypatch.setattr(asyncio.events, "new_event_loop", uvloop.new_event_loop)
        with asyncio.Runner() as runner:
            assert isinstance(runner.get_loop(), uvloop.Loop)


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """An empty directory that other users may look into; what pytest makes is for one user."""
    with tempfile.TemporaryDirectory(prefix="pgmonkey-public-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@pytest.fixture
def events() -> Iterator[CapturedEvents]:
    """The structlog events of this test, instead of the log."""
    captured = CapturedEvents()
    structlog.configure(
        processors=[captured.processor, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    yield captured
    structlog.reset_defaults()


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test that goes through the proxy, and every one that needs no server."""
    fixtures = getattr(item, "fixturenames", ())
    if "proxy" in fixtures:
        item.add_marker(pytest.mark.proxy)
    if "session_server" not in fixtures:
        item.add_marker(pytest.mark.serverless)
