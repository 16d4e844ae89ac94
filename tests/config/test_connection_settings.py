from __future__ import annotations

from functools import partial

import psycopg
import pytest
from psycopg import pq

from pgmonkey import load_config
from pgmonkey.config.libpq import keywords, option_settings, session_options
from pgmonkey.config.loader import load_file
from pgmonkey.config.redaction import Secret
from pgmonkey.errors import ConfigError
from tests.kit.dictionaries import config_from_dict

#: What ends the silence of a network.
SILENCE = ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")


@pytest.fixture
def load(tmp_path):
    """Load a database from its sections."""

    def load(connection="", rest="", **arguments):
        path = tmp_path / "orders.yaml"
        path.write_text(
            "connection_settings:\n  host: db.example\n  dbname: orders\n  user: app\n"
            + "".join(f"  {line}\n" for line in connection.splitlines())
            + rest
        )
        return load_file(path, **arguments)

    return load


def test_every_keyword_of_libpq_is_known():
    """The list is libpq's own, not one by hand."""
    assert set(keywords()) == {option.keyword.decode() for option in pq.Conninfo.get_defaults()}


def test_values_become_what_libpq_takes(load):
    """Flags are 0 and 1, durations are seconds, lists are commas."""
    kwargs = load(
        "port: 5433\nkeepalives: true\nkeepalives_idle: 60\nconnect_timeout: 1500ms"
    ).connect_kwargs("normal")
    assert kwargs["port"] == "5433"
    assert (kwargs["keepalives"], kwargs["keepalives_idle"]) == ("1", "60")
    assert kwargs["connect_timeout"] == "2"


@pytest.mark.parametrize(
    "line, value",
    [
        ("tcp_user_timeout: 1500", "1500"),
        ("tcp_user_timeout: 30s", "30000"),
        ("tcp_user_timeout: 0.3 s", "300"),
        ("tcp_user_timeout: 0", "0"),
        ("tcp_user_timeout: -1", "-1"),
        ("keepalives_idle: 45", "45"),
        ("keepalives_idle: 1min", "60"),
        ("keepalives_idle: 0", "0"),
        ("keepalives_interval: 1500ms", "2"),
    ],
)
def test_the_times_of_tcp_take_a_unit_or_are_what_libpq_takes(load, line, value):
    """A bare number has the unit of libpq: milliseconds for `tcp_user_timeout`, else seconds."""
    assert load(line).connect_kwargs("pool")[line.partition(":")[0]] == value


@pytest.mark.parametrize(
    "line, said",
    [
        ("tcp_user_timeout: 1.5", "expected an integer"),
        ("tcp_user_timeout: 100d", "expected an integer from -2147483648 to 2147483647"),
        ("tcp_user_timeout: 5m", '"m" is ambiguous'),
        ("keepalives_idle: soon", "expected a duration"),
    ],
)
def test_other_times_of_tcp_are_problems(load, line, said):
    """No number is guessed: what is neither an integer nor a duration is refused."""
    with pytest.raises(ConfigError, match=said):
        load(line)


def test_a_silent_network_has_a_limit_by_default(load):
    """The keepalives and the timeout of TCP have defaults, and each that is given wins."""

    def silence(connection=""):
        config = load(connection)
        shown = config.redacted()["connection_settings"]
        kwargs = config.connect_kwargs("pool")
        assert [kwargs.get(key) for key in SILENCE] == [shown.get(key) for key in SILENCE]
        return tuple(kwargs.get(key) for key in SILENCE)

    assert silence() == ("30", "10", "3", "30000")
    assert silence("keepalives_idle: 90") == ("90", "10", "3", "30000")
    assert silence("tcp_user_timeout: 0") == ("30", "10", "3", "0")
    assert silence("keepalives: off") == (None, None, None, "30000")
    assert silence("keepalives: on") == ("30", "10", "3", "30000")
    assert silence("hostaddr: 192.0.2.1") == ("30", "10", "3", "30000")


@pytest.mark.parametrize(
    "connection, has_one",
    [
        ("host: /run/postgresql", False),
        ("host: '@postgresql'", False),
        ("host: [/run/a, /run/b]", False),
        ("host: [/run/a, db.example]", True),
        ("host: /run/a, hostaddr: 192.0.2.1", True),
        ("service: orders", False),
    ],
)
def test_a_unix_socket_and_a_service_have_no_such_default(tmp_path, connection, has_one):
    """A Unix socket needs none, and ours would replace what the file of the service says."""
    path = tmp_path / "orders.yaml"
    path.write_text(f"connection_settings: {{{connection}, dbname: d, user: u}}")
    kwargs = load_file(path).connect_kwargs("pool")
    assert (kwargs.get("keepalives_idle"), kwargs.get("tcp_user_timeout")) == (
        ("30", "30000") if has_one else (None, None)
    )
    assert kwargs["connect_timeout"] == "10"


def test_a_list_of_hosts_is_one_value(tmp_path):
    """Hosts and ports may be lists."""
    path = tmp_path / "orders.yaml"
    path.write_text("connection_settings: {host: [a, '${B:-b}'], port: [1, 2], dbname: d, user: u}")
    kwargs = load_file(path).connect_kwargs("pool")
    assert (kwargs["host"], kwargs["port"]) == ("a,b", "1,2")


def test_defaults_of_a_connection(load):
    """connect_timeout 10 s, no autocommit, psycopg's prepare_threshold; none behind PgBouncer."""
    kwargs = load().connect_kwargs("normal")
    assert (kwargs["connect_timeout"], kwargs["autocommit"], kwargs["prepare_threshold"]) == (
        "10", False, 5,
    )  # fmt: skip
    assert load("", "pooler: pgbouncer\n").connect_kwargs("pool")["prepare_threshold"] is None
    assert load("prepare_threshold: null").connect_kwargs("pool")["prepare_threshold"] is None
    assert load("prepare_threshold: 0\nautocommit: on").connect_kwargs("pool")["autocommit"] is True


def test_defaults_of_pools(load):
    """1 to 10 connections, 30 s of patience, one worker; normal and async hold one connection."""
    config = load("", "timeout: 5\ncheck_on_checkout: true\nasync_pool_settings: {timeout: 2s}\n")
    pool = config.pool("pool")
    assert (pool.min_size, pool.max_size, pool.timeout, pool.num_workers) == (1, 10, 5, 1)
    assert (pool.reconnect_timeout, pool.max_idle, pool.max_lifetime) == (5, 600, 3600)
    assert (config.pool("async_pool").timeout, config.pool("async_pool").check_on_checkout) == (
        2,
        True,
    )
    for single in ("normal", "async"):
        assert (config.pool(single).min_size, config.pool(single).max_size) == (0, 1)
        assert (config.pool(single).timeout, config.pool(single).check_on_checkout) == (5, True)
    assert load().pool("pool").timeout == 30


@pytest.mark.parametrize(
    "sizes, expected",
    [("{min_size: 20}", (20, 20)), ("{max_size: 3}", (1, 3)), ("{min_size: 0}", (0, 10))],
)
def test_one_size_implies_the_other(load, sizes, expected):
    """A large min_size raises max_size; a max_size alone keeps one connection open."""
    pool = load("", f"pool_settings: {sizes}\n").pool("pool")
    assert (pool.min_size, pool.max_size) == expected


def test_values_from_references_are_typed(load, monkeypatch):
    """`min_size: ${N}` is a number, `autocommit: ${A}` a boolean: `false` is false."""
    for name, value in {"N": "5", "M": "20", "A": "false", "T": "1min"}.items():
        monkeypatch.setenv(f"PGMONKEY_TEST_{name}", value)
    config = load(
        "autocommit: '${PGMONKEY_TEST_A}'",
        "pool_settings: {min_size: '${PGMONKEY_TEST_N}', max_size: '${PGMONKEY_TEST_M}'}\n"
        "timeout: ${PGMONKEY_TEST_T}\n",
    )
    assert (config.pool("pool").min_size, config.pool("pool").max_size) == (5, 20)
    assert config.autocommit is False
    assert config.pool("normal").timeout == 60


@pytest.mark.parametrize(
    "line, origin",
    [
        ("port: ${A_PORT}", "the variable A_PORT"),
        ("port: ${NO_PORT:-${A_PORT}}", "the variable A_PORT"),
        ("port: ${A_PORT:-${B_PORT}}", "the variable A_PORT"),
        ("port: ${A_PORT}${B_PORT}", "the variables A_PORT and B_PORT"),
        ("port: {from_env: A_PORT}", "the variable A_PORT"),
        ("host: ['${A_URL}', {from_file: port}]", "the variable A_URL and the file port"),
        ("port: {from_file: '${A_DIRECTORY}/port'}", "the file ${A_DIRECTORY}/port"),
        ("sslmode: ${EMPTY}m", "the variable EMPTY"),
    ],
)
@pytest.mark.parametrize("api", [load_file, partial(load_config, resolve_env=True)])
def test_a_wrong_value_from_outside_is_not_shown(tmp_path, monkeypatch, line, origin, api):
    """The problem names the variable or the file that the value came from."""
    for name, value in {
        "A_PORT": "hunter",
        "B_PORT": "rabbit",
        "A_DIRECTORY": str(tmp_path),
        "EMPTY": "",
        "A_URL": "http://hunter",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "port").write_text("hunter\n")
    path = tmp_path / "orders.yaml"
    host = "" if line.startswith("host") else "  host: db\n"
    path.write_text(f"connection_settings:\n{host}  dbname: o\n  user: app\n  {line}\n")
    with pytest.raises(ConfigError) as caught:
        api(path)
    (problem,) = caught.value.problems
    assert "hunter" not in problem.message
    assert problem.message.endswith(f"; the value comes from {origin}")


def test_a_tls_file_from_outside_names_where_its_path_came_from(load, monkeypatch):
    """The path itself is not shown."""
    monkeypatch.setenv("A_CERTIFICATE", "/nowhere/hunter.crt")
    with pytest.raises(ConfigError) as caught:
        load("sslrootcert: ${A_CERTIFICATE}")
    (problem,) = caught.value.problems
    assert problem.message == (
        "the file that sslrootcert names does not exist; the value comes from the variable A_CERTIFICATE"
    )


def test_session_settings_are_escaped():
    """Backslashes and white space, as the server's parser of options has it."""
    assert session_options([("a", "x y"), ("b", "\\\t")]) == "-c a=x\\ y -c b=\\\\\\\t"


@pytest.mark.parametrize(
    "options, names",
    [
        ("-c geqo=off", {"geqo"}),
        ("-cgeqo=off --statement-timeout=5s", {"geqo", "statement_timeout"}),
        ("-c Search_Path=a\\ -c\\ b=c -c x.y=1", {"search_path", "x.y"}),
        ("-B 16", set()),
        ("-c", {""}),
    ],
)
def test_the_settings_inside_options_are_found(options, names):
    """In the three spellings that the server knows."""
    assert option_settings(options) == names


@pytest.mark.parametrize("connection_type", ["normal", "async"])
def test_session_settings_reach_the_server_as_written(database, tmp_path, connection_type):
    """Through `options`, so that a list is a list, blanks stay, and a rollback keeps them."""
    hostile = "a b\\c'd\"e\tf;--"
    side = "async" if connection_type == "async" else "sync"
    config = config_from_dict(
        {
            "connection_settings": database.parameters(options="-c geqo=off"),
            f"{side}_settings": {
                "search_path": "app, public",
                "my.setting": hostile,
                "statement_timeout": "30s",
                "lock_timeout": 10000,
                "jit": False,
            },
        }
    )
    with psycopg.connect(**config.connect_kwargs(connection_type)) as conn:
        conn.rollback()

        def show(name):
            return conn.execute("SELECT current_setting(%s)", [name]).fetchone()[0]

        assert show("my.setting") == hostile
        assert show("statement_timeout") == "30s"
        assert (show("lock_timeout"), show("jit"), show("geqo")) == ("10s", "off", "off")
        conn.execute("CREATE SCHEMA app")
        assert conn.execute("SELECT current_schemas(false)").fetchone()[0] == ["app", "public"]
        conn.rollback()


def test_a_setting_that_the_server_rejects_fails_the_connection_by_name(database):
    """The server's reason names the setting."""
    config = config_from_dict(
        {
            "connection_settings": database.parameters(),
            "sync_settings": {"statement_timeut": "1s"},
        }
    )
    with pytest.raises(psycopg.OperationalError, match="statement_timeut"):
        psycopg.connect(**config.connect_kwargs("normal"))


def test_settings_of_the_other_side_are_not_sent(load):
    """sync_settings belong to normal and pool, async_settings to async and async_pool."""
    config = load("", "sync_settings: {geqo: off}\nasync_settings: {jit: off}\n")
    for connection_type, expected in {
        "normal": "-c geqo=off", "pool": "-c geqo=off",
        "async": "-c jit=off", "async_pool": "-c jit=off",
    }.items():  # fmt: skip
        assert config.connect_kwargs(connection_type)["options"] == expected


def test_a_null_setting_is_none(load):
    """A key without a value is as good as no key."""
    config = load("sslmode:", "sync_settings:\n  geqo:\n  jit: off\npool_settings:\n")
    assert config.connect_kwargs("pool")["options"] == "-c jit=off"
    assert config.connect_kwargs("pool")["sslmode"] == "prefer"


def test_a_tls_file_is_relative_to_the_config_and_part_of_the_digest(load, tmp_path):
    """A renewed certificate is a changed config."""
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\none\n")
    first = load("sslrootcert: ca.crt\nsslmode: verify-full")
    assert first.connect_kwargs("pool")["sslrootcert"] == str(tmp_path / "ca.crt")
    assert first.watched_directories == {str(tmp_path)}
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\ntwo\n")
    second = load("sslrootcert: ca.crt\nsslmode: verify-full")
    assert first.connect_digest != second.connect_digest
    assert first.changed_keys(second) == {"connection_settings.sslrootcert": "reconnect"}
    assert load("sslrootcert: system\nsslmode: verify-full").watched_directories == frozenset()


def test_secrets_are_secrets_and_paths_are_not_scrubbed(load, tmp_path, canary):
    """Only real secrets are for scrubbing: a path in an error helps."""
    (tmp_path / "ca.crt").write_text("CERTIFICATE-----")
    password = canary.secret(hostile=False)
    config = load(f"password: '{password}'\nsslrootcert: ca.crt")
    assert config.secrets == (Secret(password),)
    shown = config.redacted()["connection_settings"]
    assert shown["password"] == shown["sslrootcert"] == "***REDACTED***"
    canary.check(repr(config) + repr(config.redacted()) + str(vars(type(config))))
