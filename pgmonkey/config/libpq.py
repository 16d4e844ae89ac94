"""The parameters of libpq, and how the environment is kept out of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Final, Literal, NamedTuple

from psycopg import pq

Kind = Literal["text", "choice", "integer", "flag", "port", "seconds", "file", "host", "database"]

#: The environment variables that libpq always turns into session settings.
SESSION_VARIABLES: Final = ("PGDATESTYLE", "PGGEQO", "PGTZ")
#: A path that cannot exist: libpq looks there for a password file and finds none, silently.
NO_FILE: Final = "/dev/null/none"
CONNECT_TIMEOUT: Final = 10  # seconds
PREPARE_THRESHOLD: Final = 5  # executions, psycopg's own default


class _Known(NamedTuple):
    """Say about a parameter of libpq what libpq does not say itself."""

    description: str = ""
    example: str = ""
    kind: Kind = "text"  # the form of its values
    choices: tuple[str, ...] = ()
    #: The value with which libpq does what it does by default. Only for a parameter with an
    #: environment variable and no built-in default. Each empty one was tried against a server.
    neutral: str | None = None


_MODES: Final = ("disable", "prefer", "require")
_PROTOCOLS: Final = ("", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# Every method: libpq takes no empty list. It knows OAuth since version 18.
_EVERY_METHOD: Final = "password,md5,gss,sspi,scram-sha-256,none" + (
    ",oauth" if pq.version() >= 180000 else ""
)
_SESSION_ATTRIBUTES: Final = (
    "any",
    "read-write",
    "read-only",
    "primary",
    "standby",
    "prefer-standby",
)
_KNOWN: Final[Mapping[str, _Known]] = {
    "host": _Known(
        "The server: a name, an address, a socket directory; or a list of them.",
        "db.example",
        "host",
        neutral="",
    ),
    "hostaddr": _Known(
        "The server's IP address, to avoid looking the name up.", "192.0.2.10", "host", neutral=""
    ),
    "port": _Known(
        "The server's port, from 1 to 65535; with several hosts one for all or one each.",
        "5432",
        "port",
    ),
    "dbname": _Known("The name of the database on the server.", "orders", "database", neutral=""),
    "user": _Known("The role to log in as.", "orders_app", neutral=""),
    "password": _Known(
        "The password; better from a file than in this one.", "${ORDERS_PASSWORD}", neutral=""
    ),
    "passfile": _Known(
        "A password file in libpq's own format.", "/run/secrets/pgpass", "file", neutral=NO_FILE
    ),
    "service": _Known("The name of a service in libpq's own service file.", "orders"),
    "connect_timeout": _Known(
        "How long one attempt to connect may take: a duration, in whole seconds, at least 2 s.",
        "10",
        "seconds",
        neutral=str(CONNECT_TIMEOUT),
    ),
    "client_encoding": _Known("The encoding of the session.", "UTF8", neutral=""),
    "options": _Known(
        "Command-line options for the session; for settings there are sections.",
        "-c geqo=off",
        neutral="",
    ),
    "application_name": _Known(
        "The name shown in pg_stat_activity; the server cuts it at 63 bytes.", "orders", neutral=""
    ),
    "sslmode": _Known(
        "Whether TLS is used, and how the server is verified.",
        "verify-full",
        "choice",
        ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    ),
    "sslrootcert": _Known(
        "The certificates of trusted authorities: a file (relative to this one), or `system`.",
        "/run/secrets/orders/ca.crt",
        "file",
        neutral="",
    ),
    "sslcert": _Known(
        "The file with the client's certificate.", "/run/secrets/orders/tls.crt", "file", neutral=""
    ),
    "sslkey": _Known(
        "The file with the client's private key.", "/run/secrets/orders/tls.key", "file", neutral=""
    ),
    "sslpassword": _Known("The passphrase of the private key.", "${KEY_PASSPHRASE}"),
    "sslcrl": _Known(
        "The file with revoked certificates.", "/run/secrets/orders/crl.pem", "file", neutral=""
    ),
    "channel_binding": _Known(
        "Whether SCRAM is bound to the TLS channel.", "require", "choice", _MODES
    ),
    "require_auth": _Known(
        "The authentication methods that are acceptable.", "scram-sha-256", neutral=_EVERY_METHOD
    ),
    "target_session_attrs": _Known(
        "Which of several servers is acceptable.", "read-write", "choice", _SESSION_ATTRIBUTES
    ),
    "load_balance_hosts": _Known(
        "In which order several hosts are tried.", "random", "choice", ("disable", "random")
    ),
    "keepalives": _Known("Whether TCP keepalives are sent.", "1", "flag"),
    "keepalives_idle": _Known(
        "Seconds of silence before a TCP keepalive is sent.", "60", "integer"
    ),
    "keepalives_interval": _Known(
        "Seconds between TCP keepalives that get no answer.", "15", "integer"
    ),
    "keepalives_count": _Known("How many lost TCP keepalives end a connection.", "5", "integer"),
    "tcp_user_timeout": _Known(
        "Milliseconds that sent data may stay unacknowledged.", "10000", "integer"
    ),
    "gssencmode": _Known(kind="choice", choices=_MODES),
    "sslnegotiation": _Known(kind="choice", choices=("postgres", "direct")),
    "sslcertmode": _Known(kind="choice", choices=("disable", "allow", "require"), neutral="allow"),
    "ssl_min_protocol_version": _Known(kind="choice", choices=_PROTOCOLS),
    "ssl_max_protocol_version": _Known(kind="choice", choices=_PROTOCOLS, neutral=""),
    "sslcompression": _Known(kind="flag"),
    "sslsni": _Known(kind="flag"),
    "gssdelegation": _Known(kind="flag"),
    "min_protocol_version": _Known(neutral="3.0"),
    "max_protocol_version": _Known(neutral="3.0"),
    "gsslib": _Known(neutral=""),
    "requirepeer": _Known(neutral=""),
    "sslcrldir": _Known(neutral=""),
}
FILES: Final = frozenset(name for name, known in _KNOWN.items() if known.kind == "file")

_SETTING: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*")
_ESCAPED: Final = re.compile(r"([\\\s])")
_WORD: Final = re.compile(r"(?:\\.|[^\\\s])+", re.DOTALL)


class Keyword(NamedTuple):
    """Describe one parameter of the installed libpq."""

    name: str
    variable: str | None  # the environment variable that would fill it
    neutral: str | None  # the value that keeps the environment out, if there is one
    kind: Kind
    choices: tuple[str, ...]
    description: str
    example: str


@cache
def keywords() -> Mapping[str, Keyword]:
    """Return the parameters of the installed libpq, by name."""
    return {keyword.name: keyword for keyword in map(_keyword, pq.Conninfo.get_defaults())}


def _keyword(option: pq.ConninfoOption) -> Keyword:
    name = option.keyword.decode()
    known = _KNOWN.get(name, _Known())
    compiled = option.compiled.decode() if option.compiled is not None else None
    return Keyword(
        name,
        option.envvar.decode() if option.envvar is not None else None,
        compiled if known.neutral is None else known.neutral or compiled or "",
        known.kind,
        known.choices,
        known.description or f"libpq's `{name}`.",
        known.example,
    )


@cache
def isolation() -> Mapping[str, str]:
    """Return the values that keep the environment out of parameters that a file leaves open."""
    return {
        keyword.name: keyword.neutral
        for keyword in keywords().values()
        if keyword.variable is not None and keyword.neutral is not None
    }


@cache
def _variables() -> frozenset[str]:
    named = {keyword.variable for keyword in keywords().values() if keyword.variable is not None}
    return frozenset(named | set(SESSION_VARIABLES))


def libpq_variables(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the variables of an environment that libpq reads. Costs microseconds."""
    return _variables().intersection(environ)


def intruders(given: Iterable[str], variables: frozenset[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the environment variables that no explicit value can keep out.

    With `service`, the values of the service must be used, so no other can be passed explicitly.

    Args:
        given: The parameters that the configuration sets.
        variables: The result of `libpq_variables`.

    Yields:
        The variable, and the parameter that would override it, if there is one.
    """
    if not variables:
        return
    present = frozenset(given) | {"connect_timeout"}  # has a default of ours
    for variable in SESSION_VARIABLES:
        if variable in variables:
            yield variable, None
    for keyword in keywords().values():
        if keyword.variable is None or keyword.variable not in variables or keyword.name in present:
            continue
        if keyword.neutral is None or "service" in present:
            yield keyword.variable, keyword.name


def is_setting_name(name: str) -> bool:
    """Tell whether a text can be the name of a session setting."""
    return _SETTING.fullmatch(name) is not None


def session_options(settings: Iterable[tuple[str, str]]) -> str:
    r"""Return session settings as a value of libpq's `options`.

    Example:
        >>> print(session_options([("search_path", "app, public")]))
        -c search_path=app,\ public
    """
    return " ".join(f"-c {name}={_ESCAPED.sub(_escape, value)}" for name, value in settings)


def _escape(match: re.Match[str]) -> str:
    return "\\" + match.group()


def _plain(word: str) -> str:
    """Return the start of a word without its escapes; no name of a setting is longer."""
    start = word[:256]
    return re.sub(r"\\(.)", r"\1", start, flags=re.DOTALL) if "\\" in start else start


def option_settings(options: str) -> frozenset[str]:
    """Return the names of the settings that a value of `options` makes, in lower case."""
    words = [_plain(word) for word in _WORD.findall(options)]
    names: set[str] = set()
    rest = iter(words)
    for word in rest:
        if word == "-c":
            assignment = next(rest, "")
        elif word.startswith(("--", "-c")):
            assignment = word[2:]
        else:
            continue
        names.add(assignment.partition("=")[0].replace("-", "_").lower())
    return frozenset(names)
