"""`pgmonkey init`: the file of a new database, and the directory of its secrets."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from pgmonkey.config.directory import DirectoryLoader
from tests.cli.page import shown
from tests.kit import Canary, TemporaryDatabase
from tests.kit.command import invoke


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_it_leads_to_a_database_that_works(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """Its steps, one after the other, end with a connection; secrets are for their owner alone."""
    before = os.umask(0o002)
    try:
        done = invoke("init", "orders", canary=canary, cwd=tmp_path)
    finally:
        os.umask(before)
    assert (done.code, done.err) == (0, "")
    assert done.out == shown("pgmonkey init")[0]
    path, secrets = tmp_path / "registry.d" / "orders.yaml", tmp_path / "secrets" / "orders"
    assert (mode(path), mode(path.parent), mode(secrets)) == (0o644, 0o755, 0o700)
    assert {one.name: mode(one) for one in secrets.iterdir()} == {
        ".gitignore": 0o600,
        "password": 0o600,
        "username": 0o600,
    }
    done = invoke("check", path, canary=canary, cwd=tmp_path)
    assert (done.code, done.out.count("[secret.empty]")) == (1, 2)
    (secrets / "username").write_text(database.user)
    (secrets / "password").write_text(database.password)
    done = invoke("check", path, "--trust", "strict", canary=canary, cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "", "")
    filled = path.read_text().replace("host: localhost", f"host: {database.host}")
    filled = filled.replace("port: 5432", f"port: {database.port}")
    path.write_text(filled.replace("dbname: orders", f"dbname: {database.name}"))
    done = invoke("test", "orders", "--dir", "registry.d", canary=canary, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("there", ["orders.yaml", "orders.yml"])
def test_a_file_is_never_overwritten(there: str, tmp_path: Path, canary: Canary) -> None:
    """What is there stays, also a link that leads nowhere, and nothing else is made."""
    registry = tmp_path / "registry.d"
    registry.mkdir()
    (registry / there).symlink_to("nowhere")
    done = invoke("init", "orders", registry, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"{registry / there} exists already and was left as it is\n"
    assert [*tmp_path.rglob("*")] == [registry, registry / there]


def test_secrets_are_beside_the_registry_that_it_runs_in(tmp_path: Path, canary: Canary) -> None:
    """Also where the directory of the registry is the current one: no secret is among its files."""
    registry = tmp_path / "registry.d"
    registry.mkdir()
    done = invoke("init", "orders", ".", canary=canary, cwd=registry)
    assert (done.code, done.err) == (0, "")
    assert [one.name for one in registry.iterdir()] == ["orders.yaml"]
    assert (tmp_path / "secrets" / "orders" / "password").exists()
    assert "from_file: ../secrets/orders/password\n" in (registry / "orders.yaml").read_text()


def test_secrets_that_are_there_stay(tmp_path: Path, canary: Canary) -> None:
    """A directory that somebody made keeps its mode and its files; only what is missing is made."""
    secrets = tmp_path / "run" / "orders secrets"
    secrets.mkdir(0o750, parents=True)
    (secrets / "password").write_text("tea")
    done = invoke("init", "orders", "--secrets", secrets, "--dir", tmp_path / "r", canary=canary)
    assert (done.code, done.err) == (0, "")
    assert mode(secrets) == 0o750
    assert {one.name for one in secrets.iterdir()} == {"password", "username"}
    (secrets / "username").write_text("app")
    (config,) = DirectoryLoader(tmp_path / "r").scan().configs.values()
    assert config.connection_settings["password"].reveal() == "tea"
    assert f'from_file: "{secrets}/password"' in (tmp_path / "r" / "orders.yaml").read_text()


def test_what_the_defaults_say_is_a_comment(tmp_path: Path, canary: Canary) -> None:
    """So the new file does not take it back."""
    (tmp_path / "registry.d").mkdir()
    (tmp_path / "registry.d" / "_defaults.yaml").write_text(
        "connection_type: async_pool\n"
        "connection_settings: {host: db.example, port: 5433, sslmode: require}\n"
        "pool_settings: {max_size: 3, timeout: 2s, min_size: 0}\n"
    )
    assert invoke("init", "orders", canary=canary, cwd=tmp_path).code == 0
    text = (tmp_path / "registry.d" / "orders.yaml").read_text()
    comments = re.findall(r"^ *# (\w+): as _defaults.yaml says$", text, re.MULTILINE)
    assert comments == "connection_type host port sslmode min_size max_size timeout".split()
    for name in ("username", "password"):
        (tmp_path / "secrets" / "orders" / name).write_text("x")
    (config,) = DirectoryLoader(tmp_path / "registry.d").scan().configs.values()
    assert (config.server, config.connection_type) == ("db.example:5433", "async_pool")
    assert config.pool("pool").max_size == 3


@pytest.mark.parametrize("name", ["Orders", "_defaults", "../x", "x" * 64, "1a"])
def test_a_name_that_no_database_can_have(name: str, tmp_path: Path, canary: Canary) -> None:
    """It is wrong usage, and nothing is written."""
    done = invoke("init", name, canary=canary, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "must match" in done.err
    assert list(tmp_path.iterdir()) == []


def test_any_name_and_path_is_written_as_text(tmp_path: Path, canary: Canary) -> None:
    """A name that YAML takes for a null, and a path that looks like a reference, are themselves."""
    where = tmp_path / "${HOME}: #x"
    done = invoke("init", "null", "--secrets", where, "--dir", tmp_path / "r", canary=canary)
    assert (done.code, done.err) == (0, "")
    for name in ("username", "password"):
        (where / name).write_text("x")
    scan = DirectoryLoader(tmp_path / "r").scan()
    scan.raise_for_problems()
    assert scan.configs["null"].connection_settings["dbname"] == "null"


def test_a_place_that_cannot_be_written_to(tmp_path: Path, canary: Canary) -> None:
    """It is named with the reason, and no half of a database is left."""
    (tmp_path / "file").touch()
    secrets = ("--secrets", tmp_path / "file" / "x")
    done = invoke("init", "orders", tmp_path / "registry.d", *secrets, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r".*/file.*: (File exists|Not a directory)\n", done.err)
    assert list((tmp_path / "registry.d").iterdir()) == []
