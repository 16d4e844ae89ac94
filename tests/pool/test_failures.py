"""The reasons of failed connects: what libpq, servers and poolers say, whatever the names are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import psycopg
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pgmonkey.config.redaction import MASK, Secret
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
    # A server with target_session_attrs
    "session is read-only": "other",
    "server is in hot standby mode": "other",
    # Kerberos. Where there is a ticket, encryption is tried first, then the connection without it.
    "could not initiate GSSAPI security context: Unspecified GSS failure.  Minor code may provide"
    " more information: Ticket expired": "auth",
    "GSSAPI continuation error: Unspecified GSS failure.  Minor code may provide more information:"
    " Ticket expired": "auth",
    (
        "GSSAPI continuation error: No credentials were supplied, or the credentials were unavailable"
        " or inaccessible: No Kerberos credentials available (default cache: FILE:/tmp/krb5cc_0)"
    ): "auth",
    (
        'connection to server at "{host}", port 5432 failed: could not initiate GSSAPI security'
        " context: Unspecified GSS failure.  Minor code may provide more information: Ticket expired\n"
        'connection to server at "{host}", port 5432 failed: GSSAPI continuation error: Unspecified'
        " GSS failure.  Minor code may provide more information: Ticket expired"
    ): "auth",
    (
        "GSSAPI continuation error: Unspecified GSS failure.  Minor code may provide more information:"
        " Cannot contact any KDC for realm 'EXAMPLE.TEST'"
    ): "refused",
    'connection to server at "{host}", port 5432 failed: could not initiate GSSAPI security context:'
    ' Ticket expired\nconnection to server at "{host}", port 5432 failed: Connection'
    " refused": "refused",
    'connection to server at "{host}", port 5432 failed: could not initiate GSSAPI security context:'
    ' Ticket expired\nconnection to server at "{host}", port 5432 failed: FATAL:  something'
    " new": "other",
    "GSSAPI encryption required but no credential cache": "auth",
    "server doesn't support GSSAPI encryption, but it was required": "tls",
    "server sent an error response during SSL exchange": "refused",
    # PgBouncer
    "FATAL:  no such database: {dbname}": "no_database",
    'FATAL:  database "{dbname}" is disabled': "no_database",
    "FATAL:  database does not allow connections: {dbname}": "no_database",
    "FATAL:  no such user": "auth",
    "FATAL:  no username supplied": "auth",
    "FATAL:  username too long": "auth",
    "FATAL:  no authentication method is found": "auth",
    "FATAL:  SASL authentication failed": "auth",
    "FATAL:  unix socket login rejected": "auth",
    'FATAL:  "trust" authentication failed': "auth",
    "FATAL:  server login failed: wrong password type": "auth",
    "FATAL:  login rejected": "auth",
    "FATAL:  SSL required": "tls",
    "FATAL:  no more connections allowed (max_client_conn)": "too_many_connections",
    "FATAL:  client connections exceeded (max_user_client_connections)": "too_many_connections",
    "FATAL:  client connections exceeded (max_db_client_connections)": "too_many_connections",
    "FATAL:  query_wait_timeout": "too_many_connections",
    "FATAL:  pooler is shutting down": "refused",
    "FATAL:  database configuration changed": "refused",
    "FATAL:  client_login_timeout (server down)": "refused",
    "FATAL:  client_login_timeout": "timeout",
    "FATAL:  server login has been failing, try again later (server_login_retry)": "refused",
    "FATAL:  server login has been failing, cached error: connect failed"
    " (server_login_retry)": "refused",
    "FATAL:  server login has been failing, cached error: connect timeout"
    " (server_login_retry)": "timeout",
    "FATAL:  server login has been failing, cached error: server DNS lookup failed"
    " (server_login_retry)": "dns",
    "FATAL:  server login has been failing, cached error: TLS startup failed"
    " (server_login_retry)": "tls",
    "FATAL:  server login has been failing, cached error: sorry, too many clients already"
    " (server_login_retry)": "too_many_connections",
    "FATAL:  server login has been failing, cached error: password authentication failed for"
    ' user "{user}" (server_login_retry)': "auth",
    "FATAL:  unsupported startup parameter: statement_timeout": "setting",
    "FATAL:  unsupported startup parameter in options: statement_timeout": "setting",
    "FATAL:  unsupported options startup parameter: only '-c config=val' is allowed": "setting",
    # RDS Proxy
    "FATAL:  This RDS proxy has no credentials for the role {user}. Check the credentials for this"
    " role and try again.": "auth",
    "FATAL:  This RDS Proxy requires TLS connections": "tls",
    'FATAL:  PAM authentication failed for user "{user}"': "auth",
    "FATAL:  IAM authentication failed for user {user}. Check the IAM token for this user and try"
    " again.": "auth",
    "FATAL:  The IAM authentication failed for the role {user}. Check the IAM token for this role and"
    " try again.": "auth",
    "FATAL:  The password that was provided for the role {user} is wrong.": "auth",
    "FATAL:  RDS supports only IAM or MD5 authentication.": "auth",
    "FATAL:  A user name is missing from the connection startup packet. Provide a user name for this"
    " connection.": "auth",
    "FATAL:  IAM is allowed only with SSL connections.": "tls",
    "FATAL:  Feature not supported: RDS Proxy currently doesn't support the option"
    " options.": "setting",
    "FATAL:  The IAM authentication failed because of too many competing"
    " requests.": "too_many_connections",
    "FATAL:  The maximum number of client connections to the proxy exceeded"
    " 100.": "too_many_connections",
    "FATAL:  Rate of connection to proxy exceeded 100.": "too_many_connections",
    "FATAL:  Timed-out waiting to acquire database connection.": "too_many_connections",
    'FATAL:  Request returned an error: database "{dbname}" does not exist': "no_database",
    # Supavisor, before its version 2.7 without the codes
    "FATAL:  Tenant or user not found": "auth",
    "FATAL:  (ENOTFOUND) tenant/user {user} not found": "auth",
    'FATAL:  (EAUTHQUERY) password authentication failed for user "{user}"': "auth",
    "FATAL:  (EAUTHQUERY) user not found in the database": "auth",
    "FATAL:  (ENOIDENTIFIER) no tenant identifier provided (external_id or sni_hostname"
    " required)": "auth",
    'FATAL:  (EINVALIDUSERINFO) Authentication error, reason: "Invalid format for user or'
    ' db_name"': "auth",
    "FATAL:  (ECIRCUITBREAKER) circuit breaker open for operation: auth_error, blocked until: 1, too"
    " many authentication failures, new connections are temporarily blocked": "auth",
    "FATAL:  (ECIRCUITBREAKER) circuit breaker open for operation: db_connection, blocked until: 1,"
    " too many failed attempts to connect to the database, new connections are temporarily"
    " blocked": "refused",
    "FATAL:  (EAUTHQUERY) connection to database not available": "refused",
    "FATAL:  (EDBHANDLEREXITED) connection to database closed. Check logs for more"
    " information": "refused",
    "FATAL:  Max client connections reached": "too_many_connections",
    "FATAL:  MaxClientsInSessionMode: max clients reached": "too_many_connections",
    "FATAL:  (EMAXCONN) max client connections reached, limit: 200": "too_many_connections",
    "FATAL:  (EMAXCONNSESSION) max clients reached in session mode - max clients are limited to"
    " pool_size: 15": "too_many_connections",
    "FATAL:  (EMAXPOOLSREACHED) max pools count reached": "too_many_connections",
    "FATAL:  (ECHECKOUTTIMEOUT) unable to check out connection from the pool after 60000ms in"
    " Session mode": "too_many_connections",
    "FATAL:  (EAUTHTIMEOUT) timeout while waiting for message": "timeout",
    "FATAL:  (ESSLREQUIRED) SSL connection is required for user: {user}": "tls",
    "FATAL:  (EADDRNOTALLOWED) address not in tenant allow_list: (1, 2, 3, 4)": "hba",
    # Neon
    "ERROR:  connection is insecure (try using `sslmode=require`)": "tls",
    "ERROR:  Endpoint ID is not specified. Either upgrade libpq for SNI support": "tls",
    "ERROR:  password authentication failed for user '{user}'": "auth",
    "ERROR:  This IP address 1.2.3.4 is not allowed to connect to this endpoint. Please add it to the"
    " allowed list in the Neon console.": "hba",
    "ERROR:  This connection is trying to access this endpoint from a blocked network.": "hba",
    "ERROR:  Too many connections to this endpoint. Please try again later.": "too_many_connections",
    "ERROR:  Failed to acquire permit to connect to the database. Too many database connection"
    " attempts are currently ongoing.": "too_many_connections",
    "ERROR:  Authentication timed out": "timeout",
    "ERROR:  Control plane request failed: endpoint cannot be found": "no_database",
    "ERROR:  Control plane request failed: endpoint is disabled": "no_database",
    "ERROR:  Control plane request failed: endpoint is temporarily unavailable. Check your quotas"
    " and/or contact our support.": "refused",
    "ERROR:  The requested endpoint could not be found, or you don't have access to"
    " it.": "no_database",
    "FATAL:  Couldn't connect to compute node": "refused",
    # Azure
    "FATAL:  SSL connection is required. Please specify SSL options and retry.": "tls",
    "FATAL:  Invalid Username specified. Please check the Username and retry connection.": "auth",
    "FATAL:  The access token has expired. Please acquire a new token and retry.": "auth",
    "FATAL:  The access token does not have a valid audience claim.": "auth",
    # PgCat
    'FATAL:  No pool configured for database: "{dbname}", user: "{user}"': "no_database",
    'FATAL:  Pool down for database: "{dbname}", user: "{user}"': "refused",
    # Odyssey
    "FATAL:  odyssey: c1: route for '{dbname}.app' is not found": "no_database",
    "FATAL:  too many client tcp connections (global client_max 100)": "too_many_connections",
    "FATAL:  too many active clients for user (pool_size for user {user}.db reached"
    " 3)": "too_many_connections",
    "FATAL:  user blocked: {user} db": "auth",
    "FATAL:  incorrect user": "auth",
    "FATAL:  host based authentication rejected": "hba",
    "FATAL:  failed to connect to remote server s1": "refused",
    "ERROR:  SSL is required": "tls",
    # pgpool
    "FATAL:  Sorry, too many clients already": "too_many_connections",
    "FATAL:  client authentication failed\nDETAIL:  no pool_hba.conf entry for host"
    ' "10.0.0.1", user "{user}", database "{dbname}", SSL off': "hba",
    "ERROR:  all backend nodes are down, pgpool requires at least one valid node": "refused",
}

WITH_NAMES = [text for text in TEXTS if "{" in text]
NAMES = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="»«“”"), min_size=1
)


def config(
    user: str = "app",
    dbname: str = "orders",
    host: str = "db.internal",
    password: str = "tea",
    **more: object,
):
    return config_from_dict(
        {
            **more,
            "connection_settings": {
                "host": host,
                "user": user,
                "dbname": dbname,
                "password": password,
            },
        }
    )


@pytest.mark.parametrize("text", TEXTS)
def test_each_text_has_its_reason(text: str) -> None:
    """What libpq, a server, a pooler or a cloud says leads to a reason; the unknown is `other`."""
    said = text.format(user="app", dbname="orders", host="db.internal")
    assert classify(RuntimeError(said), Given()).reason == TEXTS[text]


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
def test_names_do_not_decide_the_reason(name: str) -> None:
    """A role, a database, a host or a socket directory may be called like an error."""
    for text in WITH_NAMES:
        said = text.format(user=name, dbname=name, host=name)
        assert classify(RuntimeError(said), Given(names=[name])).reason == TEXTS[text], said


@given(
    st.sampled_from(WITH_NAMES),
    NAMES,
    NAMES,
    NAMES,
)
def test_no_name_decides_the_reason(text: str, user: str, dbname: str, host: str) -> None:
    """Whatever the names are, the reason is the same."""
    names = {"user": user, "dbname": dbname, "host": host}
    said = text.format(**names)
    assert classify(RuntimeError(said), Given(names=names.values())).reason == TEXTS[text]


@given(st.sampled_from(list(TEXTS)), st.data())
def test_no_secret_is_shown(text: str, data: st.DataObject) -> None:
    """Wherever a secret is in a text: neither the text that is shown nor the hint has it."""
    said = text.format(user="app", dbname="orders", host="db.internal")
    secret = data.draw(st.text(st.characters(codec="utf-8", categories="LNPS"), min_size=4))
    plain = classify(RuntimeError(said), Given())
    assume(secret not in f"{plain.text} {plain.hint} {MASK}")
    place = data.draw(st.integers(0, len(said)))
    leaking = f"{said[:place]}{secret}{said[place:]}"
    failure = classify(RuntimeError(leaking), Given(secrets=[secret]))
    for shown in (failure.text, failure.hint, str(failure.error("orders"))):
        assert secret not in shown.replace(MASK, " ")


class Given:
    """What `classify` asks of a config, with any names: not every one can be written in a file."""

    pooler = "none"
    connection_settings: Mapping[str, object] = MappingProxyType({})

    def __init__(self, names: Iterable[str] = (), secrets: Iterable[str] = ()) -> None:
        self.names = tuple(sorted(names, key=len, reverse=True))
        self.unquotable = tuple(map(Secret, secrets))


def test_a_secret_that_reads_like_an_error_does_not_decide_the_reason() -> None:
    """The reason is read before secrets are masked, and the text shows none."""
    failure = classify(
        RuntimeError("SSL error: certificate verify failed"), config(password="certificate")
    )
    assert failure.reason == "tls"
    assert "certificate" not in failure.text


def test_a_setting_that_looks_like_a_secret_is_not_shown() -> None:
    """A server quotes a wrong setting: a password that slipped there is masked, a word is not."""
    said = 'FATAL:  invalid value for parameter "statement_timeout": "{}"'
    for value, shown in (("hunter2", MASK), ("5 sekunds", "5 sekunds")):
        given = config(sync_settings={"statement_timeout": value})
        failure = classify(psycopg.OperationalError(said.format(value)), given)
        assert (failure.reason, failure.text) == ("setting", said.format(shown))
    host = classify(psycopg.OperationalError('host "db7f3a9c1b"'), config(host="db7f3a9c1b"))
    assert host.text == 'host "db7f3a9c1b"'


def test_the_hint_of_a_refused_login_repeats_the_warning_about_the_password() -> None:
    """It says what the password starts or ends with, where our password decides."""
    refused = 'FATAL:  password authentication failed for user "app"'
    hint = classify(RuntimeError(refused), config(password="tea\n")).hint
    assert hint == (
        "check the user and the password, or the files that they come from; the password ends with"
        " a line break: remove it, unless it is a part of the password"
    )
    assert "; the password" not in classify(RuntimeError(refused), config()).hint
    for other in (
        'FATAL:  database "orders" does not exist',
        "FATAL:  password authentication failed (server_login_retry)",
    ):
        assert "; the password" not in classify(RuntimeError(other), config(password="tea\n")).hint


def test_the_text_is_without_what_psycopg_and_libpq_add() -> None:
    """The server's own words are shown, and an exception without words by its type."""
    said = (
        'connection failed: connection to server at "db", port 1 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?"
    )
    assert classify(psycopg.OperationalError(said), config()) == ConnectFailure(
        "refused",
        'connection to server at "db", port 1 failed: Connection refused',
        hint="check host and port, and whether the server is running",
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
        ("FATAL:  The password that was provided for the role app is wrong.", True),
        (
            (
                "FATAL:  server login has been failing, cached error: password authentication failed"
                ' for user "app" (server_login_retry)'
            ),
            False,
        ),
    ],
)
def test_wrong_passwords_are_told_from_other_refusals(text: str, wrong: bool) -> None:
    """Only a password that was compared may lock an account."""
    assert classify(RuntimeError(text), config()).wrong_password == wrong


@pytest.mark.parametrize(
    "text, declared, hint",
    [
        (
            "FATAL:  unsupported startup parameter: geqo",
            "none",
            (
                "this is PgBouncer: write `pooler: pgbouncer`, and set geqo for the role instead:"
                " ALTER ROLE ... SET ..."
            ),
        ),
        (
            "FATAL:  unsupported startup parameter in options: statement_timeout",
            "none",
            (
                "this is PgBouncer: write `pooler: pgbouncer`, and set statement_timeout for the role"
                " instead: ALTER ROLE ... SET ..."
            ),
        ),
        (
            "FATAL:  unsupported startup parameter: options",
            "none",
            (
                "this is PgBouncer: write `pooler: pgbouncer`, and set session settings for the role"
                " instead: ALTER ROLE ... SET ..."
            ),
        ),
        (
            "FATAL:  unsupported options startup parameter: only '-c config=val' is allowed",
            "pgbouncer",
            (
                "PgBouncer does not take options: remove it from the service file and the environment,"
                " or add it to PgBouncer's ignore_startup_parameters"
            ),
        ),
        (
            "connection timeout expired",
            "pgbouncer",
            (
                "no answer in connect_timeout: check host, port and firewall, and whether PgBouncer gets"
                " a connection to its server"
            ),
        ),
        (
            (
                "FATAL:  server login has been failing, cached error: password authentication failed"
                ' for user "app" (server_login_retry)'
            ),
            "pgbouncer",
            "the server is behind PgBouncer, whose log says what is wrong",
        ),
        (
            "GSSAPI continuation error: Ticket expired",
            "none",
            "look at the Kerberos ticket of this account: klist",
        ),
        (
            "session is read-only",
            "none",
            "no server of `host` is what target_session_attrs asks for",
        ),
        (
            "received invalid response to SSL negotiation: H",
            "none",
            "is this the port of a PostgreSQL server? If so, see its log",
        ),
        *(
            (
                f"{severity}:  something new",
                "none",
                "the server answered: its log, or that of a pooler, may say more",
            )
            for severity in ("FATAL", "ERROR", "ВАЖНО", "致命错误")
        ),
    ],
)
def test_a_hint_says_what_to_do(text: str, declared: str, hint: str) -> None:
    """It names PgBouncer where that answered, and does not doubt a PostgreSQL that did."""
    said = f'connection to server at "db.internal", port 5432 failed: {text}'
    assert classify(RuntimeError(said), config(pooler=declared)).hint == hint
