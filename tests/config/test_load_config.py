"""Configuration files, through the API of 4.0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgmonkey import ConfigError, PGConnectionManager, load_config
from tests.kit import TemporaryDatabase
from tests.kit.manager import TYPES, Write, ask, declare
from tests.recipes.recipe import plain_environment


@pytest.mark.parametrize("connection_type", TYPES)
def test_interpolated_numbers_and_booleans_have_their_types(
    write: Write, connection_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`min_size` 5 is less than `max_size` 20, times are numbers, and `false` is false, wherever they come from."""
    for name, value in {
        "POOL_MIN": "5",
        "POOL_MAX": "20",
        "LIFETIME": "3600",
        "TIMEOUT": "7s",
        "CHECK": "false",
        "AUTOCOMMIT": "false",
    }.items():
        monkeypatch.setenv(name, value)
    sizes = {
        "min_size": "${POOL_MIN}",
        "max_size": "${POOL_MAX}",
        "max_lifetime": "${LIFETIME}",
        "timeout": "${TIMEOUT}",
        "check_on_checkout": "${CHECK}",
    }
    config = write(
        connection={"autocommit": "${AUTOCOMMIT}"}, pool_settings=sizes, async_pool_settings=sizes
    )

    with pytest.raises(psycopg.errors.ActiveSqlTransaction):
        ask(config, connection_type, ["SELECT 1", "VACUUM pg_type"], resolve_env=True)
    settings = load_config(config, resolve_env=True)["pool_settings"]
    assert settings == {
        "min_size": 5,
        "max_size": 20,
        "max_lifetime": 3600.0,
        "timeout": 7.0,
        "check_on_checkout": False,
    }


@pytest.mark.parametrize(
    "text, said",
    [
        ("connection_settings: {host: h}\npool_setting: {}\n", 'did you mean "pool_settings"'),
        ("connection_settings: {host: h}\npool_settings: {min_sise: 1}\n", '"min_size"'),
        (
            "connection_settings: {host: h}\npool_settings: {min_size: 5, max_size: 2}\n",
            "min_size",
        ),
        ("connection_settings: {host: h}\npool_settings: [1]\n", "mapping"),
        ("connection_settings: {host: h, statement_timeout: 1s}\n", "statement_timeout"),
        ("connection_settings: [h]\n", "mapping"),
        ("connection_settings:\n", "connection_settings"),
        ("pool_settings: {max_size: 2}\n", "connection_settings"),
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("- a\n- b\n", "list"),
        ("just text\n", "mapping"),
        ("connection_settings: {host: a, host: b}\n", "host"),
        ("connection_settings:\n  host: 'a\n", "line|quot"),
        ("connection_type: Pool\nconnection_settings: {host: h}\n", "connection_type|normal"),
    ],
)
@pytest.mark.parametrize("connection_type", ["normal", "async_pool"])
def test_a_bad_file_is_one_error_that_names_file_and_place(
    tmp_path: Path, text: str, said: str, connection_type: str
) -> None:
    """A ConfigError, never a bare KeyError or TypeError; no mistake is ignored."""
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError, match=said) as caught:
        PGConnectionManager().get_database_connection(path, connection_type)

    assert isinstance(caught.value, ValueError), "4.0 raised ValueError for sizes and types"
    assert str(path) in str(caught.value)
    problem = caught.value.problems[0]
    assert problem.line is not None or problem.code in ("config.empty", "config.required")


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    """One error lists every problem of the file."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "connection_settings:\n  hosst: a\n  port: many\npool_settings: {min_size: no}\n"
        "polo_settings: {}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        PGConnectionManager().get_database_connection(path)

    assert [one.line for one in caught.value.problems] == [2, 3, 4, 5]


def test_scalars_are_what_they_look_like(tmp_path: Path) -> None:
    """No octal, no underscores, no sexagesimal numbers, no `yes`; duplicates are refused."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "connection_settings:\n"
        "  password: 0123\n  user: yes\n  dbname: 1_000\n  application_name: 12:30:45\n",
        encoding="utf-8",
    )
    assert load_config(path)["connection_settings"] == {
        "password": "0123",
        "user": "yes",
        "dbname": "1_000",
        "application_name": "12:30:45",
    }


def test_a_file_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """A name with an umlaut is read in a C locale too."""
    path = tmp_path / "config.yaml"
    path.write_text("connection_settings: {application_name: größe}\n", encoding="utf-8")
    program = (
        "from pgmonkey import load_config\n"
        "name = load_config('config.yaml')['connection_settings']['application_name']\n"
        "assert name == 'gr\\u00f6\\u00dfe', ascii(name)\n"
    )
    environ = plain_environment() | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_secret_files_are_relative_to_their_configuration(
    tmp_path: Path, database: TemporaryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`from_file: password` lies beside the file, wherever the program was started."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "password").write_text(f"{database.password}\n", encoding="utf-8")
    config = declare(tmp_path, database, connection={"password": {"from_file": "password"}})
    monkeypatch.chdir(tmp_path / "elsewhere")

    for path in (config, Path(os.pardir, config.name)):
        (found,) = ask(path, "normal", ["SELECT 1"], resolve_env=True)
        assert found == (1,)


def test_sections_beside_the_old_wrapper_are_not_thrown_away(tmp_path: Path) -> None:
    """Sections beside `postgresql:` are read."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "postgresql:\n  connection_settings: {host: h}\npool_settings: {max_size: 3}\n",
        encoding="utf-8",
    )
    with pytest.warns(DeprecationWarning, match="postgresql"):
        config: dict[str, Any] = load_config(path)

    assert config["connection_settings"] == {"host": "h"}
    assert config["pool_settings"] == {"max_size": 3}


def test_the_wheels_own_places_hold_nothing_but_the_package() -> None:
    """The wheel requires no CSV library."""
    import tomllib

    from tests.docs.snippets import ROOT

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not any(name in " ".join(project["dependencies"]) for name in ("chardet", "tqdm"))
