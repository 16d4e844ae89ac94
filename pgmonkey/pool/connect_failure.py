"""Classify why a connection could not be made: one of a few reasons, from libpq's text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import psycopg

from pgmonkey.config.redaction import Secret, scrub
from pgmonkey.errors import LASTING, ConnectError, Reason

# libpq reports a failed connect without an SQLSTATE, so the text is all there is. It follows
# the server's lc_messages: a reason is a label and a hint, and `other` is always possible.
_PATTERNS: Final[tuple[tuple[Reason, str], ...]] = (
    (
        "too_many_connections",
        r"too many (clients|connections)|remaining connection slots",
    ),
    ("hba", r"pg_hba\.conf"),
    (
        "auth",
        (
            r"authentication failed|no password supplied|role .* does not exist"
            r"|is not permitted to log in|fe_sendauth|authentication method requirement"
            r"|SCRAM|channel binding"
        ),
    ),
    (
        "no_database",
        (
            r"database .* does not exist|permission denied for database"
            r"|not currently accepting connections"
        ),
    ),
    (
        "setting",
        (
            r"unrecognized configuration parameter|invalid value for parameter"
            r"|permission denied to set parameter|cannot be (set|changed)|invalid command-line argument"
            r"|requires a (numeric|boolean) value|is outside the valid range"
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
    ("tls", r"\bSSL\b|GSSAPI|gssencmode|certificate|private key"),
    (
        "refused",
        (
            r"connection refused|starting up|shutting down|not (yet )?accepting connections"
            r"|in recovery mode|no such file or directory|no route to host|network is unreachable"
            r"|server closed the connection|connection reset"
        ),
    ),
    ("timeout", r"timeout expired|timed out"),
)

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
    """Keep what is worth knowing of one failed connect: never the exception, which holds secrets.

    Args:
        reason: From the list above; the label of metrics and events.
        text: libpq's words, scrubbed.
    """

    reason: Reason
    text: str

    @property
    def lasting(self) -> bool:
        """Tell whether waiting alone will not mend it."""
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


def classify(error: BaseException, secrets: Iterable[Secret]) -> ConnectFailure:
    """Turn the exception of a connect into a reason and a text that may be shown.

    Args:
        error: What `connect` raised.
        secrets: The values to mask in its text.
    """
    said = str(error).strip().removeprefix("connection failed: ")  # psycopg's; ours says it, too
    text = scrub(re.sub(_ADVICE, "", said) or type(error).__name__, secrets)
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return ConnectFailure("timeout", text)
    for reason, pattern in _PATTERNS:
        if re.search(pattern, text, re.IGNORECASE):
            return ConnectFailure(reason, text)
    return ConnectFailure("other", text)
