"""Classify why a connection could not be made: one of a few reasons, from the error's text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import psycopg

from pgmonkey.config.redaction import Secret, scrub
from pgmonkey.config.warnings import password_mistake
from pgmonkey.errors import LASTING, ConnectError, Reason

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig


#: What an application gives to `configure`: it is called with each new connection.
Configure: TypeAlias = Callable[[Any], object]


class _Rule(NamedTuple):
    """One kind of failed connect: what the texts of its errors have in common.

    Args:
        reason: What it is.
        says: Patterns, one of which is found in the text.
        hint: What to do about it, where `HINTS` is not right.
    """

    reason: Reason
    says: tuple[str, ...]
    hint: str = ""

    def fits(self, text: str) -> bool:
        """Tell whether the text of an error, without its names, is of this kind."""
        return bool(re.search("|".join(self.says), text, re.IGNORECASE))


#: What to do about a failed connect, in one line.
HINTS: Final[Mapping[Reason, str]] = {
    "auth": "check the user and the password, or the files that they come from",
    "refused": "check host and port, and whether the server is running",
    "timeout": "nothing answered in connect_timeout: check host, port and firewall",
    "dns": "check host, and whether this machine can resolve it",
    "tls": "check sslmode and the certificate files",
    "too_many_connections": "the server, the role or a pooler has no connection left: lower max_size",
    "hba": "the server's pg_hba.conf does not allow this user, database and address",
    "no_database": "check dbname, and the role's CONNECT privilege",
    "setting": "the server refused a session setting: check sync_settings, async_settings, options",
    "configure": "correct the function, or what it needs: it must leave the connection idle",
    "credentials": "run the command, or call the resolver, as the account of this program",
    "other": "is this the port of a PostgreSQL server? If so, see its log",
}
_BEHIND_PGBOUNCER: Final = "the server is behind PgBouncer, whose log says what is wrong"
#: What to do where a pooler answers, and `pooler` does not say so.
POOLER_FOUND: Final = (
    "write `pooler: pgbouncer`, because the next transaction may run in another session; not if the"
    " pooler keeps one session for each client (pool_mode = session)"
)
_NO_SERVER_CONNECTION: Final = (
    "the pooler got no server connection in its time: is the server up? If so, lower max_size,"
    " or raise the pool size of the pooler"
)
_ADDRESS: Final = "the address of this machine is not in the list of allowed addresses"

_STARTUP_PARAMETER: Final = _Rule("setting", ("unsupported (options )?startup parameter",))
_NO_ANSWER: Final = _Rule(
    "timeout",
    (
        "timeout expired",
        "timed[ -]out",
        # PgBouncer, Supavisor
        "connect timeout",
        "client_login_timeout",
        "timeout while waiting",
    ),
)
_NO_RULE: Final = _Rule("other", ())

# libpq reports a failed connect without an SQLSTATE, so the text is all there is. It follows
# the server's lc_messages: a reason is a label and a hint, and `other` is always possible.
# Names are taken out before the comparison: `role "SSL" does not exist` reads `role "" does ...`.
# The first rule that fits is taken, so their order counts.
_RULES: Final = (
    _Rule(
        "too_many_connections",
        (
            "query_wait_timeout",  # PgBouncer
            "unable to check out connection from the pool",  # Supavisor
            "waiting to acquire database connection",  # RDS Proxy
        ),
        _NO_SERVER_CONNECTION,
    ),
    _Rule(
        "too_many_connections",
        (
            r"too many (\w+ ){0,3}(clients|connections?|servers|requests)\b",
            "remaining connection slots",
            "connection limit .*exceeded",
            # PgBouncer
            "no more connections allowed",
            "client connections exceeded",
            # Supavisor
            "max client connections",
            "max clients reached",
            "max pools count",
            # RDS Proxy
            "connections? to (the )?proxy exceeded",
        ),
    ),
    # pgpool's text says "authentication failed", too.
    _Rule(
        "hba", (r"pool_hba\.conf",), "the pool_hba.conf of pgpool does not allow this connection"
    ),
    # The login of a pooler at the server, which our password has no part in.
    _Rule("auth", ("authentication failed.*server_login_retry",), _BEHIND_PGBOUNCER),
    # Before `hba`: after a wrong password libpq may try again without TLS, and be rejected.
    _Rule(
        "auth",
        (
            "authentication failed",
            "no password supplied",
            '(role|user)( "")? does not exist',
            "is not permitted to log in",
            "fe_sendauth",
            "authentication method requirement",
            "SASL authentication mechanisms",
            "OAuth",
            "SCRAM",
            "channel binding",
            # PgBouncer
            "no such user",
            "login (rejected|failed)",
            "wrong password",
            "password returned by client",
            "no username supplied",
            "no authentication method",
            "(username|password) too long",
            # Supavisor
            "tenant(/| or )user",
            "user not found",
            "no tenant identifier",
            "invalid format for user",
            "authentication error",
            "too many authentication failures",
            # RDS Proxy
            "has no credentials",
            "password that was provided",
            "supports only IAM",
            "user name is missing",
            # Azure
            "invalid username",
            "access token",
            # Odyssey
            "incorrect user",
            "user blocked",
        ),
    ),
    _Rule("hba", (r"pg_hba\.conf", "host based authentication rejected")),
    _Rule(
        "hba",
        (
            "not in tenant allow_list",  # Supavisor
            "not allowed to connect to this endpoint|from a blocked network",  # Neon
        ),
        _ADDRESS,
    ),
    _Rule(
        "no_database",
        (
            'database( "")? does not exist',
            "permission denied for database",
            'database "" is not currently accepting connections',
            # PgBouncer
            "no such database",
            "database does not allow connections",
            'database "" is disabled',
            # Neon
            "endpoint (could not|cannot) be found|endpoint is disabled",
            # PgCat, Odyssey
            "no pool configured for database",
            r"\broute for\b",
        ),
    ),
    _STARTUP_PARAMETER,
    _Rule(
        "setting",
        (
            "unrecognized configuration parameter",
            "invalid value for parameter",
            "permission denied to set parameter",
            "cannot be (set|changed)",
            "invalid command-line argument",
            "requires a (numeric|boolean) value",
            "is outside the valid range",
            "RDS Proxy currently doesn.t support",
        ),
    ),
    _Rule(
        "dns",
        (
            "could not translate host name",
            "failed to resolve",
            "name or service not known",
            "temporary failure in name resolution",
            "nodename nor servname",
            "DNS lookup failed",  # PgBouncer
        ),
    ),
    # Something answers that is no PostgreSQL: a web server, say. Not a matter of certificates.
    _Rule("other", ("invalid response to (SSL|GSSAPI) negotiation",)),
    _Rule("refused", (r"try again later \(server_login_retry\)",), _BEHIND_PGBOUNCER),
    # Before `tls`: a network may fail during a handshake, too.
    _Rule(
        "refused",
        (
            "connection refused",
            "starting up",
            "shutting down",
            "not (yet )?accepting (any new )?connections",
            "in recovery mode",
            "(failed|to server): no such file or directory",
            "no route to host",
            "network is unreachable",
            "server closed the connection",
            "connection reset",
            "broken pipe",
            "SSL connection has been closed",
            "unexpected eof",
            "(SSL SYSCALL error|could not (send|receive))(?!.*timed out)",
            "server sent an error response during",
            # PgBouncer
            "connect failed",
            "server down",
            "server conn crashed",
            "database configuration changed",
            # Supavisor
            "circuit breaker open",
            "connection to database (closed|not available)",
            "SSL handshake failed: :closed",
            # Neon
            "connect to compute node",
            "control plane request failed",
            # PgCat, Odyssey, pgpool
            "pool down for database",
            "failed to (connect to|get) remote server",
            "backend nodes are down",
        ),
    ),
    _NO_ANSWER,
    _Rule("refused", ("cannot contact any KDC",), "the Kerberos server (KDC) does not answer"),
    _Rule(
        "auth",
        (
            "GSSAPI continuation error",
            "could not initiate GSSAPI security context",
            "no credential cache",
        ),
        "look at the Kerberos ticket of this account: klist",
    ),
    _Rule(
        "tls",
        (
            r"\b(SSL|TLS|SNI)\b",
            "GSSAPI|gssencmode",
            "certificate",
            "private key",
            "connection is insecure",
        ),
    ),
    _Rule(
        "other",
        ("session is (not )?read-only", "server is (not )?in hot standby mode"),
        "no server of `host` is what target_session_attrs asks for",
    ),
    # libpq has one blank after its own colons, and two after the severity that a server sends.
    _Rule("other", (r":  \S",), "the server answered: its log, or that of a pooler, may say more"),
)

# An error after which a server may have counted one more wrong password of the account.
_REFUSED_LOGIN: Final = r"(authentication failed|wrong password|is wrong)(?!.*server_login_retry)"

# Names are in quotes, which depend on the language.
_QUOTED: Final = r""""[^"]*"|(?<!\w)'[^']*'(?!\w)|»[^«]*«|«[^»]*»|„[^“”]*[“”]|“[^”]*”"""
# PgBouncer has no quotes around these, which end their line.
_AT_THE_END: Final = (
    r"(no such database: |does not allow connections: |startup parameter(?: in options)?: ).*"
)
# What poolers write before the name of a user or a tenant, without quotes.
_BEFORE_A_NAME: Final = r"for (?:the role|user:?) |tenant/user |user blocked: |route for '"

# Where there is a Kerberos ticket, libpq tries encryption by GSSAPI first: what came next counts.
_FIRST_TRY: Final = r"(?m)^.*could not initiate GSSAPI security context.*\n(?=.)"

# What libpq advises below its own message: the hint says it, and no less.
_ADVICE: Final = (
    r"\n\s{0,8}Is the server running (?:on that host and accepting TCP/IP connections"
    r"|locally and accepting connections on that socket)\?"
)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and all that it was raised from, that it came after, or that it groups."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def drop_frames(error: BaseException) -> None:
    """Let an error of psycopg_pool refer to no frame any more, before it is dropped.

    psycopg_pool's own frame refers to the error. All that the frames know, up to those of the
    program, would stay until the garbage collector comes, a borrowed connection included.
    """
    for one in chain(error):
        one.__traceback__ = None


class ConnectFailure(NamedTuple):
    """Describe one failed connect, without its exception, which holds secrets.

    Args:
        reason: From the list above; the label of metrics and events.
        text: libpq's words, scrubbed.
        wrong_password: Whether a server may lock the account after some more of them.
        hint: What to do about it, in one line.
    """

    reason: Reason
    text: str
    wrong_password: bool = False
    hint: str = ""

    @property
    def lasting(self) -> bool:
        """Tell whether it lasts until something is corrected: waiting does not help."""
        return self.reason in LASTING

    def error(self, database: str, rejected: str = "") -> ConnectError:
        """Return a new error that reports this failure.

        Args:
            database: The name of the database.
            rejected: The first problem of its files, if they are rejected.
        """
        return ConnectError(
            self.text, database=database, reason=self.reason, hint=self.hint, rejected=rejected
        )


def classify(
    error: BaseException, config: DatabaseConfig, made: Iterable[Secret] = ()
) -> ConnectFailure:
    """Turn the exception of a connect into a reason and a text that may be shown.

    Args:
        error: What `connect` raised.
        config: What it connected with: its secrets, and settings that look like one, are masked
            in the text, and its names do not decide the reason.
        made: Secrets that were made on demand, to be masked as well.
    """
    text = str(error).strip().removeprefix("connection failed: ")  # psycopg's; ours says it, too
    text = re.sub(_ADVICE, "", text) or type(error).__name__
    words = _without_names(re.sub(_FIRST_TRY, "", text), config)
    rule = next((rule for rule in _RULES if rule.fits(words)), _NO_RULE)
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        rule = _NO_ANSWER
    shown = scrub(text, (*config.unquotable, *made))
    wrong_password = rule.reason == "auth" and re.search(_REFUSED_LOGIN, words, re.IGNORECASE)
    return ConnectFailure(rule.reason, shown, bool(wrong_password), _hint(rule, shown, config))


def configure_late(function: Configure, seconds: float) -> ConnectFailure:
    """Return the failure of a function that did not end in time.

    Args:
        function: What the application gave to `configure`.
        seconds: How long it may take.
    """
    text = f"{_function(function)} did not end within {seconds:g} s"
    hint = "let it do less, or raise connect_timeout; what does it wait for?"
    return ConnectFailure("configure", text, hint=hint)


def configure_left(function: Configure, left: str) -> ConnectFailure:
    """Return the failure of a function that left a new connection in no state to be handed out.

    Args:
        function: What the application gave to `configure`.
        left: What it did: "left a transaction open".
    """
    advice = {
        "left a transaction open": "call commit() at its end, or use conn.transaction()",
        "left the connection listening": "use handle.listen(), which has a connection of its own",
    }
    hint = advice.get(left, HINTS["configure"])
    return ConnectFailure("configure", f"{_function(function)} {left}", hint=hint)


def configure_raised(
    function: Configure,
    error: Exception,
    config: DatabaseConfig,
    password: Secret,
    *,
    broken: bool,
) -> ConnectFailure:
    """Return the failure of a function that raised; without the exception, whose text is scrubbed.

    Args:
        function: What the application gave to `configure`.
        error: What it raised.
        config: What the connection was made with.
        password: Of the connection, which may have been made on demand.
        broken: Whether the connection broke meanwhile: then the server or the network has failed.
    """
    if broken:
        failure = classify(error, config, (password,))
        return failure._replace(text=f"in {_function(function)}: {failure.text}")
    text, _, _ = str(error).strip().partition("\n")  # what follows quotes the statement
    shown = scrub(text, (*config.unquotable, password))
    what = ": ".join(filter(None, (type(error).__name__, shown)))
    text = f"{_function(function)} raised {what}{_place(error)}"
    return ConnectFailure("configure", text, hint=HINTS["configure"])


def _function(function: Any) -> str:
    """Return the name of a function; never its repr, which shows the arguments of a `partial`."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"the configure function {function.__module__}.{name}"


def _place(error: Exception) -> str:
    """Return the innermost line of the application that an exception came through, in brackets."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        module, _, _ = trace.tb_frame.f_globals.get("__name__", "").partition(".")
        if module not in ("pgmonkey", "psycopg"):
            place = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _without_names(text: str, config: DatabaseConfig) -> str:
    """Return an error's text without names, whatever they are."""
    for name in config.names:  # which may hold quotes themselves
        for before, after in ('""', '"/', "''"):  # a slash: the directory of a socket
            text = text.replace(f"{before}{name}{after}", f"{before}{after}")
    known = "|".join(map(re.escape, config.names))
    text = re.sub(rf"({_BEFORE_A_NAME})(?:{known})(?!\w)", r"\1", text)
    return re.sub(_QUOTED, '""', re.sub(_AT_THE_END, r"\1", text))


def _hint(rule: _Rule, shown: str, config: DatabaseConfig) -> str:
    """Return what to do about a failed connect, in one line."""
    behind_pgbouncer = config.pooler == "pgbouncer"
    if rule is _STARTUP_PARAMETER:
        found = re.search(r"unsupported startup parameter(?: in options)?: (\S+)", shown)
        name = found[1] if found else "options"
        if behind_pgbouncer:
            return (
                f"PgBouncer does not take {name}: remove it from the service file and the"
                " environment, or add it to PgBouncer's ignore_startup_parameters"
            )
        setting = "session settings" if name == "options" else name
        return (
            f"this is PgBouncer: write `pooler: pgbouncer`, and set {setting} for the role"
            " instead: ALTER ROLE ... SET ..."
        )
    if rule is _NO_ANSWER and behind_pgbouncer:
        return (
            "no answer in connect_timeout: check host, port and firewall,"
            " and whether PgBouncer gets a connection to its server"
        )
    hint = rule.hint or HINTS[rule.reason]
    if hint == HINTS["auth"] and (mistake := password_mistake(config)):
        hint += f"; the password {mistake.message}: {mistake.hint}"
    return hint
