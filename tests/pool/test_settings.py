"""Connection and session settings on all four types, through the API of 4.0."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.rows import dict_row, tuple_row

from pgmonkey import ConfigError, ConnectError, PGConnectionManager
from pgmonkey.config.libpq import keywords
from tests.kit import Canary, TemporaryDatabase, eventually
from tests.kit.dictionaries import config_from_dict
from tests.kit.manager import TYPES, Write, ask

SECTION = {
    "normal": "sync_settings",
    "pool": "sync_settings",
    "async": "async_settings",
    "async_pool": "async_settings",
}

all_types = pytest.mark.parametrize("connection_type", TYPES)


@all_types
def test_session_settings_are_in_force_from_the_first_query_and_after_a_rollback(
    write: Write, connection_type: str
) -> None:
    """Session settings are in force from the first query, and a rollback does not undo them."""
    config = write(**{SECTION[connection_type]: {"statement_timeout": "5s", "jit": False}})

    first, after = ask(
        config,
        connection_type,
        ["SHOW statement_timeout"],
        ["SET statement_timeout = '1h'", "ROLLBACK", "SHOW statement_timeout"],
    )

    assert (first, after) == (("5s",), ("5s",))


@all_types
@pytest.mark.parametrize(
    "name, value, said",
    [
        ("statement_timeut", "30s", "statement_timeut"),
        ("statement_timeout", "soon", "statement_timeout"),
        ("lock_timeout", "-7", "lock_timeout"),
        ("log_min_messages", "panic", "log_min_messages"),
    ],
)
def test_a_setting_that_the_server_refuses_fails_the_connection_by_its_name(
    write: Write, connection_type: str, name: str, value: str, said: str
) -> None:
    """The error names the setting: misspelt, wrong, out of range, or for superusers only."""
    config = write(**{SECTION[connection_type]: {name: value}})

    with pytest.raises(ConnectError, match=said) as caught:
        ask(config, connection_type, ["SELECT 1"])

    assert caught.value.reason == "setting"
    assert isinstance(caught.value, psycopg.OperationalError)


@all_types
def test_a_connection_is_handed_out_idle(
    write: Write, database: TemporaryDatabase, connection_type: str
) -> None:
    """No transaction is open, so the server's idle-in-transaction timeout ends nothing."""
    config = write(
        **{
            SECTION[connection_type]: {
                "idle_in_transaction_session_timeout": 5000,
                "statement_timeout": 30000,
                "lock_timeout": 10000,
            }
        }
    )
    idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()"

    (found,) = ask(config, connection_type, [idle])

    assert found == (0,)


@all_types
def test_search_path_is_a_list_of_schemas(
    write: Write, database: TemporaryDatabase, connection_type: str
) -> None:
    """`app, public` is two schemas; quoted ones and `$user` mean what they mean in SQL."""
    database.execute("CREATE SCHEMA app")
    database.execute('CREATE SCHEMA "odd, name"')
    database.execute(f'GRANT USAGE ON SCHEMA app, "odd, name" TO "{database.user}"')
    section = SECTION[connection_type]
    for written, schemas in {
        "app, public": ["app", "public"],
        '"$user", public': ["public"],
        '"odd, name", app': ["odd, name", "app"],
    }.items():
        config = write(**{section: {"search_path": written}})
        (found,) = ask(config, connection_type, ["SELECT current_schemas(false)"])
        assert found == (schemas,)


@all_types
def test_awkward_values_arrive_as_they_are_written(write: Write, connection_type: str) -> None:
    """Spaces, quotes, backslashes, null and settings with a dot arrive unchanged."""
    other = "async_settings" if SECTION[connection_type] == "sync_settings" else "sync_settings"
    hostile = 'it\'s a \\ "test" -c geqo=off'
    config = write(
        **{
            SECTION[connection_type]: {
                "app.hostile": hostile,
                "statement_timeout": None,
                "TimeZone": "Europe/Berlin",
                "enable_seqscan": "off",
            },
            other: {"lock_timeout": "77s"},
        }
    )

    found = ask(
        config,
        connection_type,
        ["SELECT current_setting('app.hostile'), current_setting('geqo')"],
        ["SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"],
        ["SELECT current_setting('timezone'), current_setting('enable_seqscan')"],
    )

    assert found == [(hostile, "on"), ("0", "0"), ("Europe/Berlin", "off")]


@all_types
@pytest.mark.parametrize("written, expected", [(True, True), ("true", True), ("false", False)])
def test_autocommit_holds_on_every_type(
    write: Write, connection_type: str, written: Any, expected: bool
) -> None:
    """With autocommit on, statements that cannot run in a transaction run."""
    config = write(connection={"autocommit": written})
    statement = "VACUUM pg_catalog.pg_type"

    if expected:
        ask(config, connection_type, ["SELECT 1", statement])
    else:
        with pytest.raises(psycopg.errors.ActiveSqlTransaction):
            ask(config, connection_type, ["SELECT 1", statement])


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
@pytest.mark.parametrize("written, expected", [(1, 1), ("${THRESHOLD:-7}", 7), (None, None)])
def test_prepare_threshold_holds(
    manager: PGConnectionManager, write: Write, connection_type: str, written: Any, expected: Any
) -> None:
    """`prepare_threshold` is psycopg's: a number, or null for none; typed from a reference too."""
    config = write(connection={"prepare_threshold": written})

    with manager.get_database_connection(config, connection_type, resolve_env=True) as connection:
        assert connection.prepare_threshold == expected


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_prepare_threshold_holds_on_async_types(write: Write, connection_type: str) -> None:
    """The same on the other two."""
    async with PGConnectionManager() as manager:
        config = write(connection={"prepare_threshold": 1, "autocommit": True})
        handle = await manager.get_database_connection(config, connection_type)
        async with handle as connection:
            assert connection.prepare_threshold == 1
            assert connection.autocommit is True


#: What the file says of psycopg, and what a connection has then; the class of cursors by its name.
OF_PSYCOPG = {
    "autocommit": (True, True),
    "isolation_level": ("repeatable read", IsolationLevel.REPEATABLE_READ),
    "read_only": (True, True),
    "deferrable": (False, False),
    "row_factory": ("dict_row", dict_row),
    "cursor_factory": ("ClientCursor", "ClientCursor"),
    "prepare_threshold": (None, None),
    "prepared_max": (7, 7),
}


@all_types
def test_settings_of_psycopg_hold_in_each_block(write: Write, connection_type: str) -> None:
    """Each is what every block begins with, also after one that has changed it."""
    config = write(connection={key: value for key, (value, _) in OF_PSYCOPG.items()})
    expected = {key: value for key, (_, value) in OF_PSYCOPG.items()}

    def look(connection: Any) -> dict[str, Any]:
        found = {key: getattr(connection, key) for key in OF_PSYCOPG}
        cursors = (psycopg.ClientCursor, psycopg.AsyncClientCursor)
        asynchronous = isinstance(connection, psycopg.AsyncConnection)
        assert issubclass(found["cursor_factory"], cursors[asynchronous])
        return found | {"cursor_factory": "ClientCursor"}

    async def use() -> None:
        async with PGConnectionManager() as manager:
            handle = await manager.get_database_connection(config, connection_type)
            for _ in range(2):
                async with handle as connection:
                    assert look(connection) == expected
                    await connection.set_isolation_level(None)
                    connection.row_factory = tuple_row
                    connection.prepared_max = 1

    if connection_type.startswith("async"):
        asyncio.run(use())
        return
    with PGConnectionManager() as manager:
        handle = manager.get_database_connection(config, connection_type)
        for _ in range(2):
            with handle as connection:
                assert look(connection) == expected
                connection.isolation_level = None
                connection.row_factory = tuple_row
                connection.prepared_max = 1


@all_types
def test_each_transaction_is_what_the_file_says(write: Write, connection_type: str) -> None:
    """The server sees the isolation level and read-only transactions."""
    config = write(
        connection={"isolation_level": "serializable", "read_only": True, "deferrable": True}
    )
    statement = "SELECT " + ", ".join(
        f"current_setting('transaction_{setting}')"
        for setting in ("isolation", "read_only", "deferrable")
    )
    assert ask(config, connection_type, [statement]) == [("serializable", "on", "on")]


@all_types
@pytest.mark.parametrize(
    "factory, statement", [("Cursor", "SELECT %s::int"), ("RawCursor", "SELECT $1::int")]
)
def test_a_cursor_of_each_class_runs_statements(
    write: Write, connection_type: str, factory: str, statement: str
) -> None:
    """RawCursor takes the placeholders of PostgreSQL; rows are what row_factory makes."""
    config = write(connection={"cursor_factory": factory, "row_factory": "scalar_row"})

    async def use() -> Any:
        async with PGConnectionManager() as manager:
            handle = await manager.get_database_connection(config, connection_type)
            async with handle as connection:
                return await (await connection.execute(statement, [3])).fetchone()

    if connection_type.startswith("async"):
        assert asyncio.run(use()) == 3
        return
    with (
        PGConnectionManager() as manager,
        manager.get_database_connection(config, connection_type) as connection,
    ):
        assert connection.execute(statement, [3]).fetchone() == 3


@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_kwargs_of_a_pool_of_pgmonkey_4_hold(write: Write, connection_type: str) -> None:
    """`pool_settings.kwargs`, which 4.0 passed on to psycopg: VACUUM needs autocommit."""
    section = "pool_settings" if connection_type == "pool" else "async_pool_settings"
    config = write(**{section: {"kwargs": {"autocommit": True, "prepare_threshold": None}}})
    ask(config, connection_type, ["SELECT 1", "VACUUM pg_catalog.pg_type"])


# A value for each keyword of libpq that a plain local server accepts; the rest is known to need
# something that is not here (TLS, Kerberos, OAuth, a service file), and is tried without a server.
HARMLESS: dict[str, Any] = {
    "application_name": "harmless",
    "channel_binding": "prefer",
    "client_encoding": "UTF8",
    "connect_timeout": 5,
    "fallback_application_name": "fallback",
    "gssencmode": "disable",
    "hostaddr": "127.0.0.1",
    "keepalives": 1,
    "keepalives_count": 5,
    "keepalives_idle": 60,
    "keepalives_interval": 15,
    "load_balance_hosts": "disable",
    "max_protocol_version": "3.0",
    "min_protocol_version": "3.0",
    "options": "-c geqo=off",
    "passfile": "/nonexistent/pgpass",
    "require_auth": "scram-sha-256",
    "ssl_max_protocol_version": "TLSv1.3",
    "ssl_min_protocol_version": "TLSv1.2",
    "sslcert": "",
    "sslcertmode": "allow",
    "sslcompression": 0,
    "sslcrl": "",
    "sslcrldir": "",
    "sslkey": "",
    "sslmode": "prefer",
    "sslnegotiation": "postgres",
    "sslpassword": "unused",
    "sslrootcert": "",
    "sslsni": 1,
    "target_session_attrs": "any",
    "tcp_user_timeout": 10000,
}


@all_types
def test_every_connection_setting_is_accepted(write: Write, connection_type: str) -> None:
    """One file uses all of libpq's keywords that work with this server."""
    settings = {key: value for key, value in HARMLESS.items() if key in keywords()}
    statement = "SELECT current_setting('application_name'), current_setting('geqo')"

    (found,) = ask(write(connection=settings), connection_type, [statement])

    assert found == ("harmless", "off")


@pytest.mark.parametrize("name", sorted(keywords().keys() - HARMLESS.keys()))
def test_the_other_connection_settings_reach_libpq(name: str, tmp_path: Path) -> None:
    """Keywords that need more than a plain server are passed to libpq, none is dropped."""
    content = {"connection_settings": {name: "1" if name != "port" else "5432"}}
    for connection_type in TYPES:
        kwargs = config_from_dict(content).connect_kwargs(connection_type)  # type: ignore[arg-type]  # a parameter of the test
        assert kwargs[name] in ("1", "5432")


@all_types
@pytest.mark.parametrize(
    "settings, said",
    [
        ({"require_auth": "none"}, "require_auth|authentication method"),
        ({"require_auth": "md5"}, "require_auth|authentication method"),
        ({"channel_binding": "require"}, "channel binding"),
        ({"gssencmode": "require"}, "GSS"),
        ({"sslmode": "require"}, "SSL"),
        ({"target_session_attrs": "standby"}, "standby"),
    ],
)
def test_what_a_setting_demands_is_enforced(
    write: Write, connection_type: str, settings: dict[str, str], said: str
) -> None:
    """A server that does not meet a security setting is refused."""
    config = write(
        connection=settings,
        pool_settings={"timeout": 1, "max_size": 2},
        async_pool_settings={"timeout": 1, "max_size": 2},
    )

    with pytest.raises(psycopg.OperationalError, match=said):
        ask(config, connection_type, ["SELECT 1"])


def test_a_misspelt_keyword_connects_to_no_other_server(
    write: Write, monkeypatch: pytest.MonkeyPatch, database: TemporaryDatabase
) -> None:
    """`hosst` is an error with a suggestion, and `PGHOST` does not take its place."""
    monkeypatch.setenv("PGHOST", database.host)
    config = write(connection={"host": None, "hosst": "db.example"})

    with pytest.raises(ConfigError, match='did you mean "host"'):
        PGConnectionManager().get_database_connection(config, "normal")


@all_types
def test_nothing_of_the_session_is_left_for_the_next_borrower_by_a_rollback(
    write: Write, connection_type: str
) -> None:
    """What a block set inside its transaction and rolled back is gone with it."""
    first, second = ask(
        write(),
        connection_type,
        ["SET LOCAL statement_timeout = '1h'", "SHOW statement_timeout"],
        ["SHOW statement_timeout"],
    )

    assert (first, second) == (("1h",), ("0",))


@all_types
def test_connections_are_closed_when_their_owner_is(
    write: Write, database: TemporaryDatabase, connection_type: str, canary: Canary
) -> None:
    """`with manager` closes what any of the four types has opened."""
    ask(write(), connection_type, ["SELECT 1"])
    eventually(lambda: database.backends() == [])
