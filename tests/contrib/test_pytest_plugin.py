"""pgmonkey.contrib.pytest: suites of an application, as the documentation has them, run by pytest."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient
from flask import Flask
from psycopg import sql

from pgmonkey import Registry
from pgmonkey.contrib.flask import connection, init_app
from tests.contrib.test_fastapi import shop
from tests.docs.snippets import ROOT
from tests.kit import Canary, TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.recipes.recipe import recipe

TESTS = """
import pytest
from shop import items, order, orders, registry

@pytest.mark.parametrize("number", range(2))
def test_an_order_is_kept_until_the_test_ends(pgmonkey, number):
    assert pgmonkey is registry
    assert items() == []
    order("tea")
    assert items() == ["tea"]

@pytest.mark.anyio
@pytest.mark.parametrize("number", range(2))
async def test_on_the_loop_of_a_plugin(pgmonkey, number):
    async with pgmonkey.get("orders", "async_pool") as conn:
        await conn.execute("INSERT INTO orders (item) VALUES ('tea')")
    async with pgmonkey.get("orders", "async_pool").cursor() as cursor:
        await cursor.execute("SELECT item FROM orders")
        assert await cursor.fetchall() == [("tea",)]

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
TABLE = "CREATE TABLE public.orders (id serial, item text UNIQUE)"
COUNT = "SELECT count(*) FROM orders"
HEADING = "Fixtures for pytest"
CONFTEST = recipe("testing", HEADING, number=1)
SAY = """        print("in", conn.info.dbname, conn.info.host)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """The application of the documentation, with its tests and some more."""
    pytester.makepyprojecttoml(recipe("testing", HEADING, language="toml"))
    pytester.makepyfile(
        shop=recipe("testing", "Every test is rolled back", number=1),
        test_fixtures=recipe("testing", HEADING),
        test_shop=TESTS,
    )
    return pytester


@pytest.fixture
def registry_dir(suite: pytest.Pytester) -> RegistryDirectory:
    """The directory where the application looks for its registry."""
    return RegistryDirectory(suite.path / "registry.d")


def run(suite: pytest.Pytester, canary: Canary) -> str:
    """Run the suite in this process, where it finds the plugin by itself, and return what it said."""
    suite.syspathinsert()
    with importlib.import_module("shop").registry:
        done = suite.runpytest_inprocess("-q", "-s", "-pno:randomly", "-pno:cacheprovider")
    said = done.stdout.str() + done.stderr.str()
    canary.check(said)
    assert done.parseoutcomes() == {"passed": 6}, said
    return said


def test_each_test_is_rolled_back(
    suite: pytest.Pytester,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
) -> None:
    """Tests that share a database find it empty, and a database that none of them uses may be down."""
    database.execute(TABLE)
    database.execute(f'GRANT ALL ON orders, orders_id_seq TO "{database.user}"')
    registry_dir.declare("orders", database)
    registry_dir.declare("unreachable", database, connection={"port": 1})

    run(suite, canary)

    assert database.execute(COUNT) == [(0,)]


def test_another_database_is_made_for_the_run(
    suite: pytest.Pytester,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each worker of xdist makes one beside that of the file, replaces what a run left, and leaves none."""
    database.execute(sql.SQL("ALTER ROLE {} CREATEDB").format(sql.Identifier(database.user)))
    registry_dir.declare("orders", database)
    suite.makeconftest(CONFTEST.replace("pgmonkey_server", "pgmonkey_databases") + SAY)
    made = f"{database.name}_test_gw7"
    database.server.create_database(made, owner=database.user)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw7")

    said = run(suite, canary)

    assert f"in {made} " in said
    assert database.execute("SELECT count(*) FROM pg_database WHERE datname = %s", made) == [(0,)]
    assert database.execute("SELECT to_regclass('orders') IS NULL") == [(True,)]


def test_a_server_is_started_for_those_who_have_none(
    suite: pytest.Pytester, registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """Databases of a server of production, with TLS, lead to the server of the run, which ends with it."""
    text = (
        "connection_settings: {host: db.invalid, dbname: shop, user: app, password: "
        f"{canary.secret()}, sslmode: verify-full, sslrootcert: system, channel_binding: require,"
        " target_session_attrs: standby}\nconnection_type: pool\n"
    )
    for name in ("orders", "events-of-2026"):
        registry_dir.write(name, text)
    suite.makeconftest(CONFTEST + SAY)

    assert "in orders 127.0.0.1" in run(suite, canary)


def test_requests_of_fastapi_and_flask_are_rolled_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The next request of a test sees what the last one did; the next test does not."""
    database.execute("CREATE TABLE public.orders (total int)")
    database.execute(f'GRANT ALL ON orders TO "{database.user}"')
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None) as registry:
        flask = Flask("shop")
        init_app(flask, registry)
        flask.get("/")(lambda: str(connection("orders").execute(COUNT).fetchone()))
        for _ in range(2):
            with registry.override("orders", rollback=True):
                with TestClient(shop(registry)) as client:
                    for path in ("/orders", "/orders/sync"):
                        assert client.post(path, params={"total": 1}).status_code == 200
                    assert flask.test_client().get("/").text == "(1,)", "as /orders/sync has a pool"
    assert database.execute(COUNT) == [(0,)]


def test_a_suite_without_a_registry_is_told_what_to_write(pytester: pytest.Pytester) -> None:
    """The error names the setting, and the fixture that can take its place."""
    pytester.makepyfile("def test_shop(pgmonkey): pass")
    said = pytester.runpytest_inprocess().stdout.str()
    assert "set pgmonkey_registry = module:attribute" in said
    pytester.makeini("[pytest]\npgmonkey_registry = os:sep")
    assert "os:sep is a str" in pytester.runpytest_inprocess().stdout.str()


def test_the_plugin_imports_nothing_but_pytest() -> None:
    """Each run of pytest where pgmonkey is installed imports it, and nothing heavy with it."""
    heavy = {"psycopg", "psycopg_pool", "pydantic", "structlog", "prometheus_client"}
    check = f"import sys, pgmonkey.contrib.pytest\nprint(*({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "\n"
