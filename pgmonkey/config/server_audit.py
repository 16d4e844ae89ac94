"""Compare what a server has with what its clients need: pure functions of rows of its views.

Where they do not tell, the verdict says so, with the reason.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from pgmonkey.config.budget import Demand, Fleet, Limits, Sum, budget
from pgmonkey.config.server_needs import SAMENET, Client, Line, Needs, Setting

Status: TypeAlias = Literal["ok", "mismatch", "cannot tell"]
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Rule(NamedTuple):
    """A row of pg_hba_file_rules."""

    place: str
    kind: str
    databases: tuple[str, ...]
    users: tuple[str, ...]
    address: str
    netmask: str
    method: str
    options: tuple[str, ...] = ()
    error: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Rule:
        """Return a row as any version of PostgreSQL has it."""
        file = str(row.get("file_name") or "pg_hba.conf").rpartition("/")[2]
        return cls(
            f"{file}:{row.get('line_number')}",
            row.get("type") or "",
            tuple(row.get("database") or ()),
            tuple(row.get("user_name") or ()),
            row.get("address") or "",
            row.get("netmask") or "",
            row.get("auth_method") or "",
            tuple(row.get("options") or ()),
            row.get("error") or "",
        )

    def __str__(self) -> str:
        address = self.address
        if self.netmask:
            address = str(ipaddress.ip_network(f"{address}/{_prefix(self.netmask)}", strict=False))
        fields = (self.kind, ",".join(self.databases), ",".join(self.users), address, self.method)
        return " ".join(filter(None, (*fields, *self.options)))


class Facts(NamedTuple):
    """What one connection of a client found at its server.

    Args:
        user: Who logged in.
        database: The database there.
        came_from: The address that the server sees; empty for a local socket.
        server_address: Its own address for this connection.
        encrypted: Whether the connection is.
        roles: The roles that the user is a member of, itself included.
        settings: What pg_settings shows to the user.
        rules: pg_hba_file_rules, or why it cannot be read.
        limits: How many connections are allowed.
    """

    user: str
    database: str
    came_from: str
    server_address: str
    encrypted: bool
    roles: frozenset[str]
    settings: Mapping[str, str]
    rules: tuple[Rule, ...] | str
    limits: Limits


class Failure(NamedTuple):
    """Why there is no connection: a reason of `ConnectError`, and the text."""

    reason: str
    text: str


class Verdict(NamedTuple):
    """What is true of one need: a line of pg_hba.conf, a setting, or a limit of connections."""

    what: str
    needed: str
    found: str
    status: Status
    reason: str = ""


def audit(
    needed: Iterable[Needs],
    facts: Mapping[str, Mapping[str, Facts | Failure]],
    fleet: Fleet,
    addresses: Sequence[str] = (),
) -> dict[str, tuple[Verdict, ...]]:
    """Compare what servers have with what they need; return the verdicts about each server.

    Args:
        needed: What they need.
        facts: By server and database, what a connection of each client found, or why there is none.
        fleet: How many processes there are.
        addresses: Where clients run; without any, where the connections came from.
    """
    needed = tuple(needed)
    sums = _sums(needed, facts, fleet)
    return {
        one.server: tuple(dict.fromkeys(_of_server(one, facts[one.server], sums, addresses)))
        for one in needed
    }


def _sums(
    needed: Iterable[Needs], facts: Mapping[str, Mapping[str, Facts | Failure]], fleet: Fleet
) -> tuple[Sum, ...]:
    """Count the connections to each server, which the files may know under several names."""
    demands: list[Demand] = []
    limits: dict[str, Limits] = {}
    counted: set[tuple[str, str]] = set()
    for one in needed:
        for client in one.clients:
            # One of several hosts: each is counted, and has limits of its own.
            name = f"{client.name} at {one.server}"
            more = [demand._replace(name=name) for demand in client.demands]
            found = facts[one.server][client.name]
            if isinstance(found, Facts):
                limits[name] = found.limits
                if (client.name, found.limits.identity) in counted:
                    # Two of its hosts are one server, which its pools connect to once.
                    more = [demand._replace(pools=0) for demand in more]
                counted.add((client.name, found.limits.identity))
            demands += more
    return budget(demands, fleet, limits)


def _of_server(
    needed: Needs,
    facts: Mapping[str, Facts | Failure],
    sums: Iterable[Sum],
    addresses: Sequence[str],
) -> Iterator[Verdict]:
    for client in needed.clients:
        yield from _lines(client, facts[client.name], addresses)
    why = next((one.text for one in facts.values() if isinstance(one, Failure)), "")
    for one in sums:
        if needed.server in one.server.split(", "):
            yield _connections(one, why)
    first = next((one for one in facts.values() if isinstance(one, Facts)), None)
    for setting in needed.settings:
        if setting.name != "max_connections":
            shown = first.settings.get(setting.name) if first else None
            yield _setting(setting, shown, _HIDDEN if first else why)


_HIDDEN: Final = "pg_settings does not show it to this role"


def _setting(setting: Setting, shown: str | None, why: str) -> Verdict:
    """Judge a setting. Those of files can have any name."""
    needed = "on" if setting.value == "on" else "a file"
    if shown is None:
        return Verdict(setting.name, needed, "", "cannot tell", why)
    good = shown == "on" if needed == "on" else shown != ""
    status: Status = "ok" if good else "mismatch"
    return Verdict(setting.name, needed, shown or "none", status, "" if good else setting.why)


def _connections(one: Sum, why: str) -> Verdict:
    """Judge a limit of the server, or of one of its roles or databases."""
    what = f"CONNECTION LIMIT of {one.scope} {one.name}" if one.name else "max_connections"
    if one.limit is None:
        return Verdict(what, str(one.rotating), "", "cannot tell", why)
    reason = "" if one.name else "less those that are reserved"
    if ", " in one.server:
        reason += f"; {one.server} are one server"
    status: Status = "mismatch" if one.over else "ok"
    return Verdict(what, str(one.rotating), str(one.limit), status, reason.removeprefix("; "))


def _lines(client: Client, facts: Facts | Failure, addresses: Sequence[str]) -> Iterator[Verdict]:
    """Judge the lines of pg_hba.conf that a client needs."""
    if isinstance(facts, Failure):
        # Where the server says that no line lets it in, that is what was asked.
        status: Status = "mismatch" if facts.reason == "hba" else "cannot tell"
        for line in client.lines(addresses or (SAMENET,)):
            yield Verdict("pg_hba.conf", str(line), "", status, facts.text)
        return
    came_from = [str(ipaddress.ip_network(facts.came_from))] if facts.came_from else [SAMENET]
    if not addresses and not client.is_local and facts.came_from:
        # Where this connection came from is known, even on the server's own machine.
        client = client._replace(hostaddr=client.hostaddr or facts.server_address)
    known = client._replace(
        user=client.user or facts.user,
        database=client.database or facts.database,
        tls=facts.encrypted if client.tls is None else client.tls,
    )
    for line in client.lines(addresses or came_from):
        yield _line(line, known, facts)


def _line(line: Line, client: Client, facts: Facts) -> Verdict:
    """Judge a line that a client needs, as PostgreSQL does it: by the first rule that matches."""
    needed = str(line)
    if isinstance(facts.rules, str):
        return Verdict("pg_hba.conf", needed, "", "cannot tell", facts.rules)
    for rule in facts.rules:
        if rule.error:
            reason = f"{rule.place} has an error, so the server keeps older rules: {rule.error}"
            return Verdict("pg_hba.conf", needed, "", "cannot tell", reason)
    for rule in facts.rules:
        matches = _matches(rule, line, client, facts)
        if matches is False:
            continue
        found = f"{rule.place}: {rule}"
        if matches is not True:
            return Verdict("pg_hba.conf", needed, found, "cannot tell", matches)
        return Verdict("pg_hba.conf", needed, found, *_login(rule, client))
    return Verdict("pg_hba.conf", needed, "", "mismatch", "no line lets this client in")


def _login(rule: Rule, client: Client) -> tuple[Status, str]:
    """Tell whether a client can log in by the rule that matches it, and why."""
    if "clientcert=verify-" in " ".join(rule.options) and not client.has_certificate:
        return "mismatch", "it asks for a client certificate, and the file has no sslcert"
    accepted = client.accepts(rule.method)
    if accepted is None:
        return "cannot tell", f"{rule.method} depends on more than the file says"
    if not accepted:
        return "mismatch", f"the client cannot log in by {rule.method}"
    if rule.method == "cert" or "clientcert=verify-full" in rule.options:
        return "ok", "if the certificate is that of the user"
    return "ok", ""


def _matches(rule: Rule, line: Line, client: Client, facts: Facts) -> bool | str:
    """Tell whether a rule is the one for a client; a text says why that cannot be told."""
    tests = (
        _matches_kind(rule.kind, client),
        _matches_names(rule.databases, client.database or "", client.user or "", facts.roles, ""),
        _matches_names(rule.users, client.user or "", "", facts.roles, "+"),
        True if client.is_local else _matches_address(rule, line.address, facts),
    )
    if False in tests:
        return False
    return next((test for test in tests if isinstance(test, str)), True)


def _matches_kind(kind: str, client: Client) -> bool:
    if client.is_local or kind == "local":
        return client.is_local and kind == "local"
    if kind in ("hostssl", "hostnossl"):
        return client.tls is (kind == "hostssl")
    return kind != "hostgssenc"  # nothing here encrypts with GSSAPI


def _matches_names(
    given: Sequence[str], name: str, same: str, roles: frozenset[str], mark: str
) -> bool | str:
    """Tell whether a name is in a list of databases, or of users, where `+` marks a role."""
    unclear = ""
    for one in given:
        if one in ("all", name):
            return True
        if mark and one.startswith(mark):
            if one.removeprefix(mark) in roles:
                return True
        elif not mark and one == "sameuser":
            if name == same:
                return True
        elif not mark and one in ("samerole", "samegroup"):
            if name in roles:
                return True
        elif one.startswith("/"):
            unclear = f"{one} is a regular expression of PostgreSQL"
    return unclear or False


def _matches_address(rule: Rule, address: str, facts: Facts) -> bool | str:
    if rule.address == "all":
        return True
    client = _network(address)
    if client is None:  # a keyword
        if rule.address == address:
            return True
        return "where the clients are is not known: --client names it"
    if rule.address in ("samehost", "samenet"):
        here = _network(facts.server_address)
        if here is not None and (client == here or client.network_address.is_loopback):
            return True
        return f"{rule.address} depends on the networks of the server"
    if not rule.netmask:
        return f"{rule.address} is looked up by the server"
    wanted = _network(f"{rule.address}/{_prefix(rule.netmask)}")
    if wanted is None or wanted.version != client.version:
        return False
    if not wanted.overlaps(client):
        return False
    if isinstance(client, ipaddress.IPv4Network) and isinstance(wanted, ipaddress.IPv4Network):
        inside = client.subnet_of(wanted)
    else:
        assert isinstance(client, ipaddress.IPv6Network)
        assert isinstance(wanted, ipaddress.IPv6Network)
        inside = client.subnet_of(wanted)
    return inside or f"only a part of {client} is in {wanted}"


def _network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _prefix(netmask: str) -> int:
    """Return how many bits a netmask has.

    Example:
        >>> _prefix("255.255.255.0"), _prefix("ffff::")
        (24, 16)
    """
    return int(ipaddress.ip_address(netmask)).bit_count()
