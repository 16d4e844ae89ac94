"""pytest: the databases of an application in its tests. pytest finds these fixtures by itself.

# pyproject.toml
[tool.pytest.ini_options]
pgmonkey_registry = "shop.databases:registry"

# test_shop.py
def test_an_order_is_kept(pgmonkey):
    order("tea")                     # of the application; rolled back at the end of the test
    assert items() == ["tea"]
"""

from __future__ import annotations

import os
import pkgutil
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

# This module is imported in each run of pytest where pgmonkey is installed: it imports the rest of
# pgmonkey in the fixtures that need it.
if TYPE_CHECKING:
    from pgmonkey.demo.server import EmbeddedServer
    from pgmonkey.registry.registry import Registry


#: The server of a run has no TLS; with it, files may ask for certificates and ways to log in.
_WITHOUT_TLS: Final[dict[str, Any]] = {
    "sslmode": "disable",
    **dict.fromkeys(("sslrootcert", "sslcert", "sslkey", "channel_binding", "require_auth")),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare where the registry of the application is."""
    parser.addini("pgmonkey_registry", "the registry of the application, as module:attribute")


@pytest.fixture(scope="session")
def pgmonkey_registry(pytestconfig: pytest.Config) -> Registry:
    """The registry of the application: override this fixture, or set `pgmonkey_registry`."""
    from pgmonkey.registry.registry import Registry

    name = pytestconfig.getini("pgmonkey_registry")
    if not name:
        raise pytest.UsageError(
            "the tests have no registry: set pgmonkey_registry = module:attribute in the"
            " configuration of pytest, or write a fixture pgmonkey_registry that returns it"
        )
    registry = pkgutil.resolve_name(name)
    if not isinstance(registry, Registry):
        raise pytest.UsageError(f"pgmonkey_registry: {name} is a {type(registry).__name__}")
    return registry


@pytest.fixture
def pgmonkey(pgmonkey_registry: Registry) -> Iterator[Registry]:
    """The registry; whatever the test does in its databases is rolled back at its end."""
    with ExitStack() as stack:
        for name in pgmonkey_registry:
            stack.enter_context(pgmonkey_registry.override(name, rollback=True))
        yield pgmonkey_registry


@pytest.fixture(scope="session")
def pgmonkey_server(pgmonkey_registry: Registry) -> Iterator[EmbeddedServer]:
    """A PostgreSQL server for this run, to which all databases of the registry lead; each is empty."""
    from pgmonkey.demo.server import EmbeddedServer

    with EmbeddedServer() as server, ExitStack() as stack:
        for name in pgmonkey_registry:
            url = _make_database(server, name)
            override = pgmonkey_registry.override(name, url=url, **_WITHOUT_TLS)
            del url
            stack.enter_context(override)
        yield server


def _make_database(server: EmbeddedServer, name: str) -> str:
    """Make a role and a database of the same name, and return where they are."""
    password = secrets.token_urlsafe(24)
    server.create_role(name, password)
    server.create_database(name, owner=name)
    return f"postgresql://{name}:{password}@{server.host}:{server.port}/{name}"


@pytest.fixture(scope="session")
def pgmonkey_databases(pgmonkey_registry: Registry) -> Iterator[Registry]:
    """The registry, whose databases lead to new ones beside them, such as `orders_test`."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    with ExitStack() as stack:
        for name in pgmonkey_registry:
            made = stack.enter_context(_another_database(pgmonkey_registry, name, worker))
            stack.enter_context(pgmonkey_registry.override(name, dbname=made))
        yield pgmonkey_registry


@contextmanager
def _another_database(registry: Registry, name: str, worker: str) -> Iterator[str]:
    """Create a database on the server of one of the registry, and drop it afterwards."""
    from psycopg import sql

    with registry.connect(name, autocommit=True) as conn:
        made = "_".join(filter(None, [conn.info.dbname, "test", worker]))
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(made))
        conn.execute(drop)  # what an interrupted run has left
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(made)))
    try:
        yield made
    finally:
        with registry.connect(name, autocommit=True) as conn:
            conn.execute(drop)
