"""The recipes of docs/from-4.0/environment.md run as written, with their own configuration files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pgmonkey import EnvInterpolationError, PGConnectionManager, load_config, redact_config
from tests.kit import Canary, TemporaryDatabase
from tests.kit.command import run as cli
from tests.recipes.recipe import ENDS_WITHIN, environ, leave_traces, recipe, run, traces


def write(directory: Path, text: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_local_development(tmp_path: Path, database: TemporaryDatabase, canary: Canary) -> None:
    """Variables in the file come from the environment, and the connection works."""
    leave_traces(database)
    write(
        tmp_path,
        recipe("from-4.0/environment", "Local Development with Environment Variables", "yaml"),
    )
    work = (
        "with conn as connection:\n    print(connection.execute('SELECT version()').fetchone())\n"
    )

    ended = run(
        recipe("from-4.0/environment", "Local Development with Environment Variables") + work,
        tmp_path,
        environ=environ(database),
    )

    canary.check(ended.errors)
    assert (ended.code, ended.errors) == (0, "")
    assert ended.lingered < ENDS_WITHIN
    assert traces(database) == ["version"]


def test_local_development_without_the_password(
    tmp_path: Path, database: TemporaryDatabase
) -> None:
    """A password that is not set is an EnvInterpolationError that names variable and key."""
    write(
        tmp_path,
        recipe("from-4.0/environment", "Local Development with Environment Variables", "yaml"),
    )
    variables = environ(database)
    del variables["PGPASSWORD"]

    ended = run(
        recipe("from-4.0/environment", "Local Development with Environment Variables"),
        tmp_path,
        environ=variables,
    )

    assert ended.code == 1
    assert "EnvInterpolationError" in ended.errors
    assert "PGPASSWORD" in ended.errors
    assert "connection_settings.password" in ended.errors


def test_local_development_uses_its_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not set, or empty as Compose passes it, takes the default; numbers are numbers."""
    path = write(
        tmp_path,
        recipe("from-4.0/environment", "Local Development with Environment Variables", "yaml"),
    )
    for name in ("PGUSER", "PGHOST", "PGPORT", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGHOST", "")
    monkeypatch.setenv("PGPASSWORD", "dev_password")

    settings = load_config(path, resolve_env=True)["connection_settings"]

    assert settings == {
        "user": "postgres",
        "password": "dev_password",
        "host": "localhost",
        "port": "5432",
        "dbname": "mydb",
    }


def test_docker_compose(tmp_path: Path, database: TemporaryDatabase, canary: Canary) -> None:
    """The application of the compose file runs with its pool of 5 to 20."""
    leave_traces(database)
    write(tmp_path, recipe("from-4.0/environment", "Docker / Docker Compose", "yaml"))

    ended = run(
        recipe("from-4.0/environment", "Docker / Docker Compose"),
        tmp_path,
        environ=environ(database),
    )

    canary.check(ended.errors)
    assert (ended.code, ended.errors) == (0, "")
    assert ended.lingered < ENDS_WITHIN
    assert traces(database) == ["version"]


def kubernetes(directory: Path) -> str:
    """Return the recipe's configuration; the mount is in the test's directory, the server has no TLS."""
    text = recipe("from-4.0/environment", "Kubernetes Secrets with from_file", "yaml")
    text = text.replace("/var/run/secrets/db/password", str(directory / "password"))
    return text.replace("sslmode: 'require'", "sslmode: 'prefer'")


STARTUP = """
import asyncio

async def main():
    await startup()
    pool = await manager.get_database_connection('config.yaml', resolve_env=True)
    async with pool as conn:
        print(await (await conn.execute('SELECT version()')).fetchone())

asyncio.run(main())
"""


def test_kubernetes_secrets(tmp_path: Path, database: TemporaryDatabase, canary: Canary) -> None:
    """The password is the content of its file without one trailing newline."""
    leave_traces(database)
    (tmp_path / "password").write_text(f"{database.password}\n", encoding="utf-8")
    write(tmp_path, kubernetes(tmp_path))

    ended = run(
        recipe("from-4.0/environment", "Kubernetes Secrets with from_file") + STARTUP,
        tmp_path,
        environ=environ(database),
    )

    canary.check(ended.errors)
    assert (ended.code, ended.errors) == (0, "")
    assert ended.lingered < ENDS_WITHIN
    assert traces(database) == ["version"]


def test_kubernetes_secret_that_is_missing(tmp_path: Path) -> None:
    """A missing secret file is an error of the call itself, before any query."""
    path = write(tmp_path, kubernetes(tmp_path))

    with pytest.raises(EnvInterpolationError, match=re.escape(str(tmp_path / "password"))):
        PGConnectionManager().get_database_connection(path, "async_pool", resolve_env=True)


def test_the_commands(tmp_path: Path, database: TemporaryDatabase, canary: Canary) -> None:
    """Each command of the recipe succeeds, and the program that the last one prints runs."""
    leave_traces(database)
    write(
        tmp_path,
        recipe("from-4.0/environment", "Local Development with Environment Variables", "yaml"),
    )
    heading = "Testing Configs with Environment Interpolation from the Command Line"
    lines = [
        shlex.split(line, comments=True)
        for line in recipe("from-4.0/environment", heading, "shell").splitlines()
    ]
    commands = [words[1:] for words in lines if words]
    assert len(commands) == 4

    for command in commands:
        done = cli(*command, canary=canary, cwd=tmp_path, env=environ(database))
        assert (done.code, done.err) == (0, "")
    assert traces(database) == []

    ended = run(done.out, tmp_path, environ=environ(database))
    assert (ended.code, ended.errors) == (0, "")
    assert traces(database) == ["version"]


def test_redaction(tmp_path: Path, database: TemporaryDatabase, canary: Canary) -> None:
    """The printed configuration masks the secrets and nothing else."""
    write(
        tmp_path,
        recipe("from-4.0/environment", "Local Development with Environment Variables", "yaml"),
    )

    ended = run(
        recipe("from-4.0/environment", "Redacting Secrets for Logging"),
        tmp_path,
        environ=environ(database),
    )

    assert (ended.code, ended.errors) == (0, "")
    (line,) = ended.output
    canary.check(line)
    assert "'password': '***REDACTED***'" in line
    assert f"'dbname': '{database.name}'" in line


def test_what_is_redacted_and_what_is_left() -> None:
    """The keys of 4.0 are masked; empty texts and None stay; the argument is not changed."""
    settings = dict.fromkeys(
        ("password", "sslkey", "sslcert", "sslrootcert", "api_token", "my_secret", "credentials"),
        "x",
    )
    config = {"connection_settings": settings | {"host": "db.prod.com"}, "empty": {"password": ""}}

    shown = redact_config(config)

    assert set(shown["connection_settings"].values()) == {"***REDACTED***", "db.prod.com"}
    assert shown["empty"] == {"password": ""}
    assert redact_config({"password": None}) == {"password": None}
    assert config["connection_settings"]["password"] == "x"


def test_load_config_works_with_psycopg_and_prints_no_secret(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`psycopg.connect(**cfg["connection_settings"])` works; `print(cfg)` masks."""
    import psycopg

    for name, value in environ(database).items():
        monkeypatch.setenv(name, value)
    path = write(
        tmp_path,
        recipe("from-4.0/environment", "Local Development with Environment Variables", "yaml"),
    )

    config = load_config(path, resolve_env=True)

    canary.check(f"{config}{config!r}{config['connection_settings']}")
    with psycopg.connect(**config["connection_settings"]) as connection:
        assert connection.info.dbname == database.name
    assert load_config(path)["connection_settings"]["password"] == "${PGPASSWORD}"
