"""`pgmonkey test`: databases are connected to as their application would."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from pgmonkey.cli.servers import Server
from pgmonkey.cli.test import connections
from pgmonkey.config.budget import Limits
from tests.cli.page import shown, without_numbers
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase
from tests.kit.certificates import Authority
from tests.kit.command import invoke
from tests.kit.secret_volume import SecretVolume
from tests.kit.secure_server import secure_server

FREE = Limits("1", 100, 3, 2, False, False, "app", None, "orders", None, 7)
PLAIN = Server("db", 5432, "18.6", "orders", "app", "app", False, False, False, None, None)


def test_the_page_shows_what_it_prints(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Server, database, user, TLS, transactions, times, limits and pool of a database."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 2, "max_size": 6})
    done = invoke("test", "orders", "--dir", registry_dir, canary=canary)
    assert (done.code, done.err) == (0, "")
    output = done.out.replace(database.name, "orders").replace(
        "  user          orders", "  user          orders_app"
    )
    expected = shown("pgmonkey test")[0]
    assert without_numbers(output) == without_numbers(expected)
    assert f"at {database.host}:{database.port}\n" in done.out


def test_as_json_everything_has_a_type(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Whatever the connection type is, and whatever rows the application wants."""
    settings = {"row_factory": "dict_row", "read_only": True}
    for kind in ("normal", "pool", "async", "async_pool"):
        registry_dir.declare(kind.replace("_", "-"), database, kind, connection=settings)
    names = ["pool", "async-pool", "normal", "async"]
    done = invoke("test", *names, "pool", "--dir", registry_dir, "-o", "json", canary=canary)
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["problems"] == []
    assert (report["directory"], report["credentials_from"]) == (str(registry_dir), None)
    assert [one["name"] for one in report["databases"]] == names
    first, *_, last = report["databases"]
    documented = json.loads(shown("pgmonkey test", "json")[0])
    assert documented.keys() == report.keys()
    for part in ("server", "limits", "pool"):
        assert documented["databases"][0][part].keys() == first[part].keys()
    assert documented["databases"][0].keys() == first.keys()
    assert first.pop("connect_seconds") > first.pop("round_trip_seconds") > 0
    assert first["server"].pop("version").startswith("1")
    assert first["limits"].pop("in_use") >= 1
    assert first == {
        "name": "pool",
        "connection_type": "pool",
        "reached": True,
        "server": {
            "host": database.host,
            "port": database.port,
            "database": database.name,
            "user": database.user,
            "role": database.user,
            "standby": False,
            "read_only": True,
            "tls": None,
        },
        "limits": {
            "max_connections": 200,
            "superuser_reserved_connections": 3,
            "reserved_connections": 0,
            "may_use_reserved": False,
            "superuser": False,
            "role_limit": None,
            "database_limit": None,
            "allowed": 197,
        },
        "pool": {"min_size": 1, "max_size": 10},
        "secret_files": [],
    }
    assert last["pool"] is None


@pytest.mark.tls
def test_over_tls_it_says_how_it_is_encrypted(
    registry_dir: RegistryDirectory, tmp_path: Path, canary: Canary
) -> None:
    """The version and the cipher that the server reports, for people and for programs."""
    authority = Authority("pgmonkey tests")
    (tmp_path / "ca.crt").write_text(authority.pem)
    with secure_server(authority, tmp_path / "certificates") as secure:
        database = TemporaryDatabase.create(secure.server, canary)
        settings = {"sslmode": "verify-full", "sslrootcert": str(tmp_path / "ca.crt")}
        registry_dir.declare("orders", database, connection=settings)
        done = invoke("test", "orders", "--dir", registry_dir, canary=canary)
        assert (done.code, done.err) == (0, "")
        assert re.search(r"^  tls           TLSv1\.3, TLS_\w+$", done.out, re.MULTILINE)
        done = invoke("test", "orders", "--dir", registry_dir, "-o", "json", canary=canary)
        (orders,) = json.loads(done.out)["databases"]
        assert orders["server"]["tls"]["version"] == "TLSv1.3"


def test_all_problems_of_all_names_are_reported_at_once(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """A bad file, a refused login and a missing server; what works is shown, and the code is 4."""
    registry_dir.declare("a", database, connection={"password": canary.secret()})
    registry_dir.declare("b", database, connection={"port": 1, "connect_timeout": 2})
    registry_dir.declare("c", database)
    registry_dir.declare("d", database, pool_settings={"max_sise": 1})
    registry_dir.declare("e", database, pool_settings={"max_sise": 1})
    done = invoke("test", "d", "c", "b", "a", "--dir", registry_dir, canary=canary)
    assert done.code == 4
    assert done.out.startswith("c: a connection of type pool works\n")
    for code in ("[probe.auth]", "[probe.refused]", "[config.unknown_key]"):
        assert done.out.count(code) == 1
    assert done.err == "3 problems in 3 files\n"
    done = invoke("test", "d", "c", "--dir", registry_dir, "-o", "json", canary=canary)
    assert done.code == 1
    report = json.loads(done.out)
    assert [(one["name"], one["reached"]) for one in report["databases"]] == [
        ("d", False),
        ("c", True),
    ]
    assert [one["code"] for one in report["problems"]] == ["config.unknown_key"]


def test_unknown_names_are_wrong_usage(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Each is named, with a similar one, and nothing is connected to."""
    registry_dir.declare("orders", database)
    done = invoke("test", "ordres", "orders", "x", "--dir", registry_dir, canary=canary)
    assert (done.code, done.out) == (2, "")
    first, second = done.err.splitlines()
    assert first == f'no database "ordres" in {registry_dir}; did you mean "orders"? (1 declared)'
    assert second.startswith('no database "x" in')
    assert invoke("test", "--dir", registry_dir, canary=canary).code == 2


def test_a_missing_directory_is_a_problem(tmp_path: Path, canary: Canary) -> None:
    """It is reported as by every command."""
    done = invoke("test", "orders", "--dir", tmp_path / "nowhere", canary=canary)
    assert done.code == 1
    assert "registry.missing" in done.out


def test_a_pool_that_is_larger_than_a_limit_is_a_problem(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """It names the limit, the line of max_size and its variable; those of PgBouncer are its own."""
    database.connection_limit(4)
    size = {"from_env": "SIZE"}
    path = registry_dir.declare("orders", database, pool_settings={"max_size": size})
    registry_dir.declare("events", database, "async_pool")
    registry_dir.declare(
        "fits", database, async_pool_settings={"max_size": 9}, pool_settings={"max_size": 4}
    )
    registry_dir.declare("behind", database, pooler="pgbouncer")
    names = ("orders", "events", "fits", "behind")
    done = invoke("test", *names, "--dir", registry_dir, canary=canary, env={"SIZE": "5"})
    assert (done.code, done.err) == (1, "2 problems in 2 files\n")
    assert done.out.count("; the value comes from the variable SIZE\n") == 1
    assert done.out.count("4 allowed by the CONNECTION LIMIT of the role; 200 in all") == 4
    events, orders = [line for line in done.out.splitlines() if "probe.max_size" in line]
    what = "and the CONNECTION LIMIT of the role allows 4 connections  [probe.max_size]"
    assert orders.startswith(f"{path}:")
    assert orders.endswith(f": pool_settings.max_size: max_size is 5, {what}")
    assert events.endswith(f"events.yaml: async_pool_settings.max_size: max_size is 10, {what}")


@pytest.mark.parametrize(
    "limits, allowed",
    [
        (FREE, (95, "max_connections of the server")),
        (FREE._replace(may_use_reserved=True), (97, "max_connections of the server")),
        (FREE._replace(superuser=True), (100, "max_connections of the server")),
        (FREE._replace(role_limit=5, database_limit=9), (5, "the CONNECTION LIMIT of the role")),
        (
            FREE._replace(role_limit=9, database_limit=0),
            (0, "the CONNECTION LIMIT of the database"),
        ),
        (FREE._replace(role_limit=96), (95, "max_connections of the server")),
    ],
)
def test_the_smallest_limit_counts(limits: Limits, allowed: tuple[int, str]) -> None:
    """Those of the server without its reserves, of the role, and of the database."""
    assert limits.allowed() == allowed
    assert connections(limits).startswith(f"{allowed[0]} allowed by {allowed[1]}; 100 in all, ")


@pytest.mark.parametrize(
    "server, line, text",
    [
        (PLAIN, "tls", "none: the connection is not encrypted"),
        (PLAIN._replace(host="/run/pg"), "tls", "none: a local socket"),
        (PLAIN._replace(host="/run/pg"), "server", "PostgreSQL 18.6 at /run/pg"),
        (PLAIN._replace(encrypted=True), "tls", "yes"),
        (
            PLAIN._replace(encrypted=True, tls_version="TLSv1.3", tls_cipher="X"),
            "tls",
            "TLSv1.3, X",
        ),
        (PLAIN, "transactions", "read-write"),
        (PLAIN._replace(standby=True, read_only=True), "transactions", "read-only, on a standby"),
        (PLAIN._replace(role="owner"), "user", "app, acting as owner"),
    ],
)
def test_a_server_is_described(server: Server, line: str, text: str) -> None:
    """TLS, address, kind of transactions and role, in words."""
    assert server.lines()[line] == text


# Rehearsing a rotation


def test_a_rotation_is_rehearsed_with_new_files(
    registry_dir: RegistryDirectory,
    volume: SecretVolume,
    database: TemporaryDatabase,
    tmp_path: Path,
    canary: Canary,
) -> None:
    """The new files are read in place of the mounted ones, which stay as they are."""
    registry_dir.declare("orders", database, volume=volume)
    before = {key: volume.path(key).read_text() for key in ("username", "password")}
    new = tmp_path / "new"
    new.mkdir()
    password = canary.secret()
    (new / "username").write_text(before["username"])
    (new / "password").write_text(f"{password}\n")
    rehearse = ("test", "orders", "--dir", registry_dir, "--credentials-from", "new")
    done = invoke(*rehearse, canary=canary, cwd=tmp_path)
    assert (done.code, done.err) == (4, "1 problem in 1 file\n")
    assert "[probe.auth]" in done.out
    assert "the value comes from the file new/password" in done.out
    database.server.set_password(database.user, password)
    done = invoke(*rehearse, canary=canary, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "  secrets       new/password, new/username" in done.out.splitlines()
    done = invoke(*rehearse, "-o", "json", canary=canary, cwd=tmp_path)
    report = json.loads(done.out)
    assert report["credentials_from"] == "new"
    assert report["databases"][0]["secret_files"] == ["new/password", "new/username"]
    assert {key: volume.path(key).read_text() for key in before} == before
    assert invoke("test", "orders", "--dir", registry_dir, canary=canary).code == 4


def test_a_rehearsal_reads_members_and_volumes(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """One JSON document in a Kubernetes volume, named by a variable, is a file like others."""
    reference = {"from_file": "${SECRETS}/orders/credentials.json"}
    connection = {key: {**reference, "json_key": key} for key in ("user", "password")}
    registry_dir.declare("orders", database, connection=connection)
    new = SecretVolume(tmp_path / "new")
    credentials = {"user": database.user, "password": database.password}
    new.write({"credentials.json": json.dumps(credentials)})
    done = invoke(
        *("test", "orders", "--dir", registry_dir, "--credentials-from", new.directory),
        canary=canary,
        env={"SECRETS": "/nowhere"},
    )
    assert (done.code, done.err) == (0, "")
    assert f"  secrets       {new.path('credentials.json')}\n" in f"{done.out}\n"


def test_a_rehearsal_uses_no_mounted_file(
    registry_dir: RegistryDirectory,
    volume: SecretVolume,
    database: TemporaryDatabase,
    tmp_path: Path,
    canary: Canary,
) -> None:
    """A file that is not among the new ones is a problem: the old password would prove nothing."""
    registry_dir.declare("orders", database, volume=volume)
    registry_dir.declare("reports", database)
    (tmp_path / "username").write_text(database.user)
    done = invoke(
        *("test", "orders", "reports", "--dir", registry_dir, "--credentials-from", "."),
        canary=canary,
        cwd=tmp_path,
    )
    assert (done.code, done.err) == (1, "2 problems in 2 files\n")
    missing, hint, none, _ = done.out.splitlines()
    assert missing.endswith(
        f"secret file {os.fspath(volume.path('password'))}: ./password, which is read in its place,"
        " does not exist  [secret.missing]"
    )
    assert hint.startswith("  hint: put every file of the new secret there")
    assert none.endswith("[reference.no_file]")
