"""A `url` in a registry: its parts rotate, move and are masked as keys of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from pgmonkey import PGConnectionManager, Registry, load_config
from tests.kit.canary import Canary
from tests.kit.command import invoke
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secret_volume import SecretVolume
from tests.pool.side import SIDES, Client


def uri(database: TemporaryDatabase, *, place: str = "", password: str | None = None) -> str:
    """Return the URI of a database, as an operator writes it into a secret."""
    secret = quote(database.password if password is None else password, safe="")
    name = place or database.name
    return f"postgresql://{database.user}:{secret}@{database.host}:{database.port}/{name}"


@pytest.fixture
def elsewhere(database: TemporaryDatabase) -> Iterator[str]:
    """Another database on the same server."""
    name = f"{database.name}_elsewhere"
    database.server.execute(f'CREATE DATABASE "{name}"')
    yield name
    database.server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.parametrize("side", SIDES)
def test_the_uri_of_a_secret_rotates_and_moves(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    events: CapturedEvents,
    elsewhere: str,
    canary: Canary,
    side: str,
) -> None:
    """A password is replaced in place, another database is a move, and a bad uri is rejected."""
    volume.write({"uri": uri(database)})
    url = {"from_file": str(volume.path("uri"))}
    registry_dir.write(
        "orders",
        {"connection_type": side, "connection_settings": {"url": url, "sslmode": "disable"}},
    )

    def details(registry: Registry) -> Any:
        return registry.status().databases[0].history[-1].details

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        with closing(Client(registry)) as client:
            assert client.ask("SELECT current_database()") == database.name
            database.rotate()
            volume.write({"uri": uri(database)})
            assert registry.reload().applied == ("orders",)
            assert "connection_settings.password" in details(registry)
            assert client.ask("SELECT current_database()") == database.name
            volume.write({"uri": uri(database, place=elsewhere)})
            assert registry.reload().applied == ("orders",)
            assert "connection_settings.dbname" in details(registry)
            assert client.ask("SELECT current_database()") == elsewhere
            volume.write({"uri": uri(database, password=canary.secret()).replace("@", "@@")})
            (problem,) = registry.reload().rejected["orders"]
            assert (problem.key, problem.code) == (
                "connection_settings.url",
                "config.malformed_url",
            )
            volume.write({"uri": uri(database, password=canary.secret())})
            (problem,) = registry.reload().rejected["orders"]
            assert (problem.key, problem.code) == ("connection_settings.url", "probe.auth")
            assert f"the value comes from the file {volume.path('uri')}" in str(problem)
            assert client.ask("SELECT current_database()") == elsewhere
        canary.check(repr(registry.status()))
        assert sum(registry.get("orders").status().connect_failures.values()) == 1
    canary.check(repr(list(events)))


def test_a_rejected_file_keeps_no_rotated_uri_out(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, volume: SecretVolume
) -> None:
    """While somebody mends a typo, and for the url of `_defaults.yaml`, too."""
    volume.write({"uri": uri(database)})
    path = volume.path("uri")
    registry_dir.write("_defaults.yaml", f"connection_settings: {{url: {{from_file: {path}}}}}\n")
    good = "connection_settings: {sslmode: disable}\n"
    registry_dir.write("orders", good)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        with closing(Client(registry)) as client:
            assert client.ask() == 1
            registry_dir.write("orders", good.replace("sslmode", "sslmod"))
            database.rotate()
            volume.write({"uri": uri(database)})
            assert list(registry.reload().rejected) == ["orders"]
            database.terminate_backends()
            assert client.ask() == 1
        assert sum(registry.get("orders").status().connect_failures.values()) == 0


def test_the_commands_show_the_parts_of_a_url(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """`show`, `list` and `check --online`: what is no secret, and the variable it comes from."""
    registry_dir.write("orders", "connection_settings:\n  url: ${ORDERS_URL}\n")
    env = {"ORDERS_URL": uri(database)}
    shown = invoke("show", "orders", registry_dir, "--source", canary=canary, env=env).out
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in shown.splitlines()}
    source = f"{registry_dir.file('orders')}:2:8, environment variable ORDERS_URL"
    assert rows["connection_settings.password"] == ["***REDACTED***", source]
    assert rows["connection_settings.dbname"] == [database.name, source]
    assert rows["connection_settings.connect_timeout"][1] == "default"
    assert (
        f"{database.host}:{database.port}"
        in invoke("list", registry_dir, canary=canary, env=env).out
    )
    assert invoke("check", registry_dir, "--online", canary=canary, env=env).code == 0
    env = {"ORDERS_URL": uri(database, password=canary.secret())}
    done = invoke("check", registry_dir, "--online", canary=canary, env=env)
    assert done.code == 1
    assert f"{registry_dir.file('orders')}:2:8: connection_settings.url: cannot connect" in done.out


def test_the_manager_takes_a_url(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file and from a dictionary; `psycopg.connect` takes what `load_config` makes of it."""
    monkeypatch.setenv("ORDERS_URL", uri(database))
    path = registry_dir.write("orders", "connection_settings: {url: '${ORDERS_URL}'}\n")
    settings = load_config(path, resolve_env=True)["connection_settings"]
    with psycopg.connect(**settings) as connection:
        assert connection.info.dbname == database.name
    with PGConnectionManager() as manager:
        for handle in (
            manager.get_database_connection(path, resolve_env=True),
            manager.get_database_connection_from_dict(
                {"connection_settings": {"url": uri(database)}}
            ),
        ):
            with handle as connection:
                assert connection.execute("SELECT current_database()").fetchone() == (
                    database.name,
                )
