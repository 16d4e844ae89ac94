"""What a server needs so that the clients of some files can log in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pgmonkey.config.budget import Demand, Fleet, Limits
from pgmonkey.config.loader import load_file
from pgmonkey.config.server_audit import Facts, Failure, Rule, Verdict, audit
from pgmonkey.config.server_needs import Client, Needs, clients_of, needs

AFTER = {"host": "db.example", "dbname": "shop", "user": "app", "password": "x"}


@pytest.fixture
def clients(tmp_path: Path):
    """Return the clients of a file with these connection settings."""

    def clients(connection: dict, kinds=(), **more) -> tuple[Client, ...] | str:
        for name in ("ca.crt", "app.crt", "app.key"):
            (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----\n")
            (tmp_path / name).chmod(0o600)
        settings = {
            key: str(tmp_path / value) if str(value).endswith((".crt", ".key")) else value
            for key, value in (AFTER | connection).items()
            if value is not None
        }
        path = tmp_path / "shop.yaml"
        path.write_text(yaml.safe_dump({"connection_settings": settings, **more}))
        return clients_of(load_file(path), 1, kinds)

    return clients


def lines(found: tuple[Client, ...], *addresses: str) -> list[str]:
    """Return the lines of pg_hba.conf, of all servers."""
    return [
        str(line) for one in needs(found, Fleet(), addresses or ("samenet",)) for line in one.lines
    ]


@pytest.mark.parametrize(
    "connection, expected",
    [
        ({}, ["host shop app samenet scram-sha-256"]),
        ({"sslmode": "disable"}, ["host shop app samenet scram-sha-256"]),
        ({"sslmode": "prefer"}, ["host shop app samenet scram-sha-256"]),
        ({"sslmode": "require"}, ["hostssl shop app samenet scram-sha-256"]),
        (
            {"sslmode": "verify-full", "sslrootcert": "ca.crt"},
            ["hostssl shop app samenet scram-sha-256"],
        ),
        ({"channel_binding": "require"}, ["hostssl shop app samenet scram-sha-256"]),
        (
            {"sslmode": "require", "sslcert": "app.crt", "sslkey": "app.key"},
            ["hostssl shop app samenet scram-sha-256 clientcert=verify-ca"],
        ),
        (
            {"sslmode": "require", "sslcert": "app.crt", "sslkey": "app.key", "password": None},
            ["hostssl shop app samenet cert"],
        ),
        ({"require_auth": "md5"}, ["host shop app samenet md5"]),
        ({"require_auth": "!password"}, ["host shop app samenet scram-sha-256"]),
        ({"host": "/run/postgresql"}, ["local shop app scram-sha-256"]),
        ({"host": "/run/postgresql", "password": None}, ["local shop app peer"]),
        (
            {"host": "localhost"},
            [f"host shop app {one} scram-sha-256" for one in ("127.0.0.1/32", "::1/128")],
        ),
        ({"host": "::1"}, ["host shop app ::1/128 scram-sha-256"]),
        ({"host": "db", "hostaddr": "127.0.0.1"}, ["host shop app 127.0.0.1/32 scram-sha-256"]),
        ({"host": "fd00::5"}, ["host shop app samenet scram-sha-256"]),
        ({"host": "a,b"}, ["host shop app samenet scram-sha-256"] * 2),
        ({"dbname": "all", "user": "Ann Lee"}, ['host "all" "Ann Lee" samenet scram-sha-256']),
        ({"dbname": 'of "Ann"'}, ['host "of ""Ann""" app samenet scram-sha-256']),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_needs_these_lines(connection: dict, expected: list[str], clients):
    """TLS mode, certificate, kind of host and `require_auth` decide about each field of a line."""
    assert lines(clients(connection)) == expected


def test_the_address_of_a_line_is_that_of_the_clients(clients):
    """A line has the networks that are given, except for a client on the server's own machine."""
    given = ("10.0.0.0/8", "fd00::/8")
    assert lines(clients({"host": "192.0.2.7"}), *given) == [
        "host shop app 10.0.0.0/8 scram-sha-256",
        "host shop app fd00::/8 scram-sha-256",
    ]
    assert lines(clients({"host": "::1"}), *given) == ["host shop app ::1/128 scram-sha-256"]


def test_each_host_carries_all(clients):
    """Each of several hosts needs the lines, and room for all connections."""
    found = clients({"host": "a,b", "port": "5432,5433"}, connection_type="pool")
    assert [(one.server, one.open) for one in needs(found, Fleet(2, 3))] == [
        ("a:5432", 66),
        ("b:5433", 66),
    ]


def test_pools_are_added_up(clients):
    """All pools of one file count together, and `max_connections` is never below 100."""
    pools = {"pool_settings": {"max_size": 20}, "async_pool_settings": {"max_size": 5}}
    (few,) = needs(clients({}, ("pool", "async_pool"), **pools), Fleet())
    (setting,) = few.settings
    assert (few.open, str(setting)) == (27, "max_connections = 100")
    (many,) = needs(clients({}, ("pool", "async_pool"), **pools), Fleet(5, 4))
    assert (many.open, str(many.settings[0])) == (540, "max_connections = 543")


@pytest.mark.parametrize(
    "connection, expected",
    [
        ({"sslmode": "prefer"}, []),
        ({"sslmode": "require"}, ["ssl", "ssl_cert_file", "ssl_key_file"]),
        ({"sslmode": "require", "host": "/tmp"}, []),
        (
            {"sslmode": "require", "sslcert": "app.crt", "sslkey": "app.key"},
            ["ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file"],
        ),
    ],
)
def test_settings_of_tls_are_needed_where_tls_is(connection: dict, expected: list[str], clients):
    """A client that insists on TLS needs the settings; one with a certificate an authority."""
    (one,) = needs(clients(connection), Fleet())
    assert [setting.name for setting in one.settings[1:]] == expected


@pytest.mark.parametrize(
    "connection, why",
    [
        ({"sslmode": "require"}, "any certificate: no client checks it"),
        ({"sslmode": "require", "sslrootcert": "ca.crt"}, "signed by an authority in sslrootcert"),
        (
            {"sslmode": "verify-ca", "sslrootcert": "ca.crt"},
            "signed by an authority in sslrootcert",
        ),
        (
            {"sslmode": "verify-full", "sslrootcert": "ca.crt"},
            "for db.example, signed by an authority in sslrootcert",
        ),
    ],
)
def test_the_certificate_must_be_one_that_clients_accept(connection: dict, why: str, clients):
    """`require` alone accepts any certificate; with an authority in the file libpq checks it."""
    (one,) = needs(clients(connection), Fleet())
    assert [setting.why for setting in one.settings if setting.name == "ssl_cert_file"] == [why]


def test_an_address_of_ipv6_is_in_brackets(clients):
    """Brackets tell the address from its port."""
    (one,) = needs(clients({"host": "2001:db8::1", "port": 5433}), Fleet())
    assert one.server == "[2001:db8::1]:5433"


def test_without_a_host_it_is_the_local_socket(tmp_path: Path):
    """A file without host, user and database needs a line for the socket, for all names."""
    path = tmp_path / "shop.yaml"
    path.write_text("connection_settings: {sslmode: require}\n")
    found = clients_of(load_file(path, isolate=False), 1)
    assert lines(found) == ["local all all peer"]


def test_what_is_not_known_is_said(clients):
    """A file with PgBouncer or a service has a reason in place of needs."""
    assert "PgBouncer" in clients({}, pooler="pgbouncer")
    assert "service" in clients({"host": None, "service": "shop"})


# ---- with what a server has

LIMITS = Limits("1", 100, 3, 0, False, False, "app", None, "shop", None, 1)
ALL = {"databases": ("all",), "users": ("all",)}
IPV4, IPV6 = ("0.0.0.0", "0.0.0.0"), ("::", "::")


def rule(kind="host", address=IPV4, method="scram-sha-256", *options, **names) -> Rule:
    """Return a line of a server."""
    databases, users = (names.get(key, ("all",)) for key in ("databases", "users"))
    place = names.get("place", "pg_hba.conf:1")
    return Rule(place, kind, databases, users, *address, method, options, names.get("error", ""))


def facts(rules, came_from="10.0.0.9", **more) -> Facts:
    """Return what a connection found."""
    given = {
        "user": "app", "database": "shop", "came_from": came_from, "server_address": "10.0.0.1",
        "encrypted": False, "roles": frozenset({"app", "staff"}),
        "settings": {"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"},
        "rules": rules, "limits": LIMITS,
    }  # fmt: skip
    return Facts(**(given | more))


def audited(needed: Needs, found: Facts | Failure, *addresses: str) -> tuple[Verdict, ...]:
    """Return the verdicts about one server with one client."""
    facts = {needed.server: {needed.clients[0].name: found}}
    return audit([needed], facts, Fleet(), addresses)[needed.server]


def judged(client: Client, found: Facts | Failure, *addresses: str):
    """Return what an audit says of pg_hba.conf."""
    (one,) = needs([client], Fleet(), addresses or ("samenet",))
    verdicts = audited(one, found, *addresses)
    return [(one.status, one.reason) for one in verdicts if one.what == "pg_hba.conf"]


CLIENT = Client("shop", "db", "5432", database="shop", user="app", has_password=True)


@pytest.mark.parametrize(
    "rules, status, says",
    [
        ([rule()], "ok", ""),
        ([rule("local", ("", "")), rule()], "ok", ""),
        ([rule("hostssl"), rule(method="reject")], "mismatch", "cannot log in by reject"),
        ([rule("hostnossl")], "ok", ""),
        ([rule("hostgssenc")], "mismatch", "no line lets this client in"),
        ([rule("hostnogssenc")], "ok", ""),
        ([rule(address=("10.0.0.0", "255.255.255.0"))], "ok", ""),
        ([rule(address=("10.1.0.0", "255.255.0.0"))], "mismatch", "no line"),
        ([rule(address=IPV6)], "mismatch", "no line"),
        ([rule(address=("all", ""))], "ok", ""),
        ([rule(address=("samenet", ""))], "cannot tell", "networks of the server"),
        ([rule(address=("app.example", ""))], "cannot tell", "looked up by the server"),
        ([rule(users=("+staff",))], "ok", ""),
        ([rule(users=("+admins",))], "mismatch", "no line"),
        ([rule(users=("/^a",))], "cannot tell", "regular expression"),
        ([rule(users=("/^a", "app"))], "ok", ""),
        ([rule(databases=("sameuser",))], "mismatch", "no line"),
        ([rule(databases=("samerole",))], "mismatch", "no line"),
        ([rule(databases=("replication", "other"))], "mismatch", "no line"),
        ([rule("host", IPV4, "cert")], "mismatch", "cannot log in by cert"),
        ([rule("host", IPV4, "gss")], "cannot tell", "depends on more"),
        ([rule("host", IPV4, "md5", "clientcert=verify-ca")], "mismatch", "no sslcert"),
        ([rule(), rule(error="bad", place="pg_hba.conf:7")], "cannot tell", "pg_hba.conf:7"),
        ([], "mismatch", "no line"),
        ("permission denied", "cannot tell", "permission denied"),
    ],
)
def test_the_first_line_that_matches_decides(rules, status: str, says: str):
    """An audit judges by the first rule that matches, and does not guess what a view hides."""
    ((found, reason),) = judged(CLIENT, facts(rules))
    assert (found, says in reason) == (status, True), reason


def test_the_clients_of_a_network_must_all_be_let_in():
    """A rule for a part of the network cannot be judged; one for all of it is enough."""
    half = [rule(address=("10.0.0.0", "255.128.0.0"))]
    assert judged(CLIENT, facts(half), "10.0.0.0/9") == [("ok", "")]
    ((status, reason),) = judged(CLIENT, facts(half), "10.0.0.0/8")
    assert (status, reason) == ("cannot tell", "only a part of 10.0.0.0/8 is in 10.0.0.0/9")
    assert judged(CLIENT, facts([rule(address=IPV6)]), "fd00::/8") == [("ok", "")]


@pytest.mark.parametrize(
    "accepts, method, status",
    [
        ("scram-sha-256", "scram-sha-256", "ok"),
        ("scram-sha-256", "md5", "ok"),
        ("scram-sha-256", "password", "mismatch"),
        ("scram-sha-256", "trust", "mismatch"),
        ("!password", "scram-sha-256", "ok"),
        ("!password", "ldap", "mismatch"),
        ("none", "trust", "ok"),
    ],
)
def test_a_client_may_accept_less(accepts: str, method: str, status: str):
    """A method that `require_auth` of the client refuses is a mismatch."""
    client = CLIENT._replace(require_auth=accepts)
    ((found, _),) = judged(client, facts([rule(method=method)]))
    assert found == status


@pytest.mark.parametrize(
    "method, options", [("cert", ()), ("scram-sha-256", ("clientcert=verify-full",))]
)
def test_the_name_in_a_certificate_is_not_judged(method: str, options: tuple[str, ...]):
    """A line that wants the user's name in the certificate is right, and the reason says so."""
    client = CLIENT._replace(has_certificate=True, tls=True)
    found = facts([rule("hostssl", IPV4, method, *options)], encrypted=True)
    assert judged(client, found) == [("ok", "if the certificate is that of the user")]


def test_a_connection_says_what_the_file_leaves_open():
    """A connection tells whether `prefer` ended with TLS, and which user logged in."""
    rules = [rule("hostssl"), rule(method="reject")]
    assert judged(CLIENT, facts(rules, encrypted=True)) == [("ok", "")]
    made = CLIENT._replace(user=None, database=None)
    assert judged(made, facts([rule(users=("app",))])) == [("ok", "")]


def test_a_local_socket_is_judged_by_local_lines():
    """A client of a socket matches no rule for addresses, and `peer` cannot be judged."""
    client = CLIENT._replace(host="/tmp")
    found = facts([rule(), rule("local", ("", ""), "peer")], "", server_address="")
    ((status, reason),) = judged(client, found)
    assert (status, reason) == ("cannot tell", "peer depends on more than the file says")


@pytest.mark.parametrize(
    "limits, expected",
    [
        (LIMITS, [("max_connections", "11", "97", "ok")]),
        (LIMITS._replace(max_connections=13), [("max_connections", "11", "10", "mismatch")]),
        (
            LIMITS._replace(role_limit=5),
            [
                ("max_connections", "11", "97", "ok"),
                ("CONNECTION LIMIT of role app", "11", "5", "mismatch"),
            ],
        ),
    ],
)
def test_limits_are_those_of_budget(limits: Limits, expected: list, clients):
    """An audit compares the limits of the server, its roles and its databases."""
    (one,) = needs(clients({}, connection_type="pool"), Fleet())
    verdicts = audited(one, facts([rule()], limits=limits))
    assert [
        verdict[:4] for verdict in verdicts if "onnection" in verdict.what or "CONN" in verdict.what
    ] == expected


def test_two_names_of_one_server_are_counted_together():
    """The pools of all names of a server count together, and a standby is counted apart."""
    demand = Demand("a", "", max_size=60)
    clients = [
        CLIENT._replace(
            name=name, host=host, demands=(demand._replace(name=name, server=f"{host}:5432"),)
        )
        for name, host in (("a", "db"), ("b", "10.0.0.1"), ("a", "standby"))
    ]
    needed = needs(clients, Fleet())
    here, there = facts([rule()]), facts([rule()], limits=LIMITS._replace(identity="2"))
    verdicts = audit(
        needed,
        {"db:5432": {"a": here}, "10.0.0.1:5432": {"b": here}, "standby:5432": {"a": there}},
        Fleet(),
    )
    found = {server: some[1] for server, some in verdicts.items()}
    assert [found[f"{host}:5432"].needed for host in ("db", "10.0.0.1", "standby")] == [
        "122",
        "122",
        "61",
    ]
    assert found["db:5432"].status == "mismatch"
    assert found["db:5432"].reason.endswith("10.0.0.1:5432, db:5432 are one server")
    assert found["standby:5432"].status == "ok"


def test_several_hosts_that_are_one_server_are_counted_once():
    """A database behind two proxies of one primary opens its pool once."""
    demand = Demand("a", "", max_size=60)
    clients = [
        CLIENT._replace(name="a", host=host, demands=(demand._replace(server=f"{host}:5432"),))
        for host in ("proxy1", "proxy2")
    ]
    needed = needs(clients, Fleet())
    facts_of = {f"{host}:5432": {"a": facts([rule()])} for host in ("proxy1", "proxy2")}
    found = {server: some[1] for server, some in audit(needed, facts_of, Fleet()).items()}
    assert {server: (one.needed, one.status) for server, one in found.items()} == {
        "proxy1:5432": ("61", "ok"),
        "proxy2:5432": ("61", "ok"),
    }


def test_settings_of_tls_are_compared(clients):
    """Any certificate file is right, none is a mismatch, and a hidden setting is not judged."""
    connection = {"sslmode": "require", "sslcert": "app.crt", "sslkey": "app.key"}
    (one,) = needs(clients(connection), Fleet())
    shown = {"ssl": "off", "ssl_cert_file": "/etc/db.pem", "ssl_ca_file": ""}
    verdicts = audited(one, facts([rule()], settings=shown))
    assert {
        verdict.what: verdict.status for verdict in verdicts if verdict.what.startswith("ssl")
    } == {
        "ssl": "mismatch",
        "ssl_cert_file": "ok",
        "ssl_key_file": "cannot tell",
        "ssl_ca_file": "mismatch",
    }


def test_without_a_connection_nothing_is_judged(clients):
    """Each verdict is `cannot tell`, with the reason why there is no connection."""
    (one,) = needs(clients({"sslmode": "require"}), Fleet())
    verdicts = audited(one, Failure("refused", "cannot connect to shop: refused"))
    assert {(verdict.status, verdict.reason) for verdict in verdicts} == {
        ("cannot tell", "cannot connect to shop: refused")
    }
    assert [verdict.what for verdict in verdicts][:2] == ["pg_hba.conf", "max_connections"]


def test_a_refusal_of_the_server_is_a_mismatch():
    """A server that says it has no line for the client has answered the question."""
    refused = Failure("hba", "no pg_hba.conf entry for host")
    assert judged(CLIENT, refused) == [("mismatch", "no pg_hba.conf entry for host")]
