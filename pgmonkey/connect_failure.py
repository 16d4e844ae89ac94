"""Why a connection could not be made: libpq's text, read once, as a reason from a short list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import psycopg

from pgmonkey.redaction import Secret, scrub

Reason = Literal[
    "auth",
    "refused",
    "timeout",
    "dns",
    "tls",
    "too_many_connections",
    "hba",
    "no_database",
    "setting",
    "other",
]

#: Waiting does not mend these: somebody has to change a file or the server.
LASTING: Final[frozenset[Reason]] = frozenset({"auth", "hba", "no_database", "tls", "setting"})

# libpq reports a failed connect without an SQLSTATE, so the text is all there is. It follows
# the server's lc_messages: a reason is a label and a hint, and `other` is always possible.
_PATTERNS: Final[tuple[tuple[Reason, re.Pattern[str]], ...]] = (
    (
        "too_many_connections",
        re.compile(r"too many (clients|connections)|remaining connection slots", re.IGNORECASE),
    ),
    ("hba", re.compile(r"pg_hba\.conf", re.IGNORECASE)),
    (
        "auth",
        re.compile(
            r"authentication failed|no password supplied|role .* does not exist"
            r"|is not permitted to log in|fe_sendauth|authentication method requirement"
            r"|SCRAM|channel binding",
            re.IGNORECASE,
        ),
    ),
    (
        "no_database",
        re.compile(
            r"database .* does not exist|permission denied for database"
            r"|not currently accepting connections",
            re.IGNORECASE,
        ),
    ),
    (
        "setting",
        re.compile(
            r"unrecognized configuration parameter|invalid value for parameter"
            r"|permission denied to set parameter|cannot be (set|changed)|invalid command-line argument"
            r"|requires a (numeric|boolean) value|is outside the valid range",
            re.IGNORECASE,
        ),
    ),
    (
        "dns",
        re.compile(
            r"could not translate host name|failed to resolve|name or service not known"
            r"|temporary failure in name resolution|nodename nor servname",
            re.IGNORECASE,
        ),
    ),
    # Something answers that is no PostgreSQL: a web server, say. Not a matter of certificates.
    ("other", re.compile(r"invalid response to (SSL|GSSAPI) negotiation", re.IGNORECASE)),
    ("tls", re.compile(r"\bSSL\b|GSSAPI|gssencmode|certificate|private key", re.IGNORECASE)),
    (
        "refused",
        re.compile(
            r"connection refused|starting up|shutting down|not yet accepting connections"
            r"|in recovery mode|no such file or directory|no route to host|network is unreachable"
            r"|server closed the connection|connection reset",
            re.IGNORECASE,
        ),
    ),
    ("timeout", re.compile(r"timeout expired|timed out", re.IGNORECASE)),
)

# What libpq advises below its own message: the hint says it, and no less.
_ADVICE: Final = re.compile(
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


@dataclass(frozen=True, slots=True)
class ConnectFailure:
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


def classify(error: BaseException, secrets: Iterable[Secret]) -> ConnectFailure:
    """Turn the exception of a connect into a reason and a text that may be shown.

    Args:
        error: What `connect` raised.
        secrets: The values to mask in its text.
    """
    said = str(error).strip().removeprefix("connection failed: ")  # psycopg's; ours says it, too
    text = scrub(_ADVICE.sub("", said) or type(error).__name__, secrets)
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return ConnectFailure("timeout", text)
    for reason, pattern in _PATTERNS:
        if pattern.search(text):
            return ConnectFailure(reason, text)
    return ConnectFailure("other", text)
