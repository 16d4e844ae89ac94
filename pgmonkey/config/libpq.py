"""The parameters of libpq, and how the environment is kept out of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Final, Literal, NamedTuple

from psycopg import pq

Kind = Literal[
    "text",
    "choice",
    "integer",
    "flag",
    "port",
    "seconds",
    "milliseconds",
    "file",
    "host",
    "database",
    "user",
]

#: The environment variables that libpq always turns into session settings.
SESSION_VARIABLES: Final = ("PGDATESTYLE", "PGGEQO", "PGTZ")
#: A path that cannot exist: libpq looks there for a password file and finds none, silently.
NO_FILE: Final = "/dev/null/none"
PREPARE_THRESHOLD: Final = 5  # executions, psycopg's own default
PREPARED_MAX: Final = 100  # statements, the same


class Keyword(NamedTuple):
    """Describe one parameter of libpq."""

    description: str = ""
    example: str = ""
    kind: Kind = "text"  # the form of its values
    #: The value that keeps libpq's default behaviour, so that the environment is kept out.
    #: Declared where there is no built-in default; each empty one was tried against a server.
    neutral: str | None = None
    choices: tuple[str, ...] = ()
    default: int | None = None  # pgmonkey's own, where it has one
    name: str = ""
    variable: str | None = None  # the environment variable that would fill it


_MODES: Final = ("disable", "prefer", "require")
_PROTOCOLS: Final = ("", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# Every method: libpq takes no empty list. It knows OAuth since version 18.
_EVERY_METHOD: Final = "password,md5,gss,sspi,scram-sha-256,none" + (
    ",oauth" if pq.version() >= 180000 else ""
)
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SERVERS: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_KNOWN: Final[Mapping[str, Keyword]] = {
    "host": Keyword(
        "The server: a name, an address, a socket directory; or a list of them.",
        "db.example",
        "host",
        "",
    ),
    "hostaddr": Keyword("The server's IP address, without a lookup.", "192.0.2.10", "host", ""),
    "port": Keyword(
        "The server's port, from 1 to 65535; with several hosts one for all or one each.",
        "5432",
        "port",
    ),
    "dbname": Keyword("The name of the database on the server.", "orders", "database", ""),
    "user": Keyword("The role to log in as.", "orders_app", "user", ""),
    "password": Keyword("The password; better not in this file.", "${DB_PASSWORD}", "text", ""),
    "passfile": Keyword("A password file of libpq.", "/run/secrets/pgpass", "file", NO_FILE),
    "service": Keyword("The name of a service in libpq's service file.", "orders"),
    "connect_timeout": Keyword(
        "How long one attempt to connect may take: a duration, in whole seconds, at least 2 s.",
        "10",
        "seconds",
        default=10,
    ),
    "client_encoding": Keyword("The encoding of the session.", "UTF8", "text", ""),
    "options": Keyword("Command-line options for the session.", "-c geqo=off", "text", ""),
    "application_name": Keyword(
        "The name in pg_stat_activity; the server cuts it at 63 bytes.", "orders", "text", ""
    ),
    "sslmode": Keyword(
        "Whether TLS is used, and how the server is verified.",
        "verify-full",
        "choice",
        choices=_SSL_MODES,
    ),
    "sslrootcert": Keyword(
        "The certificates of trusted authorities: a file (relative to this one), or `system`.",
        "/run/secrets/ca.crt",
        "file",
        "",
    ),
    "sslcert": Keyword("The client's certificate.", "/run/secrets/tls.crt", "file", ""),
    "sslkey": Keyword("The client's private key.", "/run/secrets/tls.key", "file", ""),
    "sslpassword": Keyword("The passphrase of the private key.", "${KEY_PASSPHRASE}"),
    "sslcrl": Keyword("The revoked certificates.", "/run/secrets/crl.pem", "file", ""),
    "channel_binding": Keyword(
        "Whether SCRAM is bound to the TLS channel.", "require", "choice", choices=_MODES
    ),
    "require_auth": Keyword(
        "The acceptable authentication methods.", "scram-sha-256", "text", _EVERY_METHOD
    ),
    "target_session_attrs": Keyword(
        "Which of several servers is acceptable.", "read-write", "choice", choices=_SERVERS
    ),
    "load_balance_hosts": Keyword(
        "The order in which several hosts are tried.",
        "random",
        "choice",
        choices=("disable", "random"),
    ),
    "keepalives": Keyword("Whether TCP keepalives are sent.", "1", "flag"),
    "keepalives_idle": Keyword(
        "The silence before a TCP keepalive: a duration, in whole seconds.",
        "1min",
        "seconds",
        default=30,
    ),
    "keepalives_interval": Keyword(
        "The time between unanswered TCP keepalives: a duration, in whole seconds.",
        "15",
        "seconds",
        default=10,
    ),
    "keepalives_count": Keyword(
        "Lost TCP keepalives that end a connection.", "5", "integer", default=3
    ),
    "tcp_user_timeout": Keyword(
        "How long sent data may stay unacknowledged: a duration; as in libpq, a bare number is "
        "milliseconds.",
        "30s",
        "milliseconds",
        default=30_000,
    ),
    "gssencmode": Keyword(kind="choice", choices=_MODES),
    "sslnegotiation": Keyword(kind="choice", choices=("postgres", "direct")),
    "sslcertmode": Keyword("", "", "choice", "allow", ("disable", "allow", "require")),
    "ssl_min_protocol_version": Keyword(kind="choice", choices=_PROTOCOLS),
    "ssl_max_protocol_version": Keyword("", "", "choice", "", _PROTOCOLS),
    "sslcompression": Keyword(kind="flag"),
    "sslsni": Keyword(kind="flag"),
    "gssdelegation": Keyword(kind="flag"),
    "min_protocol_version": Keyword(neutral="3.0"),
    "max_protocol_version": Keyword(neutral="3.0"),
    "gsslib": Keyword(neutral=""),
    "requirepeer": Keyword(neutral=""),
    "sslcrldir": Keyword(neutral=""),
}
FILES: Final = frozenset(name for name, known in _KNOWN.items() if known.kind == "file")

_KEEPALIVES: Final = ("keepalives_idle", "keepalives_interval", "keepalives_count")
_OF_TCP: Final = (*_KEEPALIVES, "tcp_user_timeout")

#: The name of a session setting, as a regular expression that JSON Schema understands as well.
SETTING_NAME: Final = r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*"
_ESCAPED: Final = re.compile(r"([\\\s])")
_WITH_BACKSLASH: Final = r"\\\1"
_WORD: Final = re.compile(r"(?:\\.|[^\\\s])+", re.DOTALL)


@cache
def keywords() -> Mapping[str, Keyword]:
    """Return the parameters of the installed libpq, by name."""
    return {keyword.name: keyword for keyword in map(_keyword, pq.Conninfo.get_defaults())}


def _keyword(option: pq.ConninfoOption) -> Keyword:
    name = option.keyword.decode()
    known = _KNOWN.get(name, Keyword())
    compiled = option.compiled.decode() if option.compiled is not None else None
    return known._replace(
        name=name,
        variable=option.envvar.decode() if option.envvar is not None else None,
        neutral=compiled if known.neutral is None else known.neutral or compiled or "",
        description=known.description or f"libpq's `{name}`.",
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
def defaults() -> Mapping[str, str]:
    """Return pgmonkey's own default of each parameter that has one."""
    return {
        keyword.name: str(keyword.default)
        for keyword in keywords().values()
        if keyword.default is not None
    }


def defaults_for(given: Mapping[str, str]) -> dict[str, str]:
    """Return pgmonkey's own defaults of the parameters that are not given.

    Those that end the silence of a network are for TCP. A service may set them in its file.
    """
    unused: set[str] = set(given)
    if "service" in given or not _uses_tcp(given):
        unused.update(_OF_TCP)
    elif given.get("keepalives") == "0":
        unused.update(_KEEPALIVES)
    return {name: value for name, value in defaults().items() if name not in unused}


def _uses_tcp(given: Mapping[str, str]) -> bool:
    """Tell whether a host may be reached over TCP: not if all are directories of sockets."""
    hosts = given.get("host", "").split(",")
    return bool(given.get("hostaddr")) or not all(host.startswith(("/", "@")) for host in hosts)


@cache
def _variables() -> frozenset[str]:
    named = {keyword.variable for keyword in keywords().values() if keyword.variable is not None}
    return frozenset(named | set(SESSION_VARIABLES))


def libpq_variables(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the variables of an environment that libpq reads. Costs microseconds."""
    return _variables().intersection(environ)


def conflicting_variables(
    given: Iterable[str], variables: frozenset[str]
) -> Iterator[tuple[str, str | None]]:
    """Yield the environment variables that no explicit value can keep out.

    With `service`, the values of the service must be used, so no other can be passed explicitly.
    Each comes with the parameter that would override it, if there is one; `given` are the
    parameters that the configuration sets.
    """
    if not variables:
        return
    present = frozenset(given) | defaults().keys()
    for variable in SESSION_VARIABLES:
        if variable in variables:
            yield variable, None
    for keyword in keywords().values():
        if keyword.variable is None or keyword.variable not in variables or keyword.name in present:
            continue
        if keyword.neutral is None or "service" in present:
            yield keyword.variable, keyword.name


def session_options(settings: Iterable[tuple[str, str]]) -> str:
    r"""Return session settings as a value of libpq's `options`.

    Example:
        >>> print(session_options([("search_path", "app, public")]))
        -c search_path=app,\ public
    """
    return " ".join(f"-c {name}={_ESCAPED.sub(_WITH_BACKSLASH, value)}" for name, value in settings)


_LONGEST_LINE: Final = 1000  # bytes, of the 1,023 that libpq reads of a line of a service file


def service_line(key: str, value: str) -> str | None:
    """Return a line of a service file; `None` if the value cannot be written.

    libpq takes the value as it is and has no quotes. It drops white space at the end of a line.
    """
    line = f"{key}={value}"
    if re.search(r"[\n\0]|[ \t\n\v\f\r]\Z", line) or len(line.encode()) > _LONGEST_LINE:
        return None
    return line


def passfile_line(host: str, port: str, dbname: str, user: str, password: str) -> str:
    r"""Return a line of libpq's password file; `*` stands for any value, except as the password.

    Example:
        >>> print(passfile_line("::1", "5432", "*", "app", "PASSWORD"))
        \:\:1:5432:*:app:PASSWORD
    """
    fields = (host, port, dbname, user, password)
    return ":".join(re.sub(r"([\\:])", r"\\\1", field) for field in fields)


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
