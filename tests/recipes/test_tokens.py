"""The recipes of docs/recipes/tokens.md run as written, against programs and modules that stand in."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from psycopg import sql

from pgmonkey import Registry
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase
from tests.kit.command import in_this_process
from tests.recipes.recipe import recipe

RDS = "orders.cluster-cx2.eu-west-1.rds.amazonaws.com"
#: What each program is called with, and what it stands in for.
COMMANDS = {
    "Amazon RDS with IAM": (
        "aws",
        f"rds generate-db-auth-token --region eu-west-1 --hostname {RDS} --port 5432 --username app",
    ),
    "Azure with Entra ID": (
        "az",
        "account get-access-token --resource-type oss-rdbms --query accessToken --output tsv",
    ),
    "Google Cloud SQL with IAM": ("gcloud", "sql generate-login-token"),
}

AZURE = """
import os, time
from types import SimpleNamespace

class DefaultAzureCredential:
    def get_token(self, scope):
        assert scope == "https://ossrdbms-aad.database.windows.net/.default"
        return SimpleNamespace(token=os.environ["TOKEN"], expires_on=int(time.time()) + 3600)
"""

HVAC = """
import os
from types import SimpleNamespace

class Client:
    def __init__(self):
        self.secrets = SimpleNamespace(database=self)
        self.calls = 0

    def generate_credentials(self, name):
        assert name == "orders"
        self.calls += 1
        user = os.environ["LEASES"].split()[min(self.calls, 2) - 1]
        made = {"username": user, "password": os.environ["TOKEN"]}
        return {"data": made, "lease_duration": 0.5, "lease_id": "database/creds/orders/1"}
"""

ASK = """
with registry, registry.get("orders") as conn:
    print(conn.execute("SELECT current_user").fetchone()[0])
"""

ASK_UNTIL_IT_CHANGES = """
with registry:
    first = None
    while True:
        with registry.get("orders") as conn:
            (user,) = conn.execute("SELECT current_user").fetchone()
        if first is None:
            print(first := user)
        elif user != first:
            print(user)
            break
        time.sleep(0.05)
"""


def run(heading: str, more: str, directory: Path, canary: Canary, **environ: str) -> list[str]:
    """Run the program of the page, and what an application does next; return what it prints.

    In this process, where the modules that stand in are found and forgotten afterwards.
    """
    path = directory / "app.py"
    path.write_text(recipe("tokens", heading) + more)
    before = set(sys.modules)
    with (
        in_this_process(canary=canary, cwd=directory, env=environ) as (out, _),
        patch.object(sys, "path", [str(directory), *sys.path]),
    ):
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            for name in {"azure", "azure.identity", "hvac"} - before:
                sys.modules.pop(name, None)
    return out.getvalue().splitlines()


def declare(
    registry_dir: RegistryDirectory, heading: str, database: TemporaryDatabase, **others: Any
) -> None:
    """Write the file of a recipe, for a database that exists and has no TLS."""
    content = yaml.safe_load(recipe("tokens", heading, "yaml"))
    settings = content["connection_settings"]
    settings |= {"host": database.host, "port": database.port, "dbname": database.name, **others}
    settings["sslmode"] = "disable"
    settings.pop("sslrootcert", None)
    registry_dir.write("orders", content)


@pytest.mark.parametrize("heading", COMMANDS)
def test_a_command_of_a_cloud_makes_the_token(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heading: str,
) -> None:
    """It is found in PATH, and called with exactly these arguments."""
    name, arguments = COMMANDS[heading]
    called = tmp_path / "called"
    stand_in = tmp_path / "bin" / name
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$*" >>{called}\necho "$TOKEN"\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    monkeypatch.setenv("TOKEN", database.password)
    declare(registry_dir, heading, database, user=database.user)
    with Registry(registry_dir, metrics=None) as registry:
        for _ in range(2):
            with registry.get("orders") as conn:
                assert conn.execute("SELECT current_user").fetchone() == (database.user,)
            registry.get("orders").close()
    assert called.read_text().splitlines() == [arguments]


def test_azure_identity_makes_the_token(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """The program of the page runs, and the token is used."""
    heading = "Azure with Entra ID, without a command line"
    (tmp_path / "azure").mkdir()
    (tmp_path / "azure" / "identity.py").write_text(AZURE)
    declare(registry_dir, heading, database, user=database.user)
    printed = run(heading, ASK, tmp_path, canary, TOKEN=database.password)
    assert printed == [database.user]


def test_vault_makes_users_that_replace_each_other(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """Before the lease of the first one ends, the connections are those of the second."""
    users = [f"{database.name}_a", f"{database.name}_b"]
    password = canary.secret()
    for user in users:
        database.server.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(user), sql.Literal(password)
            )
        )
    try:
        (tmp_path / "hvac.py").write_text(HVAC)
        heading = "Vault database leases"
        declare(registry_dir, heading, database)
        leases = " ".join(users)
        printed = run(
            heading, ASK_UNTIL_IT_CHANGES, tmp_path, canary, TOKEN=password, LEASES=leases
        )
    finally:
        database.terminate_backends()
        for user in users:
            database.server.drop_role(user)
    assert printed == users


def test_the_page_declares_a_resolver_as_packages_do() -> None:
    """The group of its entry point is the one that is read."""
    from pgmonkey.config.on_demand import GROUP

    text = recipe("tokens", "A resolver for every program", "toml")
    assert re.search(rf'entry-points\."{re.escape(GROUP)}"', text)
