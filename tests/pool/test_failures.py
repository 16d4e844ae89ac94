"""The reasons of failed connects: what libpq, servers and poolers say, whatever the names are."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmonkey.pool.failures import ConnectFailure, classify
from tests.kit.dictionaries import config_from_dict

TEXTS = {
    # libpq and PostgreSQL
    'FATAL:  password authentication failed for user "{user}"': "auth",
    'FATAL:  role "{user}" does not exist': "auth",
    'FATAL:  role "{user}" is not permitted to log in': "auth",
    "fe_sendauth: no password supplied": "auth",
    'FATAL:  database "{dbname}" does not exist': "no_database",
    'FATAL:  database "{dbname}" is not currently accepting connections': "no_database",
    'FATAL:  permission denied for database "{dbname}"\n'
    "DETAIL:  User does not have CONNECT privilege.": "no_database",
    'FATAL:  too many connections for role "{user}"': "too_many_connections",
    "FATAL:  sorry, too many clients already": "too_many_connections",
    "FATAL:  remaining connection slots are reserved for roles": "too_many_connections",
    'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "{user}", database "{dbname}", no'
    " encryption": "hba",
    'FATAL:  pg_hba.conf rejects connection for host "10.0.0.1", user "{user}"': "hba",
    'connection to server at "{host}", port 1 failed: Connection refused': "refused",
    'connection to server on socket "{host}/.s.PGSQL.5432" failed: No such file or'
    " directory": "refused",
    "FATAL:  the database system is starting up": "refused",
    "FATAL:  the database system is shutting down": "refused",
    "FATAL:  the database system is not yet accepting connections": "refused",
    "FATAL:  the database system is not accepting connections\n"
    "DETAIL:  Hot standby mode is disabled.": "refused",
    "FATAL:  the database system is in recovery mode": "refused",
    "server closed the connection unexpectedly": "refused",
    'could not translate host name "{host}" to address': "dns",
    "failed to resolve host '{host}': [Errno -2] Name or service not known": "dns",
    "server does not support SSL, but SSL was required": "tls",
    "SSL error: certificate verify failed": "tls",
    "SSL error: tlsv1 alert unknown ca": "tls",
    'server certificate for "a" does not match host name "{host}"': "tls",
    'root certificate file "/ca.crt" does not exist': "tls",
    'could not read certificate file "/client.crt": No such file or directory': "tls",
    "connection timeout expired": "timeout",
    'FATAL:  unrecognized configuration parameter "statement_timout"': "setting",
    'FATAL:  invalid value for parameter "statement_timeout": "soon"': "setting",
    "received invalid response to SSL negotiation: H": "other",
    "something new": "other",
    # A wrong password with sslmode=prefer: the second try has no TLS, and only the first one counts.
    'connection to server at "{host}", port 5432 failed: FATAL:  password authentication failed for'
    ' user "{user}"\nconnection to server at "{host}", port 5432 failed: FATAL:  no pg_hba.conf'
    ' entry for host "10.0.0.1", user "{user}", database "{dbname}", no encryption': "auth",
    # A network that fails during the handshake
    "SSL SYSCALL error: EOF detected": "refused",
    "SSL SYSCALL error: Connection reset by peer": "refused",
    "SSL SYSCALL error: Connection timed out": "timeout",
    "SSL error: unexpected eof while reading": "refused",
    "SSL connection has been closed unexpectedly": "refused",
    "could not receive data from server: SSL error: unexpected eof while reading": "refused",
    "could not receive data from server: Connection timed out": "timeout",
    "could not send SSL negotiation packet: Broken pipe": "refused",
    # In another language
    "FATAL:  le rôle « {user} » a des soucis avec la base de données « {dbname} »": "other",
    "FATAL:  Benutzer »{user}« darf nicht in Datenbank „{dbname}“": "other",
    # PgBouncer
    "FATAL:  no such database: {dbname}": "no_database",
    'FATAL:  database "{dbname}" is disabled': "no_database",
    "FATAL:  no such user": "auth",
    "FATAL:  SASL authentication failed": "auth",
    'FATAL:  "trust" authentication failed': "auth",
    "FATAL:  server login failed: wrong password type": "auth",
    "FATAL:  login rejected": "auth",
    "FATAL:  SSL required": "tls",
    "FATAL:  no more connections allowed (max_client_conn)": "too_many_connections",
    "FATAL:  client connections exceeded (max_user_client_connections)": "too_many_connections",
    "FATAL:  pooler is shutting down": "refused",
    "FATAL:  client_login_timeout (server down)": "refused",
    "FATAL:  query_wait_timeout": "timeout",
    "FATAL:  server login has been failing, cached error: connect failed"
    " (server_login_retry)": "refused",
    "FATAL:  server login has been failing, cached error: FATAL: password authentication failed for"
    ' user "{user}" (server_login_retry)': "auth",
    "FATAL:  unsupported startup parameter: statement_timeout": "setting",
    "FATAL:  unsupported startup parameter in options: statement_timeout": "setting",
    # Clouds
    "FATAL:  Tenant or user not found": "auth",
    "FATAL:  Max client connections reached": "too_many_connections",
    "FATAL:  MaxClientsInSessionMode: max clients reached": "too_many_connections",
    "FATAL:  This RDS proxy has no credentials for the role {user}": "auth",
    "FATAL:  This RDS Proxy requires TLS connections": "tls",
    'FATAL:  PAM authentication failed for user "{user}"': "auth",
    "FATAL:  SSL connection is required. Please specify SSL options and retry.": "tls",
    "ERROR:  connection is insecure (try using `sslmode=require`)": "tls",
    "ERROR:  Endpoint ID is not specified. Either upgrade libpq for SNI support": "tls",
    "FATAL:  Couldn't connect to compute node": "refused",
}

NAMES = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="»«“”"), min_size=1
)


def config(
    user: str = "app", dbname: str = "orders", host: str = "db.internal", password: str = "tea"
):
    return config_from_dict(
        {
            "connection_settings": {
                "host": host,
                "user": user,
                "dbname": dbname,
                "password": password,
            }
        }
    )


@pytest.mark.parametrize("text", TEXTS)
def test_each_text_has_its_reason(text: str) -> None:
    """What libpq, a server, a pooler or a cloud says leads to a reason; the unknown is `other`."""
    said = text.format(user="app", dbname="orders", host="db.internal")
    assert classify(RuntimeError(said), config()).reason == TEXTS[text]


@pytest.mark.parametrize(
    "text", [text for text in TEXTS if "{" in text and "role {user}" not in text]
)
@pytest.mark.parametrize(
    "name",
    [
        "SSL",
        "scram.example",
        "/run/pg-ssl",
        "certificate",
        "pg_hba.conf",
        "too many clients",
        "timed out",
        'say "SSL"',
        " does not exist",
        'a" does not exist; "',
        "connection refused",
        "it's SSL",
    ],
)
def test_names_do_not_decide_the_reason(text: str, name: str) -> None:
    """A role, a database, a host or a socket directory may be called like an error."""
    said = text.format(user=name, dbname=name, host=name)
    assert classify(RuntimeError(said), config(name, name, name)).reason == TEXTS[text]


@given(
    st.sampled_from([text for text in TEXTS if "{" in text and "role {user}" not in text]),
    NAMES,
    NAMES,
    NAMES,
)
def test_no_name_decides_the_reason(text: str, user: str, dbname: str, host: str) -> None:
    """Whatever the names are, the reason is the same."""
    names = {"user": user, "dbname": dbname, "host": host}

    class Config:
        """Has the names, of which not every one may be written in a file."""

        secrets = ()

    Config.names = tuple(sorted(names.values(), key=len, reverse=True))
    said = text.format(**names)
    assert classify(RuntimeError(said), Config()).reason == TEXTS[text]


def test_a_secret_that_reads_like_an_error_does_not_decide_the_reason() -> None:
    """The reason is read before secrets are masked, and the text shows none."""
    failure = classify(
        RuntimeError("SSL error: certificate verify failed"), config(password="certificate")
    )
    assert failure.reason == "tls"
    assert "certificate" not in failure.text


def test_the_text_is_without_what_psycopg_and_libpq_add() -> None:
    """The server's own words are shown, and an exception without words by its type."""
    said = (
        'connection failed: connection to server at "db", port 1 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?"
    )
    assert classify(psycopg.OperationalError(said), config()) == ConnectFailure(
        "refused", 'connection to server at "db", port 1 failed: Connection refused'
    )
    assert classify(TimeoutError(), config()).text == "TimeoutError"
    assert classify(psycopg.errors.ConnectionTimeout("x"), config()).reason == "timeout"


@pytest.mark.parametrize(
    "text, wrong",
    [
        ('FATAL:  password authentication failed for user "app"', True),
        ('FATAL:  PAM authentication failed for user "app"', True),
        ('FATAL:  role "app" is not permitted to log in', False),
        ('FATAL:  role "app" does not exist', False),
        ('FATAL:  role "authentication failed" does not exist', False),
        ('FATAL:  database "orders" does not exist', False),
        ("fe_sendauth: no password supplied", False),
    ],
)
def test_wrong_passwords_are_told_from_other_refusals(text: str, wrong: bool) -> None:
    """Only a password that was compared may lock an account."""
    assert classify(RuntimeError(text), config()).wrong_password == wrong
