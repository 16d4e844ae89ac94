"""What servers need in pg_hba.conf and postgresql.conf, so that the clients of some files can log in.

Pure functions of configs. `server_audit` compares with what a server has.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pgmonkey.config.budget import Demand, Fleet, demand_of, of_process
from pgmonkey.config.settings import host_and_port

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig, Portable

#: What a pg_hba.conf line says of clients whose addresses are not known: the server's own networks.
SAMENET: Final = "samenet"
_DEFAULT_PORT: Final = "5432"
#: PostgreSQL's own default. Nothing here says to lower it.
_MAX_CONNECTIONS: Final = 100
_FOR_SUPERUSERS: Final = 3
_WITH_TLS: Final = ("require", "verify-ca", "verify-full")
_PLACE: Final = ("host", "hostaddr", "port", "dbname", "user")
_KEYWORDS: Final = ("all", "replication", "samegroup", "samerole", "sameuser")
#: How libpq names what each method of pg_hba.conf asks for, in `require_auth`. An md5 line takes
#: SCRAM, too, if the password is stored for it.
_ASKS_FOR: Final = {
    "scram-sha-256": {"scram-sha-256"},
    "md5": {"md5", "scram-sha-256"},
    **{name: {"password"} for name in ("password", "ldap", "radius", "pam", "bsd")},
    **{name: {"none"} for name in ("trust", "cert", "peer", "ident")},
    "gss": {"gss"},
    "sspi": {"sspi"},
    "oauth": {"oauth"},
}
#: Depends on more than the file says: the account of the process, a ticket, a token.
_NOT_IN_THE_FILE: Final = ("gss", "sspi", "oauth", "peer", "ident")


class Line(NamedTuple):
    """A line of pg_hba.conf, field by field; `address` is empty for a local socket."""

    kind: str
    database: str
    user: str
    address: str
    method: str
    options: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


class Setting(NamedTuple):
    """A setting of postgresql.conf, as it is written there, and what it is for."""

    name: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value}"


class Client(NamedTuple):
    """How one database of the files reaches one server.

    Args:
        name: The database in the files.
        host: Address, name, or the directory of a socket; empty for libpq's own directory.
        port: The port.
        hostaddr: The address, if the file has one beside the name.
        database: Its name on the server; `None` if that is made on demand.
        user: Who logs in; `None` as there.
        tls: Whether its connections are encrypted; `None` if either is accepted.
        checks: Whether it checks who signed the server's certificate.
        verifies: The name that the certificate must have; `None` if that is not checked.
        has_password: Whether the file has one, or says what makes it.
        has_certificate: Whether it shows a certificate.
        require_auth: What it accepts, as libpq has it.
        demands: What one process can open.
    """

    name: str
    host: str
    port: str
    hostaddr: str = ""
    database: str | None = None
    user: str | None = None
    tls: bool | None = None
    checks: bool = False
    verifies: str | None = None
    has_password: bool = False
    has_certificate: bool = False
    require_auth: str = ""
    demands: tuple[Demand, ...] = ()

    @property
    def server(self) -> str:
        """The name of the server, as `budget` has it."""
        return host_and_port(self.host or "local socket", self.port)

    @property
    def is_local(self) -> bool:
        """Whether it connects to a local socket."""
        return not self.hostaddr and self.host[:1] in ("", "/", "@")

    def lines(self, addresses: Sequence[str]) -> Iterator[Line]:
        """Yield the lines that let it in.

        Args:
            addresses: Where clients are, as pg_hba.conf has it. Those of the server's own machine
                are known.
        """
        database, user = (_token(name) for name in (self.database, self.user))
        if database is None or user is None:
            return
        method, more = self._method()
        if self.is_local:
            yield Line("local", database, user, "", method, more)
            return
        kind = "hostssl" if self.tls or self.has_certificate else "host"
        for address in _loopback(self.hostaddr or self.host) or addresses:
            yield Line(kind, database, user, address, method, more)

    def _method(self) -> tuple[str, str]:
        more = "clientcert=verify-ca" if self.has_certificate else ""
        wanted = [name for name in self.require_auth.split(",") if name and name[0] != "!"]
        if not wanted and self.has_certificate and not self.has_password:
            return "cert", ""
        if wanted and "scram-sha-256" not in wanted:
            if wanted[0] != "none":
                return wanted[0], more
            if self.has_certificate:
                return "cert", ""
            return ("peer" if self.is_local else "trust"), ""
        if self.is_local and not self.has_password and not wanted:
            return "peer", ""
        return "scram-sha-256", more

    def accepts(self, method: str) -> bool | None:
        """Tell whether it can log in by a method of pg_hba.conf; `None` if the file does not say."""
        if method == "reject":
            return False
        if method == "cert" and not self.has_certificate:
            return False
        names = [name for name in self.require_auth.split(",") if name]
        if names:
            asked = _ASKS_FOR.get(method, set())
            negative = {name.removeprefix("!") for name in names if name[0] == "!"}
            allowed = asked - negative if negative else asked & {*names}
            if not allowed:
                return False
        return None if method in _NOT_IN_THE_FILE else True


class Needs(NamedTuple):
    """What one server needs.

    Args:
        server: Host and port.
        clients: The databases of the files that lead there.
        open: How many connections the fleet opens there at most, while its pools rotate.
        lines: Of pg_hba.conf.
        settings: Of postgresql.conf.
    """

    server: str
    clients: tuple[Client, ...]
    open: int
    lines: tuple[Line, ...]
    settings: tuple[Setting, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The databases of the files, each of them once."""
        return tuple(dict.fromkeys(one.name for one in self.clients))


def clients_of(
    config: DatabaseConfig, loops: int, kinds: Sequence[ConnectionType] = ()
) -> tuple[Client, ...] | str:
    """Return how a database reaches each of its servers, or why that is not known.

    Args:
        config: The database.
        loops: How many event loops a process has.
        kinds: The types that a process uses; that of the file if there are none.
    """
    kinds = kinds or (config.connection_type,)
    portable = config.portable()
    settings = portable.settings
    if config.pooler == "pgbouncer":
        return "it leads to PgBouncer: see auth_file and max_client_conn there"
    if {"host", "hostaddr", "port"} & {*portable.hidden}:
        return "its host holds a secret"
    if verbatim := [key for key in _PLACE if "${" in settings.get(key, "")]:
        return f"{verbatim[0]} is a reference: pass --resolve-env"
    if "service" in settings and not {"host", "hostaddr"} & settings.keys():
        return "its host is in a service file of libpq"
    hosts, addresses = (settings.get(key, "").split(",") for key in ("host", "hostaddr"))
    ports = settings.get("port", "").split(",")
    demands = tuple(demand_of(config, loops, kind) for kind in kinds)
    found = []
    for at in range(max(len(hosts), len(addresses))):
        address = addresses[at] if len(addresses) > at else ""
        host = (hosts[at] if len(hosts) > at else "") or address
        port = (ports[at] if len(ports) > 1 else ports[0]) or _DEFAULT_PORT
        found.append(_client(portable, demands, Client(config.name, host, port, address)))
    return tuple(dict.fromkeys(found))


def _client(portable: Portable, demands: tuple[Demand, ...], place: Client) -> Client:
    settings = portable.settings
    system = settings.get("sslrootcert") == "system"
    sslmode = settings.get("sslmode") or ("verify-full" if system else "prefer")
    bound = settings.get("channel_binding") == "require"
    tls: bool | None = None
    if place.is_local or sslmode == "disable":
        tls = False
    elif sslmode in _WITH_TLS or bound:
        tls = True
    require_auth = settings.get("require_auth", "").replace(" ", "")
    has_files = bool(settings.get("sslcert")) and bool(settings.get("sslkey"))
    return place._replace(
        database=settings.get("dbname"),
        user=settings.get("user"),
        tls=tls,
        checks=bool(tls and (sslmode.startswith("verify-") or settings.get("sslrootcert"))),
        verifies=place.host if tls and sslmode == "verify-full" else None,
        has_password="password" in portable.hidden or bool(settings.get("passfile")),
        has_certificate=has_files and tls is not False,
        require_auth="scram-sha-256" if bound else require_auth,
        # Each of several hosts may have to carry all of them.
        demands=tuple(one._replace(server=place.server) for one in demands),
    )


def needs(
    clients: Iterable[Client], fleet: Fleet, addresses: Sequence[str] = (SAMENET,)
) -> tuple[Needs, ...]:
    """Return what each server needs.

    Args:
        clients: How the databases reach them.
        fleet: How many processes there are.
        addresses: Where they run, as pg_hba.conf has it.
    """
    servers: dict[str, list[Client]] = {}
    for one in clients:
        servers.setdefault(one.server, []).append(one)
    return tuple(
        _needs(server, tuple(there), fleet, addresses) for server, there in sorted(servers.items())
    )


def _needs(server: str, there: tuple[Client, ...], fleet: Fleet, addresses: Sequence[str]) -> Needs:
    demands = [demand for one in there for demand in one.demands]
    most = of_process(demands)[1] * fleet.processes
    lines = dict.fromkeys(line for one in there for line in one.lines(addresses))
    return Needs(server, there, most, tuple(lines), tuple(_settings(there, most)))


def _settings(there: Sequence[Client], most: int) -> Iterator[Setting]:
    yield Setting(
        "max_connections",
        str(max(_MAX_CONNECTIONS, most + _FOR_SUPERUSERS)),
        f"these clients open up to {most}, and {_FOR_SUPERUSERS} are kept for superusers",
    )
    with_tls = [one for one in there if one.tls or one.has_certificate]
    if with_tls:
        names = ", ".join(dict.fromkeys(one.name for one in with_tls))
        verified = dict.fromkeys(one.verifies for one in with_tls if one.verifies)
        named = f"for {', '.join(verified)}, " if verified else ""
        signed = "signed by an authority in sslrootcert"
        if not any(one.checks for one in with_tls):
            signed = "any certificate: no client checks it"
        yield Setting("ssl", "on", f"sslmode of {names}")
        yield Setting("ssl_cert_file", "'server.crt'", f"{named}{signed}")
        yield Setting("ssl_key_file", "'server.key'", "readable by PostgreSQL alone")
    if names := ", ".join(dict.fromkeys(one.name for one in there if one.has_certificate)):
        yield Setting("ssl_ca_file", "'ca.crt'", f"who signed the client certificate of {names}")


def network(text: str) -> str:
    """Return an address or a network as pg_hba.conf has it.

    Raises:
        ValueError: it is none.

    Example:
        >>> network("10.1.2.3"), network("fd00::/8"), network("samenet")
        ('10.1.2.3/32', 'fd00::/8', 'samenet')
    """
    return text if text in (SAMENET, "samehost", "all") else str(ipaddress.ip_network(text))


def _loopback(host: str) -> list[str]:
    """Return the addresses of clients of the server's own machine, if the host is that machine."""
    if host == "localhost":
        return ["127.0.0.1/32", "::1/128"]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    return [f"{'127.0.0.1/32' if address.version == 4 else '::1/128'}"] * address.is_loopback


def _token(name: str | None) -> str | None:
    """Return a name as pg_hba.conf has it; `None` if there is no form for it.

    Example:
        >>> print(_token("orders"), _token("all"), _token('the "new" one'), _token(None))
        orders "all" "the ""new"" one" all
    """
    if name is None:
        return "all"
    if re.search(r"[\x00-\x1f\x7f]", name):
        return None
    if re.fullmatch(r"\w[\w$.-]*", name) and name.lower() not in _KEYWORDS:
        return name
    return '"' + name.replace('"', '""') + '"'
