"""`pgmonkey pgserverconfig`: what servers need, and whether they have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from tests.cli.page import shown
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.command import invoke
from tests.kit.ports import free_port
from tests.kit.secure_server import AUTHORITY, SecureServer
from tests.kit.server import PostgresServer

NAMES = ("server", "what", "needed", "found", "status", "reason")


@pytest.fixture
def orders(secure: SecureServer, canary: Canary) -> Iterator[TemporaryDatabase]:
    """A database of the server with TLS, whose user may see all that an audit asks for."""
    database = TemporaryDatabase.create(secure.server, canary)
    database.server.execute(f"ALTER ROLE {database.user} SUPERUSER")
    yield database
    database.drop()


def _write(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _audit(*arguments: object, canary: Canary) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit code, and the verdict of each thing, by its name."""
    done = invoke("pgserverconfig", *arguments, "--audit", "-o", "json", canary=canary)
    (server,) = json.loads(done.out)["servers"]
    return done.code, {one["what"]: one for one in server["audit"]}


def test_the_lines_can_be_pasted(tmp_path: Path, canary: Canary) -> None:
    """Everything else is a comment or on standard error, and the page shows the same."""
    path = _write(
        tmp_path / "orders.yaml",
        connection_type="pool",
        connection_settings={
            "host": "db.example.com", "dbname": "orders", "user": "orders_app", "password": "x",
            "sslmode": "verify-full", "sslrootcert": "/etc/ssl/certs/ca-certificates.crt",
        },
    )  # fmt: skip
    done = invoke("pgserverconfig", "--filepath", path, "--client", "10.0.0.0/8", canary=canary)
    assert (done.code, done.err) == (0, "")
    assert done.out in shown("pgmonkey pgserverconfig")
    done = invoke("pgserverconfig", "--connconfig", path, canary=canary)
    assert "--client 10.0.0.0/8 says where the applications run" in done.err
    assert [line for line in done.out.splitlines() if line and not line.startswith("#")] == [
        "hostssl  orders    orders_app  samenet  scram-sha-256",
        "max_connections = 100         # these clients open up to 11, and 3 are kept for superusers",
        "ssl = on                      # sslmode of orders",
        "ssl_cert_file = 'server.crt'  # for db.example.com, signed by an authority in sslrootcert",
        "ssl_key_file = 'server.key'   # readable by PostgreSQL alone",
    ]


def test_a_program_may_use_all_pools_of_a_file(tmp_path: Path, canary: Canary) -> None:
    """The type of the file and each pool with a section count, as a call chooses the type."""
    path = _write(
        tmp_path / "config.yaml",
        connection_settings={"host": "db", "dbname": "a", "user": "a"},
        pool_settings={"max_size": 20},
        async_pool_settings={"max_size": 30},
    )

    def connections(*arguments: object) -> int:
        done = invoke("pgserverconfig", "--filepath", path, "-o", "json", *arguments, canary=canary)
        (server,) = json.loads(done.out)["servers"]
        return int(server["connections"])

    assert connections() == 2 + 21 + 31
    assert connections("--connection-type", "pool") == 21
    assert connections("--connection-type", "pool", "--replicas", 2, "--workers", 3) == 126


def test_a_registry_is_answered_server_by_server(
    registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """Databases of one server count together, and one behind PgBouncer is left out with a note."""
    for name, settings in {
        "orders": {"connection_type": "pool"},
        "events": {"connection_type": "async_pool"},
        "pooled": {"pooler": "pgbouncer"},
        "far": {"connection_settings": {"host": "far", "dbname": "far", "user": "app"}},
    }.items():
        here = {"connection_settings": {"host": "db", "dbname": name, "user": "app"}}
        registry_dir.write(name, here | settings)
    done = invoke("pgserverconfig", "--dir", registry_dir, "-o", "json", canary=canary)
    assert done.code == 0
    answer = json.loads(done.out)
    assert [(one["server"], one["databases"], one["connections"]) for one in answer["servers"]] == [
        ("db:5432", ["events", "orders"], 22),
        ("far:5432", ["far"], 2),
    ]
    assert [one["database"] for one in answer["skipped"]] == ["pooled"]


def test_references_are_resolved_when_asked(tmp_path: Path, canary: Canary) -> None:
    """A reference is resolved, or a problem that names the option, and never an address."""
    path = _write(
        tmp_path / "config.yaml",
        connection_settings={"host": "${SHOP_HOST:-::1}", "dbname": "a", "user": "a"},
    )
    done = invoke("pgserverconfig", "--filepath", path, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert "--resolve-env" in done.err
    done = invoke("pgserverconfig", "--filepath", path, "--resolve-env", canary=canary)
    assert "host    a         a     ::1/128  scram-sha-256\n" in done.out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["registry.d", "--filepath", "a.yaml"], "not both"),
        (["--connection-type", "pool"], "--filepath"),
        (["--client", "10.0.0.1/8"], "has host bits set"),
    ],
)
def test_usage(arguments: list[str], says: str, canary: Canary) -> None:
    """Options that exclude each other, and an address with host bits, are exit code 2."""
    done = invoke("pgserverconfig", *arguments, canary=canary)
    assert done.code == 2
    assert says in done.err


def test_a_missing_file_is_exit_code_1(tmp_path: Path, canary: Canary) -> None:
    """The error names the file."""
    done = invoke("pgserverconfig", "--filepath", tmp_path / "no.yaml", "--audit", canary=canary)
    assert (done.code, done.err) == (1, f"{tmp_path / 'no.yaml'}: No such file or directory\n")


def test_an_audit_without_the_privilege(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """An audit compares the limits, and gives the server's reason why it cannot see the lines."""
    registry_dir.declare("orders", database, "async_pool")
    code, found = _audit(registry_dir, canary=canary)
    assert code == 0
    line = found["pg_hba.conf"]
    assert line["needed"] == f"host {database.name} {database.user} 127.0.0.1/32 scram-sha-256"
    assert (line["status"], line["reason"]) == (
        "cannot tell",
        "permission denied for view pg_hba_file_rules",
    )
    assert (found["max_connections"]["status"], found["max_connections"]["found"]) == ("ok", "197")


def test_an_audit_with_a_granted_privilege(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """The two statements that the page names let the role of the application see the lines."""
    registry_dir.declare("orders", database)
    database.execute(f"GRANT SELECT ON pg_hba_file_rules TO {database.user}")
    database.execute(f"GRANT EXECUTE ON FUNCTION pg_hba_file_rules() TO {database.user}")
    _, found = _audit(registry_dir, "--client", "127.0.0.1", canary=canary)
    line = found["pg_hba.conf"]
    assert (line["status"], line["reason"]) == ("ok", "")
    assert line["found"].startswith("pg_hba.conf:")


def test_an_audit_finds_too_few_connections(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """A limit of the role that is too small is a mismatch, and exit code 1."""
    registry_dir.declare("orders", database, pool_settings={"max_size": 20})
    database.connection_limit(10)
    code, found = _audit("--dir", registry_dir, canary=canary)
    assert code == 1
    limit = found[f"CONNECTION LIMIT of role {database.user}"]
    assert (limit["needed"], limit["found"], limit["status"]) == ("21", "10", "mismatch")


def test_an_audit_of_a_server_that_does_not_answer(tmp_path: Path, canary: Canary) -> None:
    """Each row says why nothing can be told, and the exit code is 4."""
    port = free_port()
    settings = {"host": "127.0.0.1", "port": port, "dbname": "a", "user": "a"}
    path = _write(tmp_path / "a.yaml", connection_settings=settings)
    code, found = _audit("--filepath", path, canary=canary)
    assert code == 4
    assert {one["status"] for one in found.values()} == {"cannot tell"}
    assert "[refused]" in found["max_connections"]["reason"]


@pytest.mark.tls
def test_an_audit_of_a_server_with_tls(
    secure: SecureServer, orders: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """An audit of a superuser names the line that lets the client in, and judges each setting."""
    trusted = tmp_path / "ca.crt"
    trusted.write_text(AUTHORITY.pem)
    tls = {"sslmode": "verify-full", "sslrootcert": str(trusted)}
    path = _write(
        tmp_path / "orders.yaml",
        connection_type="pool",
        connection_settings=orders.parameters(**tls),
    )
    code, found = _audit("--filepath", path, canary=canary)
    assert code == 0, found
    line = found["pg_hba.conf"]
    assert line["needed"] == f"hostssl {orders.name} {orders.user} 127.0.0.1/32 scram-sha-256"
    assert line["found"].startswith("pg_hba.conf:")
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(
        ["pg_hba.conf", "max_connections", "ssl", "ssl_cert_file", "ssl_key_file"], "ok"
    )
    # Clients of another network, whom no line of this server lets in.
    code, found = _audit("--filepath", path, "--client", "203.0.113.0/24", canary=canary)
    assert found["pg_hba.conf"]["status"] == "ok"  # 127.0.0.1 stays the machine of the server

    done = invoke("pgserverconfig", "--filepath", path, "--audit", canary=canary)
    assert done.code == 0
    titles, *rows = done.out.splitlines()
    assert titles.split() == [name.upper() for name in NAMES]
    assert len(rows) == 5


_HBA = """\
local all postgres trust
host all postgres all trust
{lines}
"""
#: Lines of pg_hba.conf, and whether they let a client with TLS and a password in.
_LINES = {
    "host all all 127.0.0.0/8 scram-sha-256": "ok",
    "host all all 127.0.0.1 255.255.255.255 md5": "ok",
    "hostnossl all all all reject\nhostssl all all 127.0.0.1/32 scram-sha-256": "ok",
    "hostssl all all all reject\nhost all all all scram-sha-256": "mismatch",
    "host all all ::1/128 scram-sha-256": "mismatch",
    "host all all 10.0.0.0/8,127.0.0.1/32 scram-sha-256": "cannot tell",
    'host "{name}" "{user}" 127.0.0.1/32 scram-sha-256': "ok",
    "host sameuser all all reject\nhost all all all trust": "mismatch",
    "host other,{name} +{user} all password": "ok",
    "host all +pg_monitor all reject\nhost all all all scram-sha-256": "ok",
    "host replication all all reject\nhost all all samehost scram-sha-256": "ok",
    "hostssl all all all scram-sha-256 clientcert=verify-ca": "mismatch",
    "hostssl all all all cert": "mismatch",
    "host all all all scram-sha-257": "cannot tell",
    "hostgssenc all all all scram-sha-256": "mismatch",
}


@pytest.mark.tls
@pytest.mark.slow
def test_an_audit_foretells_a_login(
    orders: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """An audit judges the file on the disk, and the server agrees when it has read it."""
    server = orders.server
    path = _write(
        tmp_path / "orders.yaml",
        connection_settings=orders.parameters(sslmode="require", connect_timeout=5),
    )
    hba = server.data_directory / "pg_hba.conf"
    before = hba.read_text()
    foretold, happened = {}, {}
    try:
        for lines in _LINES:
            text = lines.format(name=orders.name, user=orders.user)
            hba.write_text(_HBA.format(lines=text))
            _, found = _audit("--filepath", path, canary=canary)
            foretold[lines] = found["pg_hba.conf"]["status"]
            if foretold[lines] != "cannot tell":
                _reload(server)
                happened[lines] = "ok" if _logs_in(orders) else "mismatch"
                if lines == "host all all ::1/128 scram-sha-256":
                    code, refused = _audit("--filepath", path, canary=canary)
                    assert (code, refused["pg_hba.conf"]["status"]) == (1, "mismatch")
                hba.write_text(before)
                _reload(server)
    finally:
        hba.write_text(before)
        _reload(server)
    assert foretold == _LINES
    assert happened == {lines: status for lines, status in _LINES.items() if lines in happened}


def _reload(server: PostgresServer) -> None:
    """Let the server read its files, and wait until it has."""
    (before,) = server.execute("SELECT pg_conf_load_time()")
    server.reload()
    eventually(lambda: server.execute("SELECT pg_conf_load_time()") != [before], 10)


def _logs_in(database: TemporaryDatabase) -> bool:
    try:
        database.connect(sslmode="require").close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.tls
def test_an_audit_sees_a_certificate_that_nobody_checks(
    orders: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """A client with a certificate, and a server without ssl_ca_file, is a mismatch."""
    server = orders.server
    certificate, key = AUTHORITY.issue(orders.user, tmp_path, name="client")
    tls = {"sslmode": "require", "sslcert": str(certificate), "sslkey": str(key)}
    path = _write(tmp_path / "orders.yaml", connection_settings=orders.parameters(**tls))
    server.execute("ALTER SYSTEM SET ssl_ca_file = ''")
    _reload(server)
    try:
        code, found = _audit("--filepath", path, canary=canary)
    finally:
        server.execute("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'")
        _reload(server)
    assert code == 1
    assert (found["ssl_ca_file"]["found"], found["ssl_ca_file"]["status"]) == ("none", "mismatch")
    assert found["pg_hba.conf"]["needed"].endswith("scram-sha-256 clientcert=verify-ca")
    assert found["ssl"]["status"] == "ok"


def test_each_of_several_hosts_is_audited(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """An audit connects to each host of a file; one that does not answer is exit code 4."""
    settings = database.parameters(
        host=f"{database.host},{database.host}", port=f"{free_port()},{database.port}"
    )
    path = _write(tmp_path / "orders.yaml", connection_settings=settings)
    done = invoke("pgserverconfig", "--filepath", path, "--audit", "-o", "json", canary=canary)
    assert done.code == 4
    found = {
        one["server"]: {verdict["what"]: verdict["status"] for verdict in one["audit"]}
        for one in json.loads(done.out)["servers"]
    }
    assert found.pop(f"{database.host}:{database.port}")["max_connections"] == "ok"
    (lost,) = found.values()
    assert lost["max_connections"] == "cannot tell"


def test_one_name_with_an_address_that_does_not_answer(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """An address that does not answer counts, although another one of the same name does."""
    settings = database.parameters(
        host="db.example.com,db.example.com", hostaddr=f"127.0.0.2,{database.host}"
    )
    path = _write(tmp_path / "orders.yaml", connection_settings=settings)
    code, found = _audit("--filepath", path, canary=canary)
    assert code == 4
    assert "[refused]" in found["pg_hba.conf"]["reason"]
