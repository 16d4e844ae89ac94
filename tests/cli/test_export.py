"""`pgmonkey export`: the programs that the files are for read them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.cli.page import is_documented
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase, need
from tests.kit.command import environment, invoke
from tests.kit.pgbouncer import PgBouncer

SHOP = {
    "_defaults": "connection_settings: {host: db-1.internal, sslmode: require}\n",
    "orders": """\
connection_type: pool
connection_settings: {dbname: orders, user: orders_app, password: "${ORDERS_PASSWORD}"}
sync_settings: {statement_timeout: 30s}
""",
    "events": """\
connection_type: async_pool
connection_settings: {port: 5433, dbname: events, user: events_app, password: {from_file: secrets/password}}
""",
}


@pytest.fixture
def shop(tmp_path: Path, canary: Canary) -> Path:
    """A registry with two databases whose passwords are elsewhere."""
    directory = tmp_path / "registry.d"
    (directory / "secrets").mkdir(parents=True)
    (directory / "secrets" / "password").write_text(canary.secret())
    for name, text in SHOP.items():
        (directory / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("form", ["pgbouncer", "pg_service", "env --name orders"])
def test_the_files_of_the_page(form: str, shop: Path, canary: Canary) -> None:
    """The page shows what the command prints; no secret is in it."""
    env = {"ORDERS_PASSWORD": canary.secret()}
    done = invoke("export", *form.split(), canary=canary, cwd=shop, env=env)
    assert (done.code, done.err) == (0, "")
    is_documented(done.out)


def test_compose_accepts_the_file(shop: Path, canary: Canary) -> None:
    """It is valid by the schema of Compose; the variable and the directory are in it."""
    env = {"ORDERS_PASSWORD": canary.secret()}
    done = invoke("export", "compose", canary=canary, cwd=shop, env=env)
    assert done.code == 0
    is_documented(done.out.replace(str(shop), "/srv/shop"))
    path = shop / "compose.yaml"
    path.write_text(done.out)
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*check, path], check=True, capture_output=True, env=environment())


def psql(*arguments: str, **env: str) -> str:
    """Run psql, and return its answer."""
    program = need(shutil.which("psql"), "psql (.ci/install-servers)")
    done = subprocess.run(
        [program, "--no-psqlrc", "-Atw", *arguments],
        capture_output=True, text=True, env=environment(**env), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


QUERY = "SELECT current_database(), current_setting('search_path')"


def test_psql_connects_with_the_files(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> None:
    """`psql service=orders`, and psql with the variables, reach the database with its settings."""
    registry_dir.declare("orders", database, sync_settings={"search_path": "'it''s', public"})
    service = tmp_path / "pg_service.conf"
    service.write_text(invoke("export", "pg_service", registry_dir, canary=canary).out)
    expected = f"{database.name}|'it''s', public\n"
    env = {"PGPASSWORD": database.password}
    named = {"PGSERVICEFILE": str(service), **env}
    assert psql("service=orders", "-c", QUERY, **named) == expected
    done = invoke("export", "env", registry_dir, "--name", "orders", canary=canary)
    variables = tmp_path / "orders.env"
    variables.write_text(done.out)
    shell = f'set -a; . "{variables}"; exec psql -XAtwc "{QUERY}"'
    found = subprocess.run(
        ["sh", "-euc", shell], capture_output=True, text=True, env=environment(**env), check=True
    )
    assert found.stdout == expected


@pytest.mark.pgbouncer
def test_pgbouncer_loads_the_file(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """PgBouncer starts with the section, and a client reaches the database under its name."""
    registry_dir.declare("or-ders", database)
    registry_dir.declare("away", database, connection={"dbname": 'it\'s \\ "there"'})
    databases = invoke("export", "pgbouncer", registry_dir, canary=canary).out
    with PgBouncer(database, canary, {}, databases=databases) as bouncer:
        listed = {one["name"]: one["database"] for one in bouncer.tell("SHOW DATABASES")}
        assert listed["away"] == 'it\'s \\ "there"'
        login = database.parameters(**bouncer.address, dbname="or-ders")
        with psycopg.connect(**login) as connection:
            row = connection.execute("SELECT current_database()").fetchone()
        assert row == (database.name,)


def test_one_database_of_the_variables(shop: Path, canary: Canary) -> None:
    """They hold one; a name that is not there, and a second one, are wrong usage."""
    env = {"ORDERS_PASSWORD": canary.secret()}
    for arguments, message in (
        (["env"], "env is for one database: give its --name"),
        (["env", "--name", "ordres"], 'did you mean "orders"?'),
        (["ini"], "Invalid value"),
        (["pgbouncer", "a", "--dir", "a"], "DIR and --dir are the same"),
    ):
        done = invoke("export", *arguments, canary=canary, cwd=shop, env=env)
        assert (done.code, done.out) == (2, "")
        assert message in done.err


def test_problems_come_first(shop: Path, canary: Canary) -> None:
    """A file without one of the databases would be wrong: code 1, and the problems."""
    done = invoke("export", "pgbouncer", canary=canary, cwd=shop)
    assert (done.code, done.out) == (1, "")
    assert "ORDERS_PASSWORD" in done.err
