"""load_config, redact_config and dictionaries: what works as in pgmonkey 4.0."""

from __future__ import annotations

import os
import traceback
import warnings

import psycopg
import pytest

from pgmonkey import PGConnectionManager
from pgmonkey.config.explain import explain
from pgmonkey.config.interpolation import LoadOptions
from pgmonkey.config.legacy import load_config, load_dict
from pgmonkey.config.loader import load_file
from pgmonkey.config.models import POOL_SECTIONS
from pgmonkey.config.redaction import redact_config
from pgmonkey.errors import ConfigError, EnvInterpolationError
from tests.kit.dictionaries import config_from_dict


@pytest.fixture
def file(tmp_path):
    """Write a config file."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_what_load_config_returns_connects(database, file, canary, monkeypatch):
    """`psycopg.connect(**cfg["connection_settings"])` works, and printing shows no secret."""
    monkeypatch.setenv("PGMONKEY_TEST_PASSWORD", database.password)
    path = file(f"""\
connection_type: 'normal'
connection_settings:
  user: '{database.user}'
  password: '${{PGMONKEY_TEST_PASSWORD}}'
  host: '${{PGMONKEY_TEST_HOST:-{database.host}}}'
  port: '{database.port}'
  dbname: '{database.name}'
  sslcert: ''
  connect_timeout: '10'
  keepalives: 1
  autocommit: false
pool_settings: {{min_size: 5, max_size: '20', timeout: 30, check_on_checkout: false}}
""")
    config = load_config(path, resolve_env=True)
    with psycopg.connect(**config["connection_settings"]) as conn:
        assert conn.autocommit is False
    assert config["pool_settings"] == {
        "min_size": 5, "max_size": 20, "timeout": 30, "check_on_checkout": False,
    }  # fmt: skip
    for shown in (config, config["connection_settings"]):
        canary.check(f"{shown} {shown!r}")
        assert isinstance(shown, dict)
    assert redact_config(config)["connection_settings"]["password"] == "***REDACTED***"
    assert config["connection_settings"]["sslcert"] == ""


def test_without_resolve_env_references_stay_verbatim(file):
    """As before: nothing is looked up."""
    config = load_config(
        file("connection_settings: {port: '${P:-1}', password: {from_file: /x}, host: '${H}'}")
    )
    assert config["connection_settings"] == {
        "port": "${P:-1}", "password": {"from_file": "/x"}, "host": "${H}",
    }  # fmt: skip


def test_unknown_keys_and_nulls_stay(file):
    """load_config says what the file says."""
    assert load_config(
        file("mine: {a: [b, ~]}\nconnection_settings: {sslmode: ~, x: y}\npool_settings:")
    ) == {
        "mine": {"a": ["b", None]},
        "connection_settings": {"sslmode": None, "x": "y"},
        "pool_settings": None,
    }


def test_a_missing_variable_names_itself_the_key_and_the_file(file):
    """EnvInterpolationError itself is raised, for all missing ones at once."""
    path = file(
        "connection_settings:\n  password: ${PGMONKEY_TEST_NO}\n  host: ${PGMONKEY_TEST_NOT}\n"
    )
    for attempt in (
        lambda: load_config(path, resolve_env=True),
        lambda: load_file(path, isolate=False),
    ):
        with pytest.raises(EnvInterpolationError) as caught:
            attempt()
        for part in (
            "PGMONKEY_TEST_NO ",
            "PGMONKEY_TEST_NOT",
            "connection_settings.password",
            str(path),
        ):
            assert part in str(caught.value)


def test_a_missing_secret_file_is_an_interpolation_error(file):
    """At load, naming file and key."""
    with pytest.raises(EnvInterpolationError, match=r"connection_settings.password.*no/such"):
        load_config(file("connection_settings: {password: {from_file: no/such}}"), resolve_env=True)


def test_a_default_on_a_password_is_refused_unless_allowed(file, monkeypatch):
    """Refused when it would be used; with the variable set the file works as it did."""
    path = file("connection_settings: {password: '${PGMONKEY_TEST_PW:-dev}'}")
    with pytest.raises(EnvInterpolationError, match="default is not allowed"):
        load_config(path, resolve_env=True)
    config = load_config(path, resolve_env=True, allow_sensitive_defaults=True)
    assert config["connection_settings"]["password"] == "dev"
    monkeypatch.setenv("PGMONKEY_TEST_PW", "set")
    assert load_config(path, resolve_env=True)["connection_settings"]["password"] == "set"


@pytest.mark.parametrize("key", ["sslrootcert", "sslcert", "sslkey"])
def test_paths_of_tls_files_may_have_a_default_in_a_registry_only(file, key):
    """In the older API they count as the other sensitive keys."""
    path = file(
        f"connection_settings: {{host: h, dbname: d, user: u, {key}: '${{PGMONKEY_TEST_X:-no/such}}'}}"
    )
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert [problem.code for problem in caught.value.problems] == ["file.missing"]
    with pytest.raises(EnvInterpolationError, match="default is not allowed"):
        load_file(path, isolate=False)


def test_system_errors_pass_through(tmp_path):
    """FileNotFoundError and IsADirectoryError, as before; a pipe is refused, not waited for."""
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(IsADirectoryError):
        load_config(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(tmp_path / "pipe.yaml")


def test_what_is_no_mapping_is_a_config_error(file):
    """Empty, a list, no YAML: each with a problem."""
    for text, code in (("", "config.empty"), ("- a", "config.shape"), ("a: [", "config.syntax")):
        with pytest.raises(ConfigError) as caught:
            load_config(file(text))
        assert caught.value.problems[0].code == code


def test_the_old_wrapper_is_unwrapped_with_a_warning(file):
    """`postgresql:` around everything still works, and the warning points at the caller."""
    path = file("postgresql:\n  connection_settings: {host: db, port: x}\n")
    with pytest.warns(DeprecationWarning, match="postgresql: wrapper") as caught:
        with pytest.raises(ConfigError) as error:
            load_file(path, isolate=False)
    assert caught[0].filename == __file__
    assert (error.value.problems[0].line, error.value.problems[0].column) == (2, 41)
    with pytest.warns(DeprecationWarning, match="wrapper") as caught:
        assert load_config(file("postgresql: {connection_settings: {host: db}}")) == {
            "connection_settings": {"host": "db"}
        }
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="wrapper") as caught:
        load_dict(
            {"postgresql": {"connection_settings": {"host": "db"}}}, LoadOptions(isolate=False)
        )
    assert caught[0].filename == __file__


def test_dictionaries_may_hold_native_values(tmp_path):
    """Numbers, booleans, None and paths, as `yaml.safe_load` or a program gives them."""
    config = config_from_dict(
        {
            "connection_type": "pool",
            "connection_settings": {
                "host": "db", "port": 5432, "autocommit": True, "sslrootcert": tmp_path / "x",
                "sslmode": None, "keepalives": True, "connect_timeout": 2.5,
            },
            "pool_settings": {"min_size": 2, "timeout": 0.5, "name": "mine", "open": True},
            "sync_settings": {"lock_timeout": 10, "jit": False},
        }
    )  # fmt: skip
    kwargs = config.connect_kwargs("pool")
    assert kwargs == {
        "host": "db", "port": "5432", "autocommit": True, "sslrootcert": str(tmp_path / "x"),
        "keepalives": "1", "connect_timeout": "3", "prepare_threshold": 5,
        "options": "-c lock_timeout=10 -c jit=false",
        "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }  # fmt: skip
    assert (config.connection_type, config.pool("pool").timeout) == ("pool", 0.5)


@pytest.mark.parametrize(
    "config, code",
    [
        ({}, "config.required"),
        ({"connection_settings": {"host": object()}}, "config.type"),
        ({"connection_settings": {"host": b"db"}}, "config.type"),
        ({"connection_settings": {1: "db"}}, "config.key"),
        ({"connection_settings": {"host": "a\0b"}}, "config.nul"),
        ({"connection_settings": {"host": "\ud800"}}, "config.encoding"),
        ({"connection_settings": {"hosst": "a"}}, "config.unknown_key"),
        ({"connection_settings": {"sslkey": "-----BEGIN KEY-----\nx"}}, "file.not_a_path"),
        ([], "config.shape"),
    ],
)
def test_bad_dictionaries_give_problems(config, code):
    """Never another exception."""
    with pytest.raises(ConfigError) as caught:
        config_from_dict(config)
    assert caught.value.problems[0].code == code


def test_a_nested_dictionary_ends():
    """A dictionary that contains itself is refused."""
    config = {"connection_settings": {}}
    config["connection_settings"]["host"] = config
    with pytest.raises(ConfigError):
        config_from_dict(config)


def test_no_warning_without_a_wrapper(file):
    """Files of today warn of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_config(file("connection_settings: {host: db}"))


@pytest.mark.parametrize("resolve", [False, True])
def test_no_frame_of_ours_shows_a_secret(file, canary, resolve):
    """Tracebacks with locals are what rich and structlog print by default."""
    secret = canary.secret()
    text = f"connection_settings: {{password: '{secret}', port: x, host: '${{PGMONKEY_TEST_NO}}'}}"
    path = file(text)
    config = {"connection_settings": {"port": "x", "password": secret}}
    del text
    manager = PGConnectionManager()
    for attempt in (
        lambda: load_file(path, isolate=False, resolve=resolve),
        lambda: load_config(path, resolve_env=resolve),
        lambda: load_file(path),
        lambda: manager.get_database_connection_from_dict(config, resolve_env=resolve),
        lambda: manager.get_database_connection(path, "async", resolve_env=resolve),
    ):
        with pytest.raises((ConfigError, EnvInterpolationError)) as caught:
            attempt()
        error = caught.value
        while error is not None:
            frames = traceback.StackSummary.extract(
                traceback.walk_tb(error.__traceback__), capture_locals=True
            )
            ours = [frame for frame in frames if "/pgmonkey/" in frame.filename]
            canary.check(str(error) + repr([frame.locals for frame in ours]))
            error = error.__context__


def test_is_current_sees_changes_and_forgives_a_removed_file(file, monkeypatch):
    """What a cached call asks: file, variable, secret as they were; a removed file changes nothing."""
    monkeypatch.setenv("PGMONKEY_TEST_HOST", "one")
    path = file("connection_settings: {host: '${PGMONKEY_TEST_HOST}', password: {from_file: pw}}")
    secret = path.with_name("pw")
    secret.write_text("tea")
    config = load_file(path, isolate=False)
    assert config.is_current()
    monkeypatch.setenv("PGMONKEY_TEST_HOST", "two")
    assert not config.is_current()
    monkeypatch.setenv("PGMONKEY_TEST_HOST", "one")
    secret.write_text("cup")
    assert not config.is_current()
    secret.write_text("tea")
    assert config.is_current()
    content = path.read_text()
    path.write_text(content + "#")
    assert not config.is_current()
    path.write_text(content)
    assert config.is_current()
    path.unlink()
    assert config.is_current()


KWARGS = {"autocommit": "true", "prepare_threshold": "null", "row_factory": "dict_row"}


@pytest.mark.parametrize("sections", [["pool_settings"], ["async_pool_settings"], POOL_SECTIONS])
def test_kwargs_of_a_pool_are_settings_of_the_database(file, sections):
    """What psycopg_pool passed on to psycopg in 4.0; the same in both sections, or beside it, is fine."""
    text = "".join(f"  {key}: {value}\n" for key, value in KWARGS.items())
    inside = text.replace("  ", "    ")
    path = file(
        "connection_settings:\n  host: db\n  dbname: d\n  user: u\n  autocommit: true\n"
        + "".join(f"{section}:\n  kwargs:\n{inside}  max_size: 3\n" for section in sections)
    )
    config = load_file(path)
    assert (config.autocommit, config.prepare_threshold) == (True, None)
    assert config.psycopg_settings == {"row_factory": "dict_row"}
    sources = {one.key: (one.source.line, one.source.column) for one in explain(config)}
    assert sources["connection_settings.autocommit"] == (5, 15)
    assert sources["connection_settings.prepare_threshold"] == (9, 24)
    assert sources["connection_settings.row_factory"] == (10, 18)
    assert config.pool("pool" if "pool_settings" in sections else "async_pool").max_size == 3
    assert load_config(path)[sections[0]]["kwargs"] == {
        "autocommit": True, "prepare_threshold": None, "row_factory": "dict_row",
    }  # fmt: skip
    same = load_file(
        file(f"connection_settings:\n  host: db\n  dbname: d\n  user: u\n{text}"), isolate=False
    )
    assert same.connection_settings == config.connection_settings


@pytest.mark.parametrize("own, inside", [("null", "true"), ("true", "null")])
def test_a_null_beside_kwargs_of_a_pool_or_in_it_is_absent(file, own, inside):
    """It is no other value of the setting."""
    path = file(
        f"connection_settings: {{host: db, dbname: d, user: u, autocommit: {own}}}\n"
        f"pool_settings: {{kwargs: {{autocommit: {inside}}}}}"
    )
    assert load_file(path).autocommit is True


def test_a_reference_in_kwargs_of_a_pool_is_resolved(file, monkeypatch):
    """A problem of its value says where it is in the file, and where the value comes from."""
    monkeypatch.setenv("AUTOCOMMIT", "sometimes")
    path = file(
        "connection_settings: {host: db, dbname: d, user: u}\n"
        "pool_settings: {kwargs: {autocommit: '${AUTOCOMMIT}'}}"
    )
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (2, "pool_settings.kwargs.autocommit")
    assert "the variable AUTOCOMMIT" in problem.message
    monkeypatch.setenv("AUTOCOMMIT", "on")
    assert load_file(path).autocommit is True
