"""Connection settings: the keywords of libpq, their kinds, and what they are sent as."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Final, Literal, NamedTuple

from psycopg import pq

Kind = Literal["text", "choice", "integer", "flag", "port", "seconds", "file"]

#: The environment variables that libpq turns into session settings whatever it is told.
SESSION_VARIABLES: Final = ("PGDATESTYLE", "PGGEQO", "PGTZ")
#: A path that cannot exist: libpq looks there for a password file and finds none, silently.
NO_FILE: Final = "/dev/null/none"
CONNECT_TIMEOUT: Final = 10  # seconds
PREPARE_THRESHOLD: Final = 5  # executions, psycopg's own default

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer", "require"),
    "sslnegotiation": ("postgres", "direct"),
    "sslcertmode": ("disable", "allow", "require"),
    "target_session_attrs": (
        "any",
        "read-write",
        "read-only",
        "primary",
        "standby",
        "prefer-standby",
    ),
    "load_balance_hosts": ("disable", "random"),
    "ssl_min_protocol_version": ("", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
}
_INTEGERS: Final = frozenset(
    {"keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"}
)
_FLAGS: Final = frozenset({"keepalives", "sslcompression", "sslsni", "gssdelegation"})
FILES: Final = frozenset({"sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile"})

# What libpq does when it hears nothing, for the keywords that have an environment variable, no
# built-in default, and no use for an empty text.
_NEUTRAL: Final[Mapping[str, str]] = {
    "passfile": NO_FILE,
    "sslcertmode": "allow",
    "connect_timeout": str(CONNECT_TIMEOUT),
    # Every method: libpq takes no empty list. It knows OAuth since version 18.
    "require_auth": "password,md5,gss,sspi,scram-sha-256,none"
    + (",oauth" if pq.version() >= 180000 else ""),
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
}
# Those that an empty text neutralises: each one was tried against a server.
_EMPTY: Final = frozenset(
    {
        "application_name",
        "client_encoding",
        "dbname",
        "gsslib",
        "host",
        "hostaddr",
        "options",
        "password",
        "requirepeer",
        "sslcert",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslrootcert",
        "ssl_max_protocol_version",
        "user",
    }
)

_DESCRIPTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "host": (
        "The server: a name, an address, a socket directory; or a list of them.",
        "db.example",
    ),
    "hostaddr": ("The server's IP address, to avoid looking the name up.", "192.0.2.10"),
    "port": (
        "The server's port, from 1 to 65535; with several hosts one for all or one each.",
        "5432",
    ),
    "dbname": ("The name of the database on the server.", "orders"),
    "user": ("The role to log in as.", "orders_app"),
    "password": ("The password; better from a file than in this one.", "${ORDERS_PASSWORD}"),
    "passfile": ("A password file in libpq's own format.", "/run/secrets/pgpass"),
    "service": ("The name of a service in libpq's own service file.", "orders"),
    "connect_timeout": (
        "How long one attempt to connect may take: a duration, in whole seconds, at least 2 s.",
        "10",
    ),
    "client_encoding": ("The encoding of the session.", "UTF8"),
    "options": (
        "Command-line options for the session; for settings there are sections.",
        "-c geqo=off",
    ),
    "application_name": (
        "The name shown in pg_stat_activity; the server cuts it at 63 bytes.",
        "orders",
    ),
    "sslmode": ("Whether TLS is used, and how the server is verified.", "verify-full"),
    "sslrootcert": (
        "The certificates of trusted authorities: a file (relative to this one), or `system`.",
        "/run/secrets/orders/ca.crt",
    ),
    "sslcert": ("The file with the client's certificate.", "/run/secrets/orders/tls.crt"),
    "sslkey": ("The file with the client's private key.", "/run/secrets/orders/tls.key"),
    "sslpassword": ("The passphrase of the private key.", "${KEY_PASSPHRASE}"),
    "sslcrl": ("The file with revoked certificates.", "/run/secrets/orders/crl.pem"),
    "channel_binding": ("Whether SCRAM is bound to the TLS channel.", "require"),
    "require_auth": ("The authentication methods that are acceptable.", "scram-sha-256"),
    "target_session_attrs": ("Which of several servers is acceptable.", "read-write"),
    "load_balance_hosts": ("In which order several hosts are tried.", "random"),
    "keepalives": ("Whether TCP keepalives are sent.", "1"),
    "keepalives_idle": ("Seconds of silence before a TCP keepalive is sent.", "60"),
    "keepalives_interval": ("Seconds between TCP keepalives that get no answer.", "15"),
    "keepalives_count": ("How many lost TCP keepalives end a connection.", "5"),
    "tcp_user_timeout": ("Milliseconds that sent data may stay unacknowledged.", "10000"),
}

_SETTING: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*")
_ESCAPED: Final = re.compile(r"([\\\s])")
_WORD: Final = re.compile(r"(?:\\.|[^\\\s])+", re.DOTALL)


class Keyword(NamedTuple):
    """Describe one connection keyword of libpq.

    Args:
        name: The keyword.
        kind: What its values look like.
        variable: The environment variable that would fill it, or `None`.
        neutral: The value that keeps the environment out; `None` if there is none.
        choices: Its values, where they are few.
        description: What it does, for the reference page.
        example: A value.
    """

    name: str
    kind: Kind
    variable: str | None
    neutral: str | None
    choices: tuple[str, ...]
    description: str
    example: str


@cache
def keywords() -> Mapping[str, Keyword]:
    """Return the keywords of the libpq in use, by name."""
    return {keyword.name: keyword for keyword in _keywords()}


def _keywords() -> Iterator[Keyword]:
    for option in pq.Conninfo.get_defaults():
        name = option.keyword.decode()
        compiled = option.compiled.decode() if option.compiled is not None else None
        description, example = _DESCRIPTIONS.get(name, (f"libpq's `{name}`.", ""))
        yield Keyword(
            name=name,
            kind=_kind(name),
            variable=option.envvar.decode() if option.envvar is not None else None,
            neutral=_NEUTRAL.get(name, compiled or ("" if name in _EMPTY else compiled)),
            choices=_CHOICES.get(name, ()),
            description=description,
            example=example,
        )


def _kind(name: str) -> Kind:
    kinds: tuple[tuple[Kind, Iterable[str]], ...] = (
        ("choice", _CHOICES),
        ("integer", _INTEGERS),
        ("flag", _FLAGS),
        ("port", ("port",)),
        ("seconds", ("connect_timeout",)),
        ("file", FILES),
    )
    return next((kind for kind, names in kinds if name in names), "text")


@cache
def isolation() -> Mapping[str, str]:
    """Return what keeps the environment out of every keyword that a configuration leaves open."""
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

    Args:
        given: The keywords that the configuration sets. With `service`, the service's own values
            must come through, so that nothing else can be passed explicitly.
        variables: What `libpq_variables` returned.

    Yields:
        The variable, and the keyword that would override it, if there is one.
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
