"""`pgmonkey budget`: what a fleet can open, beside what its servers allow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pgmonkey.cli.budget import answer
from pgmonkey.config.budget import Demand, Fleet, Limits, budget
from tests.cli.page import is_documented
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.command import environment, invoke
from tests.kit.ports import free_port
from tests.kit.process import Process

_MEMBERS = """
import asyncio, os, sys, threading
from pgmonkey import Registry

async def hold(registry):
    async with registry.get("events"), registry.get("events"):
        await asyncio.Event().wait()

reading, writing = os.pipe()
for _ in range(12):
    if os.fork() == 0:
        os.close(writing)
        registry = Registry(sys.argv[1])
        held = [registry.get("orders").getconn() for _ in range(3)]
        held.append(registry.get("reports").getconn())
        for _ in range(2):
            threading.Thread(target=asyncio.run, args=[hold(registry)], daemon=True).start()
        os.read(reading, 1)  # until the first process has ended
        os._exit(0)
sys.stdin.read()
"""


def declare_shop(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> None:
    """Declare three databases of different types."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 3, "max_size": 3})
    registry_dir.declare("events", database, "async_pool", async_pool_settings={"max_size": 2})
    registry_dir.declare("reports", database, "normal")


@pytest.mark.slow
def test_the_figure_is_what_twelve_processes_open(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Twelve real processes hold as many connections as it says, and rotate with no more."""
    declare_shop(registry_dir, database)
    done = invoke(
        *("budget", registry_dir, "-o", "json", "--replicas", 3, "--workers", 4, "--loops", 2),
        canary=canary,
    )
    assert done.code == 0, done.err
    (server,) = json.loads(done.out)["servers"]
    assert (server["open"], server["rotating"], server["limit"]) == (96, 144, 197)
    program = [sys.executable, "-c", _MEMBERS, str(registry_dir)]
    with Process(program, canary=canary, stdin=subprocess.PIPE, env=environment()):
        counts = []

        def count() -> int:
            counts.append(len(database.backends()))
            return counts[-1]

        eventually(lambda: count() == server["open"], 20)
        registry_dir.write("_defaults.yaml", {"connection_settings": {"application_name": "new"}})
        # Nothing comes back: each pool has one more until it gives up waiting.
        eventually(lambda: count() > server["open"], 20)
        eventually(lambda: count() == server["open"], 20)
        assert max(counts) <= server["rotating"]


def test_each_limit_is_asked_for(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """The server less its reserved connections, the role, the database; code 1 if one is too low."""
    declare_shop(registry_dir, database)
    database.connection_limit(100)
    database.server.execute(f"ALTER DATABASE {database.name} CONNECTION LIMIT 60")
    arguments = ("budget", registry_dir, "--replicas", 5, "--workers", 2)
    done = invoke(*arguments, canary=canary)
    assert done.code == 1
    titles, *rows = [line.split() for line in done.out.splitlines()]
    assert titles[-4:] == ["ROTATING", "ALLOWED", "LEFT", "DATABASES"]
    server = f"{database.host}:{database.port}"
    names = ["events,", "orders,", "reports"]
    assert rows == [
        [server, "the", "server", "60", "90", "197", "107", *names],
        [server, "role", database.user, "60", "90", "100", "10", *names],
        [server, "database", database.name, "60", "90", "60", "-30", *names],
    ]
    assert done.err == (
        f"{server}: database {database.name} allows 60 connections, and the fleet can open 90\n"
    )


def test_a_superuser_has_the_reserved_connections(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """As PostgreSQL has it: they are for its use, and no limit of a role counts for it."""
    registry_dir.declare("orders", database)
    database.connection_limit(1)
    database.server.execute(f"ALTER ROLE {database.user} SUPERUSER")
    (_, row) = invoke("budget", registry_dir, canary=canary).out.splitlines()
    assert row.split()[-5:] == ["10", "11", "200", "189", "orders"]


def test_a_server_that_cannot_be_asked(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Its problem is on standard error, the figure is there without a limit, and the code is 4."""
    registry_dir.declare("orders", database)
    registry_dir.declare("lost", database, connection={"port": free_port(), "connect_timeout": 2})
    done = invoke("budget", registry_dir, canary=canary)
    assert done.code == 4
    assert "cannot connect to lost: " in done.err
    assert [line.split()[-4:] for line in done.out.splitlines()[1:]] == [
        ["11", "-", "-", "lost"],
        ["11", "197", "186", "orders"],
    ]
    report = json.loads(invoke("budget", registry_dir, "-o", "json", canary=canary).out)
    assert [one["code"] for one in report["problems"]] == ["probe.refused"]


def test_offline_nothing_is_asked(tmp_path: Path, canary: Canary) -> None:
    """The arithmetic alone: no limit, no connection, code 0."""
    (tmp_path / "orders.yaml").write_text(
        "connection_type: pool\nconnection_settings: {host: nowhere, dbname: a, user: a}\n"
    )
    (tmp_path / "events.yaml").write_text(
        "pooler: pgbouncer\nconnection_settings: {host: b, port: 6432, dbname: a, user: a}\n"
    )
    done = invoke("budget", tmp_path, "--offline", "--workers", 4, canary=canary)
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()[1:]] == [
        ["b:6432", "PgBouncer", "4", "8", "-", "-", "events"],
        ["nowhere:5432", "the", "server", "40", "44", "-", "-", "orders"],
    ]
    assert done.err == "b:6432: its max_client_conn must be 8 or more\n"


def test_the_table_of_the_page() -> None:
    """The page shows what the command prints for a fleet that is too large for its server."""
    demands = [
        Demand("events", "db-1.internal:5432", pools=1, max_size=4),
        Demand("orders", "db-1.internal:5432", max_size=6),
        Demand("reports", "db-1.internal:5432"),
    ]
    limits = {
        one.name: Limits(
            "1",
            100,
            3,
            0,
            False,
            False,
            f"{one.name}_app",
            80 if one.name == "orders" else None,
            one.name,
            None,
            0,
        )
        for one in demands
    }
    fleet = Fleet(replicas=3, workers=4)
    found = answer("table", fleet, demands, budget(demands, fleet, limits))
    assert found.code == 1
    is_documented(f"{found.text}\n{found.note}\n")


def test_problems_come_first(tmp_path: Path, canary: Canary) -> None:
    """A budget without one of the databases would be wrong: code 1, and the problems."""
    (tmp_path / "orders.yaml").write_text("connection_settings: {hots: db}\n")
    done = invoke("budget", tmp_path, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert "unknown key" in done.err


@pytest.mark.parametrize("arguments", ["--workers 0", "--replicas x", "a --dir a"])
def test_wrong_usage_is_exit_code_2(arguments: str, tmp_path: Path, canary: Canary) -> None:
    """A fleet has at least one of everything."""
    done = invoke("budget", *arguments.split(), canary=canary, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: pgmonkey budget")
