from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit import Canary
from tests.kit.command import invoke

DEFAULTS = """\
connection_settings:
  host: ${SHOW_HOST:-localhost}
  application_name: shop
timeout: 7s
required: false
"""


@pytest.fixture
def registry(tmp_path: Path, canary: Canary) -> Path:
    """A registry whose values come from everywhere."""
    directory = tmp_path / "registry.d"
    directory.mkdir()
    (tmp_path / "password").write_text(canary.secret(hostile=True) + "\n")
    (directory / "_defaults.yaml").write_text(DEFAULTS)
    (directory / "orders.yaml").write_text(
        "connection_type: pool\n"
        "description: |\n"
        "  orders\n"
        "  of the shop\n"
        "connection_settings:\n"
        "  dbname: ${SHOW_PREFIX}_${SHOW_SUFFIX-orders}\n"
        "  user: {from_env: SHOW_USER}\n"
        "  password: {from_file: ../password}\n"
        "  port: 5433\n"
        "  application_name: null\n"
        "pool_settings: {max_size: 4}\n"
        f"sync_settings: {{search_path: app, app.token: {canary.secret()}}}\n"
        "required: null\n"
    )
    (directory / "audit.yaml").write_text(
        "connection_settings:\n"
        "  host: [one, two]\n"
        "  port: [1, 2]\n"
        "  dbname: audit\n"
        "  user: audit\n"
        f"  password: {canary.secret()}\n"
        "async_settings:\n"
    )
    return directory


ENVIRONMENT = {"SHOW_PREFIX": "shop", "SHOW_USER": "app"}


def test_list_shows_every_database(registry: Path, canary: Canary) -> None:
    """One row for each, with type, server, database and description; no secret."""
    done = invoke("list", registry, canary=canary, env=ENVIRONMENT)
    assert (done.code, done.err) == (0, "")
    titles, audit, orders = done.out.splitlines()
    assert titles.split() == ["NAME", "TYPE", "SERVER", "DATABASE", "DESCRIPTION"]
    assert audit.split() == ["audit", "normal", "one:1,two:2", "audit", "-"]
    assert orders.split()[:4] == ["orders", "pool", "localhost:5433", "shop_orders"]


def test_list_shows_bad_files_too(registry: Path, canary: Canary) -> None:
    """A file with problems has its row, and the exit code is 1."""
    done = invoke("list", registry, canary=canary)  # without the variables
    assert done.code == 1
    assert "orders  -       -            -         2 problems: see pgmonkey check" in done.out
    done = invoke("list", registry, "-o", "json", canary=canary)
    audit, orders = json.loads(done.out)["databases"]
    assert orders == {"name": "orders", "path": f"{registry}/orders.yaml", "problems": 2}
    assert audit == {
        "name": "audit",
        "path": f"{registry}/audit.yaml",
        "problems": 0,
        "connection_type": "normal",
        "description": "",
        "required": False,
        "server": "one:1,two:2",
        "dbname": "audit",
    }


def test_list_of_a_missing_directory_is_a_problem(tmp_path: Path, canary: Canary) -> None:
    """The directory is a problem, with code 1."""
    done = invoke("list", tmp_path / "nowhere", canary=canary)
    assert (done.code, done.out) == (1, "")
    assert "the directory does not exist" in done.err


def test_show_says_where_each_value_comes_from(registry: Path, canary: Canary) -> None:
    """File and line, default, variable, default of a variable, secret file; secrets are masked."""
    done = invoke(
        "show", "orders", "--dir", "registry.d", "--source",
        canary=canary, env=ENVIRONMENT, cwd=registry.parent,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    titles, *lines = done.out.splitlines()
    assert titles.split() == ["KEY", "VALUE", "SOURCE"]
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    file, defaults = "registry.d/orders.yaml", "registry.d/_defaults.yaml"
    assert {
        "connection_type": f"pool {file}:1:18",
        "connection_settings.host": f"localhost {defaults}:2:9, default of ${{SHOW_HOST}}",
        "connection_settings.dbname": f"shop_orders {file}:6:11, environment variable SHOW_PREFIX,"
        " default of ${SHOW_SUFFIX}",
        "connection_settings.user": f"app {file}:7:9, environment variable SHOW_USER",
        "connection_settings.password": f"***REDACTED*** {file}:8:13, secret file ../password",
        "connection_settings.port": f"5433 {file}:9:9",
        "connection_settings.connect_timeout": "10 default",
        "connection_settings.keepalives_idle": "30 default",
        "connection_settings.tcp_user_timeout": "30000 default",
        "connection_settings.autocommit": "false default",
        "pool_settings.max_size": f"4 {file}:11:27",
        "pool_settings.timeout": f"7s {defaults}:4:10",  # the pool takes that of the database
        "pool_settings.min_size": "1 default",
        "timeout": f"7s {defaults}:4:10",
        "sync_settings.search_path": f"app {file}:12:30",
        "sync_settings.app.token": f"***REDACTED*** {file}:12:46",
        "required": "true default",  # the file's null takes back what the defaults say
        "leak_detection": "- default",
    }.items() <= shown.items()
    assert "connection_settings.application_name" not in shown
    assert shown["description"].startswith("orders of the shop")  # one line


def test_show_without_sources_has_two_columns(registry: Path, canary: Canary) -> None:
    """The effective configuration alone."""
    done = invoke("show", "audit", "--dir", registry, canary=canary)
    assert done.code == 0
    titles, *lines = done.out.splitlines()
    assert titles.split() == ["KEY", "VALUE"]
    assert ["connection_settings.host", "one,two"] in [line.split() for line in lines]


def test_show_as_json(registry: Path, canary: Canary) -> None:
    """Typed values by section, and the sources by dotted key."""
    done = invoke(
        "show", "orders", "-o", "json", "--source",
        canary=canary, env={**ENVIRONMENT, "PGMONKEY_REGISTRY": str(registry)},
    )  # fmt: skip
    shown = json.loads(done.out)
    assert (shown["name"], shown["path"]) == ("orders", f"{registry}/orders.yaml")
    assert shown["settings"]["pool_settings"]["max_size"] == 4
    assert shown["settings"]["connection_settings"]["password"] == "***REDACTED***"
    assert shown["settings"]["leak_detection"] is None
    assert shown["sources"]["connection_settings.user"] == {
        "path": f"{registry}/orders.yaml",
        "line": 7,
        "column": 9,
        "references": ["environment variable SHOW_USER"],
    }
    assert shown["sources"]["drain_timeout"]["path"] is None
    done = invoke("show", "audit", "-o", "json", "--dir", registry, canary=canary)
    assert "sources" not in json.loads(done.out)


def test_show_as_json_has_types(tmp_path: Path, canary: Canary) -> None:
    """Ports, numbers, flags and durations have their JSON types; session settings are text."""
    (tmp_path / "a.yaml").write_text(
        "connection_type: async_pool\n"
        "connection_settings:\n"
        "  host: 2024\n"
        "  port: '5433'\n"
        "  dbname: '1'\n"
        "  user: 0123\n"
        "  connect_timeout: 1min\n"
        "  keepalives: on\n"
        "  keepalives_idle: 60\n"
        "  sslsni: off\n"
        "  sslmode: require\n"
        "  tcp_user_timeout: -1\n"
        "  prepare_threshold: null\n"
        "pool_settings: {min_size: 2, timeout: 500ms, check_on_checkout: yes}\n"
        "sync_settings: {work_mem: 64, jit: off}\n"
        "leak_detection: 1h\n"
        "drain_timeout: 1500ms\n"
    )
    (tmp_path / "b.yaml").write_text(
        "connection_settings: {host: [x, y, z], port: [1, '', 3], dbname: b, user: b}\n"
    )
    shown = json.loads(invoke("show", "a", tmp_path, "-o", "json", canary=canary).out)["settings"]
    assert shown["connection_settings"] == {
        "host": "2024",
        "port": 5433,
        "dbname": "1",
        "user": "0123",
        "connect_timeout": 60,
        "keepalives": True,
        "keepalives_idle": 60,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "sslsni": False,
        "sslmode": "require",
        "tcp_user_timeout": -1,
        "autocommit": False,
        "prepare_threshold": None,
    }
    pool = shown["pool_settings"]
    assert (pool["min_size"], pool["timeout"], pool["check_on_checkout"]) == (2, 0.5, True)
    assert shown["sync_settings"] == {"work_mem": "64", "jit": "off"}
    assert (shown["leak_detection"], shown["drain_timeout"]) == (3600, 1.5)
    assert shown["required"] is True
    other = json.loads(invoke("show", "b", tmp_path, "-o", "json", canary=canary).out)["settings"]
    assert other["connection_settings"]["host"] == "x,y,z"
    assert other["connection_settings"]["port"] == [1, None, 3]


def test_show_of_an_unknown_name_is_wrong_usage(registry: Path, canary: Canary) -> None:
    """The directory and a near name are named; the code is 2, and no other secret is needed."""
    done = invoke("show", "ordres", "--dir", registry, canary=canary)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f'no database "ordres" in {registry}; did you mean "orders"? (2 declared)\n'
    )


def test_show_of_a_bad_file_lists_its_problems(registry: Path, canary: Canary) -> None:
    """As everywhere: the problems, their number, code 1."""
    done = invoke("show", "orders", "--dir", registry, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("2 problems in 1 file\n")


def test_show_repeats_no_secret_that_stands_elsewhere(tmp_path: Path, canary: Canary) -> None:
    """A password that was also written into a description or a host name is masked there too."""
    secret = canary.secret()
    (tmp_path / "a.yaml").write_text(
        f"description: password is {secret}\n"
        "connection_settings:\n"
        f"  host: {secret}.example\n"
        "  dbname: a\n"
        "  user: postgresql://app:tea@db\n"
        f"  password: {secret}\n"
    )
    shown = invoke("show", "a", "--dir", tmp_path, canary=canary)  # looks for the secret
    assert "password is ***REDACTED***" in shown.out
    assert "tea" not in shown.out
    listed = invoke("list", tmp_path, canary=canary)
    assert "***REDACTED***.example" in listed.out
