"""pgmonkey.contrib.pytest: suites of an application, run by pytest as its users run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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

INI = """
[pytest]
pgmonkey_registry = shop:registry
"""
SHOP = """
from pgmonkey import Registry

registry = Registry({directory!r}, metrics=None)
orders = registry.get("orders")

def order(item):
    with orders as conn:
        conn.execute("INSERT INTO orders (item) VALUES (%s)", [item])

def items():
    with orders as conn:
        return [item for (item,) in conn.execute("SELECT item FROM orders ORDER BY item")]
"""
TESTS = """
import asyncio
import pytest
from shop import items, order, orders, registry

@pytest.mark.parametrize("number", range(5))
def test_an_order_is_kept_until_the_test_ends(pgmonkey, number):
    assert pgmonkey is registry
    assert items() == []
    order("tea")
    assert items() == ["tea"]

@pytest.mark.anyio
@pytest.mark.parametrize("number", range(5))
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
COUNT = "SELECT count(*) FROM orders"
HEADING = "Fixtures for pytest"
SAY = """        print("in", conn.info.dbname, conn.info.host)
"""


#: Plugins of this environment that take longer to import than a suite runs.
OTHERS = [f"-pno:{name}" for name in ("randomly", "hypothesispytest", "playwright", "xdist")]


def run(directory: Path, canary: Canary, **environ: str) -> str:
    """Run the suite of a directory, which finds the plugin by itself, and return what pytest said."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-s",
            "--durations=9",
            "-p",
            "no:randomly",
            "-p",
            "no:cacheprovider",
        ],
        cwd=directory,
        env={"PATH": os.defpath, "PYTHONPATH": f"{ROOT}:{directory}", **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    canary.check(done.stdout + done.stderr)
    assert "warning" not in done.stdout
    return done.stdout + done.stderr


@pytest.fixture
def suite(tmp_path: Path, registry_dir: RegistryDirectory) -> Path:
    """A directory with an application and its tests."""
    directory = tmp_path / "suite"
    directory.mkdir()
    (directory / "pytest.ini").write_text(INI)
    (directory / "shop.py").write_text(SHOP.format(directory=str(registry_dir)))
    (directory / "test_shop.py").write_text(TESTS)
    (directory / "test_fixtures.py").write_text(recipe("testing", HEADING))
    return directory


def test_each_test_is_rolled_back(
    suite: Path, registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Tests that share a database find it empty, whichever way they use; no session is left."""
    database.execute("CREATE TABLE public.orders (item text UNIQUE)")
    database.execute(f'GRANT ALL ON orders TO "{database.user}"')
    registry_dir.declare("orders", database)
    registry_dir.declare("unreachable", database, connection={"port": 1})

    said = run(suite, canary)

    assert "12 passed" in said, said
    assert database.execute("SELECT count(*) FROM orders") == [(0,)]
    assert not database.backends()


def test_another_database_is_made_for_the_run(
    suite: Path, registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Beside that of the file, one for each worker of xdist; what a run left is replaced, and none stays."""
    database.execute(sql.SQL("ALTER ROLE {} CREATEDB").format(sql.Identifier(database.user)))
    registry_dir.declare("orders", database)
    conftest = recipe("testing", HEADING, number=1)
    conftest = conftest.replace("pgmonkey_server", "pgmonkey_databases")
    (suite / "conftest.py").write_text(conftest + SAY)
    made = f"{database.name}_test_gw7"
    database.server.create_database(made, owner=database.user)

    said = run(suite, canary, PYTEST_XDIST_WORKER="gw7")

    assert "12 passed" in said, said
    assert f"in {made} " in said
    assert database.execute("SELECT count(*) FROM pg_database WHERE datname = %s", made) == [(0,)]
    assert database.execute("SELECT to_regclass('orders') IS NULL") == [(True,)]


def test_a_server_is_started_for_those_who_have_none(
    suite: Path, registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """Files that lead to a server of production, with TLS, lead to the one of the run; it ends with it."""
    text = (
        "connection_settings: {host: db.invalid, dbname: shop, user: app, password: "
        f"{canary.secret()}, sslmode: verify-full, sslrootcert: system, channel_binding: require,"
        " target_session_attrs: standby}\nconnection_type: pool\n"
    )
    for name in ("orders", "events-of-2026"):
        registry_dir.write(name, text)
    (suite / "conftest.py").write_text(recipe("testing", HEADING, number=1) + SAY)

    said = run(suite, canary)

    assert "12 passed" in said, said
    assert "in orders 127.0.0.1" in said


def test_requests_of_fastapi_and_flask_are_rolled_back(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """What requests did is there for the next request of the test, and gone after it."""
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
    """It is imported in each run of pytest where pgmonkey is installed."""
    heavy = {"psycopg", "psycopg_pool", "pydantic", "structlog", "prometheus_client"}
    check = f"import sys, pgmonkey.contrib.pytest\nprint(*({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "\n"
