"""`pgmonkey pgconfig` as written in the recipes of 4.0, with exit codes that mean something."""

from __future__ import annotations

import os
import re
import runpy
import stat
import sys
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgmonkey import load_config
from tests.kit import Canary, ChaosProxy, TemporaryDatabase
from tests.kit.command import Finished, in_this_process, invoke, run
from tests.kit.server import PostgresServer

TYPES = ["normal", "pool", "async", "async_pool"]
LIBRARIES = ["pgmonkey", "pgmonkey-4.0", "psycopg"]


def _write(path: Path, database: TemporaryDatabase, **more: Any) -> Path:
    """Write a config file of a database that is there."""
    settings = database.parameters() | more.pop("connection", {})
    content = {"connection_type": "normal", "connection_settings": settings, **more}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    path.chmod(0o600)
    return path


def execute(text: str, path: Path, *, canary: Canary, env: Mapping[str, str]) -> Finished:
    """Run a generated program in this process."""
    path.write_text(text, encoding="utf-8")
    with in_this_process(canary=canary, cwd=path.parent, env=env) as (out, err):
        runpy.run_path(str(path), run_name="__main__")
    return Finished(0, out.getvalue(), err.getvalue())


@pytest.fixture
def config(tmp_path: Path, database: TemporaryDatabase) -> Path:
    """A config file of a database that is there."""
    return _write(tmp_path / "config.yaml", database)


def test_create_writes_for_the_owner_alone(tmp_path: Path, canary: Canary) -> None:
    """The new file is valid, has mode 0600 whatever the umask, and its directory is made."""
    path = tmp_path / "new one" / "config.yaml"
    before = os.umask(0)
    try:
        done = invoke("pgconfig", "create", "--type", "pg", "--filepath", path, canary=canary)
    finally:
        os.umask(before)
    assert done.code == 0
    assert f"pgmonkey pgconfig test --connconfig '{path}'\n" in done.out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_config(path)["connection_settings"]["dbname"] == "mydatabase"


def test_create_never_overwrites(config: Path, canary: Canary) -> None:
    """An existing file is left as it is, with a message and code 1."""
    before = config.read_bytes()
    done = invoke("pgconfig", "create", "--connconfig", config, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"{config} exists already and was left as it is\n"
    assert config.read_bytes() == before


def test_create_does_not_follow_a_dangling_link(tmp_path: Path, canary: Canary) -> None:
    """A link that points nowhere is something that is there: nothing is written through it."""
    link = tmp_path / "config.yaml"
    link.symlink_to(tmp_path / "elsewhere")
    assert invoke("pgconfig", "create", "--filepath", link, canary=canary).code == 1
    assert not (tmp_path / "elsewhere").exists()


def test_create_says_why_it_cannot(tmp_path: Path, canary: Canary) -> None:
    """A place that cannot be written to is named with the reason, with code 1."""
    (tmp_path / "file").touch()
    done = invoke("pgconfig", "create", "--filepath", tmp_path / "file" / "x.yaml", canary=canary)
    assert done.code == 1
    assert re.fullmatch(r".*file(/x\.yaml)?: (File exists|Not a directory)\n", done.err)


@pytest.mark.parametrize("connection_type", TYPES)
def test_a_config_is_tried_on_the_server(
    connection_type: str, config: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """`test` connects as each type and says version, place, user, TLS, and the time it took."""
    done = invoke(
        "pgconfig", "test", "--connconfig", config, "--connection-type", connection_type,
        canary=canary,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert f"a connection of type {connection_type} works" in done.out
    assert re.search(rf"PostgreSQL \d+\.\d+ at {database.host}:{database.port}\n", done.out)
    assert database.user in done.out
    assert "tls           none: the connection is not encrypted" in done.out
    assert re.search(r"connected in  \d+\.\d ms", done.out)
    assert ("opened; 1 to 10 connections" in done.out) == connection_type.endswith("pool")


def test_the_type_of_the_file_is_the_default(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """Without `--connection-type` the file decides."""
    path = _write(tmp_path / "config.yaml", database, connection_type="async_pool")
    done = invoke("pgconfig", "test", "--filepath", path, canary=canary)
    assert "a connection of type async_pool works" in done.out


@pytest.mark.parametrize("connection_type", ["pool", "async"])
def test_the_rows_of_the_application_do_not_matter(
    connection_type: str, tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """The answer of the server is understood, whatever `row_factory` makes of rows elsewhere."""
    path = _write(tmp_path / "config.yaml", database, connection={"row_factory": "dict_row"})
    arguments = ("--connection-type", connection_type)
    done = invoke("pgconfig", "test", "--filepath", path, *arguments, canary=canary)
    assert (done.code, done.err) == (0, "")
    assert f"  user          {database.user}\n  tls" in done.out
    assert "  transactions  read-write\n" in done.out


@pytest.mark.parametrize("connection_type", TYPES)
def test_a_wrong_password_is_exit_code_4(
    connection_type: str, tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """For pools too, a refused login is the server's reason and code 4, within a moment."""
    path = _write(tmp_path / "config.yaml", database, connection={"password": canary.secret()})
    began = time.monotonic()
    done = invoke(
        "pgconfig", "test", "--connconfig", path, "--connection-type", connection_type,
        canary=canary,
    )  # fmt: skip
    assert (done.code, done.out) == (4, "")
    assert "password authentication failed" in done.err
    assert "[auth]" in done.err
    assert re.fullmatch(r"config: cannot connect: .*\n  hint: .*\n", done.err)
    assert time.monotonic() - began < 20  # a pool waits for 30 s


def test_a_failure_is_two_lines_in_a_process_too(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """No event and no warning is written beside the error, where no log is configured."""
    path = _write(tmp_path / "config.yaml", database, connection={"password": canary.secret()})
    done = run(
        "pgconfig", "test", "--connconfig", path, "--connection-type", "async_pool", canary=canary
    )
    assert (done.code, done.out) == (4, "")
    assert re.fullmatch(r"config: cannot connect: .*\n  hint: .*\n", done.err)


@pytest.mark.parametrize("connection_type", TYPES)
def test_no_server_is_exit_code_4(
    connection_type: str,
    tmp_path: Path,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    canary: Canary,
) -> None:
    """A refused connection is reported at once, not after the pool's timeout, with code 4."""
    proxy.set("refuse")
    path = _write(tmp_path / "config.yaml", database, connection={"port": proxy.port})
    began = time.monotonic()
    done = invoke(
        "pgconfig", "test", "--connconfig", path, "--connection-type", connection_type,
        canary=canary,
    )  # fmt: skip
    assert done.code == 4
    assert "[refused]" in done.err
    assert time.monotonic() - began < 20  # a pool waits for 30 s


def test_a_refused_session_setting_is_named(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """A setting that the server does not know fails the connection by its name."""
    path = _write(tmp_path / "config.yaml", database, sync_settings={"no_such_setting": "1"})
    done = invoke("pgconfig", "test", "--connconfig", path, canary=canary)
    assert done.code == 4
    assert "no_such_setting" in done.err


def test_problems_of_the_file_are_exit_code_1(tmp_path: Path, canary: Canary) -> None:
    """What is wrong in a file is a line with a place and a hint, then a summary, with code 1."""
    path = tmp_path / "config.yaml"
    path.write_text("connection_settings:\n  hots: x\npool_settings: {max_sise: 3}\n")
    done = invoke("pgconfig", "test", "--connconfig", path, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert f"{path}:2:" in done.err
    assert "hint: " in done.err
    assert done.err.endswith("2 problems in 1 file\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["test"],
        ["generate-code"],
        *(
            ["generate-code", "--connection-type", "pool", "--library", library]
            for library in LIBRARIES
        ),
    ],
    ids=" ".join,
)
def test_a_missing_file_is_exit_code_1(
    arguments: list[str], tmp_path: Path, canary: Canary
) -> None:
    """A file that is not there is named, with code 1."""
    done = invoke("pgconfig", *arguments, "--connconfig", tmp_path / "no.yaml", canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"{tmp_path / 'no.yaml'}: No such file or directory\n"


def _with_references(path: Path, database: TemporaryDatabase) -> dict[str, str]:
    """Write a file as in the recipes; return the environment that it needs."""
    path.write_text(
        "connection_type: 'normal'\n"
        "connection_settings:\n"
        "  user: '${APP_USER:-postgres}'\n"
        "  password: '${APP_PASSWORD}'\n"
        "  host: '${APP_HOST:-localhost}'\n"
        "  port: '${APP_PORT:-5432}'\n"
        "  dbname: '${APP_DB:-mydb}'\n"
        "pool_settings: {min_size: '${APP_MIN:-1}', max_size: 2, check_on_checkout: true}\n"
        "async_pool_settings: {min_size: '${APP_MIN:-1}', max_size: 2, check_on_checkout: true}\n"
        "sync_settings: {statement_timeout: 7s}\n"
        "async_settings: {statement_timeout: 7s}\n",
        encoding="utf-8",
    )
    return {
        "APP_USER": database.user,
        "APP_PASSWORD": database.password,
        "APP_HOST": database.host,
        "APP_PORT": str(database.port),
        "APP_DB": database.name,
    }


@pytest.mark.parametrize("connection_type", TYPES)
def test_references_are_resolved_when_asked(
    connection_type: str, tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """With `--resolve-env` the variables and defaults of the recipes work for every type."""
    path = tmp_path / "config.yaml"
    env = _with_references(path, database)
    done = invoke(
        "pgconfig", "test", "--connconfig", path, "--resolve-env",
        "--connection-type", connection_type, canary=canary, env=env,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("connection_type", ["pool", "async"])
def test_variables_may_come_from_an_env_file(
    connection_type: str, tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """With `--resolve-env`; the environment stays as it is."""
    path, env_file = tmp_path / "config.yaml", tmp_path / ".env"
    env = _with_references(path, database)
    env_file.write_text("".join(f"{name}='{value}'\n" for name, value in env.items()))
    done = invoke(
        "--env-file", env_file, "pgconfig", "test", "--connconfig", path, "--resolve-env",
        "--connection-type", connection_type, canary=canary,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "APP_PASSWORD" not in os.environ


def test_references_that_are_not_resolved_are_reported(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """Without `--resolve-env` the hint names the option, not only the argument of the library."""
    path = tmp_path / "config.yaml"
    env = _with_references(path, database)
    done = invoke("pgconfig", "test", "--connconfig", path, canary=canary, env=env)
    assert done.code == 1
    assert "pass --resolve-env" in done.err


def test_an_unset_variable_is_named(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """A variable without value and default is named with key and file, with code 1."""
    path = tmp_path / "config.yaml"
    env = _with_references(path, database)
    del env["APP_PASSWORD"]
    done = invoke("pgconfig", "test", "--connconfig", path, "--resolve-env", canary=canary, env=env)
    assert done.code == 1
    assert "APP_PASSWORD" in done.err
    assert "connection_settings.password" in done.err
    assert str(path) in done.err


def test_a_default_for_a_password_must_be_allowed(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """A default on a sensitive key is refused, unless `--allow-sensitive-defaults` is given."""
    path = tmp_path / "config.yaml"
    env = _with_references(path, database)
    del env["APP_PASSWORD"]
    text = path.read_text().replace("${APP_PASSWORD}", f"${{APP_PASSWORD:-{database.password}}}")
    path.write_text(text)
    arguments = ("pgconfig", "test", "--connconfig", path, "--resolve-env")
    assert invoke(*arguments, canary=canary, env=env).code == 1
    allowed = invoke(*arguments, "--allow-sensitive-defaults", canary=canary, env=env)
    assert (allowed.code, allowed.err) == (0, "")


@pytest.mark.parametrize("resolve", [False, True], ids=["plain", "resolve-env"])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("connection_type", TYPES)
def test_generated_programs_run_as_they_are(
    connection_type: str,
    library: str,
    resolve: bool,
    tmp_path: Path,
    config: Path,
    database: TemporaryDatabase,
    server: PostgresServer,
    canary: Canary,
) -> None:
    """Standard output is a program and nothing else; it asks the server and ends with code 0."""
    env = _with_references(config, database) if resolve else {}
    made = invoke(
        "pgconfig", "generate-code", "--connconfig", config, "--connection-type", connection_type,
        "--library", library, *(["--resolve-env"] if resolve else []),
        canary=canary,
    )  # fmt: skip
    assert (made.code, made.err) == (0, "")
    ended = execute(made.out, tmp_path / "program.py", canary=canary, env=env)
    assert (ended.code, ended.err) == (0, "")
    (version,) = server.execute("SELECT version()")[0]
    assert str(version) in ended.out


def test_generated_programs_of_pools_end(tmp_path: Path, config: Path, canary: Canary) -> None:
    """Every warning is an error, and a process that has run them ends with code 0 and no warning."""
    programs = []
    for connection_type, library in product(["pool", "async_pool"], LIBRARIES):
        made = invoke(
            "pgconfig", "generate-code", "--connconfig", config, "--library", library,
            "--connection-type", connection_type, canary=canary,
        )  # fmt: skip
        programs.append(tmp_path / f"{connection_type} of {library}.py")
        programs[-1].write_text(made.out, encoding="utf-8")
    one_by_one = (
        "import runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    runpy.run_path(path, run_name='__main__')\n"
    )
    ended = run(
        canary=canary, cwd=tmp_path,
        program=[sys.executable, "-X", "dev", "-W", "error", "-c", one_by_one, *map(str, programs)],
    )  # fmt: skip
    # asyncio's debug mode says that a loaded machine was slow: that is no warning.
    err = re.sub(r"^Executing <.*> took \S+ seconds\n", "", ended.err, flags=re.MULTILINE)
    assert (ended.code, err) == (0, "")
    assert ended.out.count("('PostgreSQL ") == len(programs)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_generated_program_may_accept_sensitive_defaults(
    library: str, tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """`--allow-sensitive-defaults` holds for the program; it does not hold the default."""
    path = tmp_path / "config.yaml"
    env = _with_references(path, database)
    del env["APP_PASSWORD"]
    path.write_text(
        path.read_text().replace("${APP_PASSWORD}", f"${{APP_PASSWORD:-{database.password}}}")
    )
    made = invoke(
        *("pgconfig", "generate-code", "--connconfig", path, "--resolve-env"),
        *("--library", library, "--allow-sensitive-defaults"),
        canary=canary,
    )
    assert (made.code, made.err) == (0, "")
    ended = execute(made.out, tmp_path / "program.py", canary=canary, env=env)
    assert (ended.code, ended.err) == (0, "")


def test_a_generated_program_is_of_the_type_that_a_reference_gives(
    tmp_path: Path, canary: Canary
) -> None:
    """With `--resolve-env` the type is resolved, though no secret is there; without, it is asked for."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "connection_type: ${CT:-normal}\nconnection_settings:"
        " {host: db, dbname: a, user: a, password: '${UNSET_PW}'}\n"
    )
    generate = ("pgconfig", "generate-code", "--library", "pgmonkey-4.0", "--connconfig", path)
    made = invoke(*generate, "--resolve-env", canary=canary)
    assert (made.code, made.err) == (0, "")
    assert "CONNECTION_TYPE: Final = 'normal'\n" in made.out
    made = invoke(*generate, "--resolve-env", canary=canary, env={"CT": "async_pool"})
    assert "CONNECTION_TYPE: Final = 'async_pool'\n" in made.out
    assert "RESOLVE_ENV: Final = True\n" in made.out
    # A registry resolves references anyway.
    made = invoke(*generate[:-1], path, "--library", "pgmonkey", canary=canary)
    assert "CONNECTION_TYPE: Final = 'normal'\n" in made.out
    made = invoke(*generate, "--resolve-env", canary=canary, env={"CT": "poool"})
    assert (made.code, made.out) == (1, "")
    assert "connection_type" in made.err
    made = invoke(*generate, canary=canary)
    assert (made.code, made.out) == (1, "")
    assert "--resolve-env" in made.err


def test_generated_code_names_no_value(
    config: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """A generated program holds the path of the file and nothing that is in it."""
    for library in LIBRARIES:
        made = invoke(
            "pgconfig", "generate-code", "--connconfig", config, "--library", library,
            canary=canary,
        )  # fmt: skip
        assert (repr(str(config)) in made.out) == (library != "pgmonkey")
        assert (f"REGISTRY: Final = {str(config.parent)!r}" in made.out) == (library == "pgmonkey")
        assert database.name not in made.out


@pytest.mark.parametrize("connection_type", TYPES)
def test_generated_psycopg_programs_apply_session_settings(
    connection_type: str, tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """The session settings of the file are in force in a generated psycopg program, lists too."""
    session = {"statement_timeout": "7s", "search_path": ["shop", "public"]}
    path = _write(tmp_path / "config.yaml", database, sync_settings=session, async_settings=session)
    made = invoke(
        "pgconfig", "generate-code", "--connconfig", path, "--connection-type", connection_type,
        "--library", "psycopg", canary=canary,
    )  # fmt: skip
    program = made.out.replace(
        "version()", "current_setting('statement_timeout'), current_setting('search_path')"
    )
    done = execute(program, tmp_path / "program.py", canary=canary, env={})
    assert done.out == "('7s', 'shop, public')\n"


@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_generated_psycopg_pools_take_the_kwargs_of_4_0(
    connection_type: str, tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """`kwargs` of a pool section are given to psycopg beside the connection settings."""
    pool = {"kwargs": {"prepare_threshold": 0}}  # each statement is prepared at once
    path = _write(tmp_path / "config.yaml", database, pool_settings=pool, async_pool_settings=pool)
    made = invoke(
        "pgconfig", "generate-code", "--connconfig", path, "--connection-type", connection_type,
        "--library", "psycopg", canary=canary,
    )  # fmt: skip
    prepared = "SELECT count(*) > 0 FROM pg_prepared_statements"
    program = made.out.replace("SELECT version()", prepared)
    done = execute(program, tmp_path / "program.py", canary=canary, env={})
    assert done.out == "(True,)\n"


def test_a_program_with_psycopg_is_for_a_file_that_it_takes(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """What `psycopg.connect` does not take is a problem when the program is made, not when it runs."""
    more = {"read_only": True, "row_factory": "dict_row"}
    path = _write(tmp_path / "config.yaml", database, connection=more)
    generate = ("pgconfig", "generate-code", "--connconfig", path, "--library")
    made = invoke(*generate, "psycopg", canary=canary)
    assert (made.code, made.out) == (1, "")
    assert "psycopg.connect does not take read_only, row_factory" in made.err
    assert "--library pgmonkey" in made.err
    for library in ("pgmonkey", "pgmonkey-4.0"):
        assert invoke(*generate, library, canary=canary).code == 0


def test_a_file_that_cannot_be_in_a_registry(tmp_path: Path, canary: Canary) -> None:
    """Its name says so, and so does the error: the API of 4.0 takes every name."""
    path = tmp_path / "My Config.yaml"
    path.write_text("connection_type: pool\nconnection_settings: {host: db}\n")
    made = invoke("pgconfig", "generate-code", "--connconfig", path, canary=canary)
    assert (made.code, made.out) == (1, "")
    assert "--library pgmonkey-4.0" in made.err
    generate = ("pgconfig", "generate-code", "--connconfig", path, "--library", "pgmonkey-4.0")
    assert f"CONFIG: Final = {str(path)!r}\n" in invoke(*generate, canary=canary).out


@pytest.mark.filterwarnings("ignore:.* the postgresql. wrapper is deprecated")
@pytest.mark.parametrize(
    "text, says",
    [
        ("postgresql:\n  connection_settings: {host: db, dbname: a, user: a}\n", "the old layout"),
        ("connection_settings: {host: db}\n", "dbname is required"),
    ],
)
def test_a_program_with_a_registry_is_for_a_file_that_it_takes(
    text: str, says: str, tmp_path: Path, canary: Canary
) -> None:
    """What only the API of 4.0 takes is a problem when the program is made, not when it runs."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    generate = ("pgconfig", "generate-code", "--connconfig", path)
    made = invoke(*generate, canary=canary)
    assert (made.code, made.out) == (1, "")
    assert f"{path}:1:1: " in made.err
    assert says in made.err
    assert "--library pgmonkey-4.0" in made.err
    made = invoke(*generate, "--library", "pgmonkey-4.0", canary=canary)
    assert (made.code, made.err) == (0, "")


def test_generate_code_for_a_broken_file(tmp_path: Path, canary: Canary) -> None:
    """No program is made for a file that is no config: code 1, nothing on standard output."""
    path = tmp_path / "config.yaml"
    path.write_text("connection_type: [\n")
    done = invoke("pgconfig", "generate-code", "--connconfig", path, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert str(path) in done.err
