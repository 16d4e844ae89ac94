"""Outputs of commands that the page of the command line shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.page import is_documented, shown, without_numbers
from tests.cli.stand_in import stand_in
from tests.docs.snippets import ROOT
from tests.kit import Canary, TemporaryDatabase
from tests.kit.command import invoke

GOOD = "connection_settings: {host: db, dbname: events, user: app}\n"
ORDERS = """\
connection_type: pool
connection_settings:
  host: db
  dbname: orders
  user: app
  pasword: tea
"""


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """What the registry of the repository refers to."""
    for name in ("events", "orders", "reports"):
        (tmp_path / name).mkdir()
        for file in ("username", "password"):
            (tmp_path / name / file).write_text("any")
    return {"PGMONKEY_DEMO_SECRETS": str(tmp_path), "PGMONKEY_DEMO_PORT": "5432"}


def test_list(secrets: dict[str, str], canary: Canary) -> None:
    """It is that of the repository's registry."""
    done = invoke("list", canary=canary, cwd=ROOT, env=secrets)
    assert done.code == 0
    is_documented(done.out)


def test_show(secrets: dict[str, str], canary: Canary) -> None:
    """The rows of the page are among those of the repository's orders, with the same sources."""
    done = invoke("show", "orders", "--source", canary=canary, cwd=ROOT, env=secrets)
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines()]
    expected = [line.split() for line in shown("pgmonkey show")[0].splitlines()]
    assert [row for row in expected if row not in rows] == []


def test_check_as_json(tmp_path: Path, canary: Canary) -> None:
    """A misspelt key, with its place and a hint."""
    registry = tmp_path / "registry.d"
    registry.mkdir()
    (registry / "events.yaml").write_text(GOOD)
    (registry / "orders.yaml").write_text(ORDERS)
    done = invoke("check", "-o", "json", canary=canary, cwd=tmp_path)
    assert done.code == 1
    is_documented(done.out, "json")


def test_problems_at_the_start_of_the_service(tmp_path: Path, canary: Canary) -> None:
    """One after the other, with a summary."""
    (tmp_path / "orders.yaml").write_text(f"{ORDERS}pool_settings: {{min_size: 9, max_size: 4}}\n")
    done = invoke("serve", tmp_path, "--listen", "127.0.0.1:0", canary=canary)
    assert (done.code, done.out) == (1, "")
    is_documented(done.err.replace(f"{tmp_path}/", ""))


def database(name: str, kind: str, used: int, size: int, version: int, **more: Any) -> Any:
    """Return what a service says of a database."""
    pool = {"used": used, "retired": 0, "max_size": size, "waiting": 0}
    found = {"name": name, "connection_type": kind, "version": version, "pools": [pool]}
    return {**found, "problems": [], "last_reload": None, "error": None, **more}


PROBLEM = {
    "path": "/etc/pgmonkey/registry.d/events.yaml",
    "code": "config.unknown_key",
    "message": 'unknown key "max_sise"',
    "line": 12,
    "column": 3,
    "key": "async_pool_settings.max_sise",
    "hint": 'did you mean "max_size"?',
    "database": "events",
}
OVERVIEW = {
    "at": 100.0,
    "registry": {"problems": []},
    "databases": [
        database(
            *("events", "async_pool", 1, 4, 1),
            state="stale",
            problems=[PROBLEM],
            last_reload={"outcome": "rejected", "at": 96.0},
        ),
        database(
            *("orders", "pool", 4, 6, 3),
            state="ready",
            last_reload={"outcome": "applied", "at": 30.0},
        ),
        database(
            *("reports", "normal", 0, 1, 1),
            state="down",
            error={
                "reason": "refused",
                "text": "connection to server ... failed: Connection refused",
                "hint": None,
            },
        ),
    ],
}
RELOADED = {"applied": ["orders"], "removed": [], "unchanged": ["reports"], "rejected": [PROBLEM]}


def test_status_and_reload(canary: Canary) -> None:
    """A table of the states; the names by what the reload did, and the problem of the other one."""
    with stand_in({"/api/v1/databases": OVERVIEW, "/-/reload": RELOADED}.get) as url:
        env = {"PGMONKEY_URL": url}
        status = invoke("status", canary=canary, env=env)
        reload = invoke("reload", canary=canary, env=env)
    assert (status.code, status.err) == (0, "")
    is_documented(status.out)
    assert reload.code == 1
    is_documented(reload.out + reload.err)


def test_pgconfig_test(tmp_path: Path, database: TemporaryDatabase, canary: Canary) -> None:
    """What a server is, and the server's reason for a refused login."""
    works, fails = (without_numbers(text) for text in shown("pgmonkey pgconfig"))
    settings = database.parameters()

    def test() -> tuple[int, str]:
        content = {"connection_settings": settings, "pool_settings": {"min_size": 2, "max_size": 6}}
        (tmp_path / "config.yaml").write_text(json.dumps(content))
        done = invoke(
            *("pgconfig", "test", "--connconfig", "config.yaml", "--connection-type", "pool"),
            canary=canary,
            cwd=tmp_path,
        )
        output = (done.out + done.err).replace(database.name, "orders")
        for place in ("user          orders", 'user "orders'):
            output = output.replace(place, f"{place}_app")
        return done.code, without_numbers(output)

    assert test() == (0, works)
    settings["password"] = canary.secret()
    assert test() == (4, fails)
