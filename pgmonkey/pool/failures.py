"""Classify why a connection could not be made: one of a few reasons, from the error's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import psycopg

from pgmonkey.config.redaction import scrub
from pgmonkey.errors import LASTING, ConnectError, Reason

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig

# libpq reports a failed connect without an SQLSTATE, so the text is all there is. It follows
# the server's lc_messages: a reason is a label and a hint, and `other` is always possible.
# Names are taken out before the comparison: `role "SSL" does not exist` reads `role "" does ...`.
_PATTERNS: Final[tuple[tuple[Reason, str], ...]] = (
    (
        "too_many_connections",
        (
            r"too many (clients|connections)|remaining connection slots|connection limit .*exceeded"
            # PgBouncer, Supavisor
            r"|no more connections allowed|client connections exceeded"
            r"|max client connections|max clients reached"
        ),
    ),
    # Before `hba`: after a wrong password libpq may try again without TLS, and be rejected.
    (
        "auth",
        (
            r'authentication failed|no password supplied|(role|user)( "")? does not exist'
            r"|is not permitted to log in|fe_sendauth|authentication method requirement"
            r"|SCRAM|channel binding"
            # PgBouncer, Supavisor, RDS Proxy, Azure
            r"|no such user|login rejected|wrong password|password returned by client"
            r"|no username supplied|tenant or user not found|has no credentials|invalid username"
        ),
    ),
    ("hba", r"pg_hba\.conf"),
    (
        "no_database",
        (
            r'database( "")? does not exist|permission denied for database'
            r'|database "" is not currently accepting connections'
            # PgBouncer, Neon
            r'|no such database|database "" is disabled|endpoint could not be found'
        ),
    ),
    (
        "setting",
        (
            r"unrecognized configuration parameter|invalid value for parameter"
            r"|permission denied to set parameter|cannot be (set|changed)|invalid command-line argument"
            r"|requires a (numeric|boolean) value|is outside the valid range"
            r"|unsupported (options )?startup parameter"  # PgBouncer
        ),
    ),
    (
        "dns",
        (
            r"could not translate host name|failed to resolve|name or service not known"
            r"|temporary failure in name resolution|nodename nor servname"
        ),
    ),
    # Something answers that is no PostgreSQL: a web server, say. Not a matter of certificates.
    ("other", r"invalid response to (SSL|GSSAPI) negotiation"),
    # Before `tls`: a network may fail during a handshake, too.
    (
        "refused",
        (
            r"connection refused|starting up|shutting down|not (yet )?accepting connections"
            r"|in recovery mode|(failed|to server): no such file or directory|no route to host"
            r"|network is unreachable|server closed the connection|connection reset|broken pipe"
            r"|SSL connection has been closed|unexpected eof"
            r"|(SSL SYSCALL error|could not (send|receive))(?!.*timed out)"
            # PgBouncer, Neon
            r"|connect failed|server down|server conn crashed|connect to compute node"
        ),
    ),
    ("timeout", r"timeout expired|timed[ -]out|wait_timeout"),
    ("tls", r"\b(SSL|TLS|SNI)\b|GSSAPI|gssencmode|certificate|private key|connection is insecure"),
)

# An error after which a server may have counted one more wrong password of the account.
_REFUSED_LOGIN: Final = r"authentication failed|wrong password"

# Names are in quotes, which depend on the language. PgBouncer has none around that of a database.
_NAME: Final = r"""(?<=no such database: ).*|"[^"]*"|(?<!\w)'[^']*'(?!\w)|»[^«]*«|«[^»]*»|„[^“”]*[“”]|“[^”]*”"""

# What libpq advises below its own message: the hint says it, and no less.
_ADVICE: Final = (
    r"\n\s{0,8}Is the server running (?:on that host and accepting TCP/IP connections"
    r"|locally and accepting connections on that socket)\?"
)

#: What to do about each of them, in one line.
HINTS: Final[Mapping[Reason, str]] = {
    "auth": "check the user and the password, or the files that they come from",
    "refused": "is the server running, and are host and port right?",
    "timeout": "nothing answered in connect_timeout: check host, port and firewall",
    "dns": "check host, and whether this machine can resolve it",
    "tls": "check sslmode and the certificate files",
    "too_many_connections": "the server or the role has no connection left: lower max_size",
    "hba": "the server's pg_hba.conf does not allow this user, database and address",
    "no_database": "check dbname, and the role's CONNECT privilege",
    "setting": "the server refused a session setting: check sync_settings, async_settings, options",
    "other": "is this the port of a PostgreSQL server? If so, see its log",
}


class ConnectFailure(NamedTuple):
    """Describe one failed connect, without its exception, which holds secrets.

    Args:
        reason: From the list above; the label of metrics and events.
        text: libpq's words, scrubbed.
        wrong_password: Whether a server may lock the account after some more of them.
    """

    reason: Reason
    text: str
    wrong_password: bool = False

    @property
    def lasting(self) -> bool:
        """Tell whether it lasts until something is corrected: waiting does not help."""
        return self.reason in LASTING

    @property
    def hint(self) -> str:
        """Return what to do about it, in one line."""
        return HINTS[self.reason]

    def error(self, database: str) -> ConnectError:
        """Return a new error that reports this failure.

        Args:
            database: The name of the database.
        """
        return ConnectError(self.text, database=database, reason=self.reason, hint=self.hint)


def classify(error: BaseException, config: DatabaseConfig) -> ConnectFailure:
    """Turn the exception of a connect into a reason and a text that may be shown.

    Args:
        error: What `connect` raised.
        config: What it connected with: its secrets are masked in the text, and its names do not
            decide the reason.
    """
    text = str(error).strip().removeprefix("connection failed: ")  # psycopg's; ours says it, too
    text = re.sub(_ADVICE, "", text) or type(error).__name__
    words = _without_names(text, config)
    shown = scrub(text, config.secrets)
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return ConnectFailure("timeout", shown)
    for reason, pattern in _PATTERNS:
        if re.search(pattern, words, re.IGNORECASE):
            wrong_password = bool(re.search(_REFUSED_LOGIN, words, re.IGNORECASE))
            return ConnectFailure(reason, shown, wrong_password and reason == "auth")
    return ConnectFailure("other", shown)


def _without_names(text: str, config: DatabaseConfig) -> str:
    """Return an error's text with nothing between its quotes."""
    for name in config.names:  # which may hold quotes themselves
        for before, after in ('""', '"/', "''"):  # a slash: the directory of a socket
            text = text.replace(f"{before}{name}{after}", f"{before}{after}")
    return re.sub(_NAME, '""', text)
