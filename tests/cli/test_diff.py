"""`pgmonkey diff`: what a reload would change, of a service, a directory or a revision of git."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.page import is_documented
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase
from tests.kit.command import environment, invoke
from tests.kit.ports import free_port
from tests.service.serving import Serving

EVENTS = """\
connection_type: async_pool
connection_settings: {host: %s, dbname: events, user: events_app}
"""
ORDERS = """\
connection_type: pool
connection_settings: {host: db-1.internal, dbname: orders, user: orders_app, password: %s}
pool_settings: {max_size: %d}
"""


@pytest.fixture
def shop(tmp_path: Path, canary: Canary) -> Path:
    """A directory with two registries: `live.d`, and what is to take its place."""
    for directory, host, size in (
        ("live.d", "db-1.internal", 6),
        ("registry.d", "db-2.internal", 8),
    ):
        registry = tmp_path / directory
        registry.mkdir()
        (registry / "events.yaml").write_text(EVENTS % host)
        (registry / "orders.yaml").write_text(ORDERS % (canary.secret(), size))
        (registry / "audit.yaml").write_text(EVENTS % "db-1.internal")
    (tmp_path / "live.d" / "reports.yaml").write_text(EVENTS % "db-1.internal")
    (tmp_path / "registry.d" / "stock.yaml").write_text(EVENTS % "db-1.internal")
    return tmp_path


def test_two_directories_are_compared(shop: Path, canary: Canary) -> None:
    """One row for each key that differs, with what the change does; no secret."""
    done = invoke("diff", "--against", "live.d", canary=canary, cwd=shop)
    assert (done.code, done.err) == (0, "")
    is_documented(done.out)


def test_json_has_the_effect_of_each_database(shop: Path, canary: Canary) -> None:
    """The most that one of its keys does, the keys with typed values, and what stays."""
    done = invoke("diff", "--against", "live.d", "-o", "json", canary=canary, cwd=shop)
    report = json.loads(done.out)
    assert {one["name"]: one["effect"] for one in report["databases"]} == {
        "events": "cutover", "orders": "rotate", "reports": "remove", "stock": "add",
    }  # fmt: skip
    assert report["databases"][1]["keys"][1] == {
        "key": "pool_settings.max_size", "before": 6, "after": 8, "effect": "resize",
    }  # fmt: skip
    assert (report["unchanged"], report["problems"]) == (["audit"], [])


def test_files_that_would_be_rejected(shop: Path, canary: Canary) -> None:
    """They have a row, their problems are on standard error, and the code is 1."""
    (shop / "registry.d" / "orders.yaml").write_text("connection_settings: {hots: db}\n")
    (shop / "live.d" / "events.yaml").write_text("")
    done = invoke("diff", "--against", "live.d", canary=canary, cwd=shop)
    assert done.code == 1
    rows = [line.split() for line in done.out.splitlines()]
    assert ["orders", "-", "-", "-", "reject"] in rows
    assert ["events", "-", "-", "-", "unknown"] in rows
    assert "orders.yaml:1:23: connection_settings.hots: unknown key" in done.err
    assert "events: the other files have problems, so nothing is compared\n" in done.err


def test_nothing_to_change(shop: Path, canary: Canary) -> None:
    """It says so on standard error; JSON is a document in any case."""
    done = invoke("diff", "live.d", "--against", "live.d", canary=canary, cwd=shop)
    assert (done.code, done.out, done.err) == (0, "", "a reload would change nothing\n")
    done = invoke("diff", "live.d", "--against", "live.d", "-o", "json", canary=canary, cwd=shop)
    assert json.loads(done.out)["databases"] == []


def git(directory: Path, *arguments: str) -> None:
    """Run git without the configuration of this machine."""
    who = ["-c", "user.name=tea", "-c", "user.email=tea@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(
        ["git", *who, *arguments],
        cwd=directory,
        env=environment(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null"),
        capture_output=True,
        check=True,
    )


def test_a_revision_of_git_is_compared(shop: Path, canary: Canary) -> None:
    """With the files of the directory as they were; paths and variables have the values of now."""
    registry = shop / "registry.d"
    (shop / "password").write_text(canary.secret())
    (registry / "_defaults.yaml").write_text("connection_settings: {sslmode: prefer}\n")
    text = ORDERS % ("{from_file: ../password}", 8)
    (registry / "orders.yaml").write_text(text)
    (registry / "readme.txt").write_text("tea")
    (registry / "link.yaml").symlink_to("orders.yaml")
    git(shop, "init")
    git(shop, "add", "registry.d")
    git(shop, "commit", "-m", "tea")
    (registry / "link.yaml").unlink()
    done = invoke("diff", "--revision", "HEAD", canary=canary, cwd=shop)
    assert (done.code, done.err) == (0, "a reload would change nothing\n")
    (registry / "_defaults.yaml").write_text("connection_settings: {sslmode: require}\n")
    (registry / "orders.yaml").write_text(text.replace("8", "9"))
    (registry / "stock.yaml").unlink()
    (registry / "new.yml").write_text(EVENTS % "db-1.internal")
    done = invoke("diff", "--revision", "HEAD", "-o", "json", canary=canary, cwd=shop)
    found = {one["name"]: one for one in json.loads(done.out)["databases"]}
    assert {name: one["effect"] for name, one in found.items()} == {
        "audit": "rotate", "events": "rotate", "new": "add", "orders": "rotate", "stock": "remove",
    }  # fmt: skip
    assert [one["key"] for one in found["orders"]["keys"]] == [
        "connection_settings.sslmode", "pool_settings.max_size",
    ]  # fmt: skip


def test_the_repository_is_that_of_the_directory(shop: Path, canary: Canary) -> None:
    """In a hook of git, too, whose variables name a repository for the program that git runs."""
    git(shop, "init")
    git(shop, "add", "registry.d")
    git(shop, "commit", "-m", "tea")
    (shop / "registry.d" / "stock.yaml").unlink()
    hook = {"GIT_DIR": str(shop / ".git"), "GIT_INDEX_FILE": str(shop / ".git" / "index")}
    done = invoke("diff", "--revision", "HEAD", canary=canary, cwd=shop, env=hook)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[1].split() == ["stock", "-", "-", "-", "remove"]


def test_a_revision_with_problems(shop: Path, canary: Canary) -> None:
    """Two files of one name, and defaults that cannot be read: there is nothing to compare with."""
    registry = shop / "registry.d"
    git(shop, "init")
    for name, text, unknown in (
        ("orders.yml", EVENTS % "db", ["orders"]),
        ("_defaults.yaml", "hots: db\n{", ["audit", "events", "orders", "stock"]),
    ):
        (registry / name).write_text(text)
        git(shop, "add", "registry.d")
        git(shop, "commit", "-m", "tea")
        (registry / name).unlink()
        done = invoke("diff", "--revision", "HEAD", canary=canary, cwd=shop)
        assert done.code == 0
        rows = [line.split() for line in done.out.splitlines()[1:]]
        assert rows == [[one, "-", "-", "-", "unknown"] for one in unknown]


def test_a_revision_that_is_not_there(shop: Path, canary: Canary) -> None:
    """What git says, in one line, and code 1: no revision, no repository."""
    done = invoke("diff", "--revision", "HEAD", canary=canary, cwd=shop)
    assert done.code == 1
    assert done.err.startswith("Error: git: not a git repository")
    git(shop, "init")
    done = invoke("diff", "--revision", "tea", canary=canary, cwd=shop)
    assert (done.code, done.err) == (1, "Error: git: Not a valid object name tea\n")


def test_a_service_is_compared(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> None:
    """What it uses with the files of a directory; what it masks is not compared, and counted."""
    registry_dir.declare("orders", database)
    registry_dir.declare("gone", database, required=False)
    registry_dir.write("wrong", "connection_settings: {}\n")
    registry_dir.remove("wrong")
    other = RegistryDirectory(tmp_path / "other.d")
    other.declare("orders", database, pool_settings={"max_size": 4}, description="tea")
    other.declare("new", database)
    with Serving(
        "serve", registry_dir, "--listen", "127.0.0.1:0", "--grace", "0", canary=canary
    ) as service:
        done = invoke("diff", other, "--url", service.url, canary=canary)
        assert done.code == 0
        assert [line.split() for line in done.out.splitlines()[1:]] == [
            ["gone", "-", "-", "-", "remove"],
            ["new", "-", "-", "-", "add"],
            ["orders", "description", "-", "tea", "nothing"],
            ["orders", "pool_settings.max_size", "10", "4", "new", "pool"],
        ]
        assert done.err == "not compared: 1 value that the service masks; -o json names the keys\n"
        env = {"PGMONKEY_URL": service.url}
        done = invoke("diff", registry_dir, canary=canary, env=env)
        assert (done.code, done.out) == (0, "")
        assert done.err.startswith("a reload would change none of the values that are compared\n")
        done = invoke("diff", registry_dir, "-o", "json", canary=canary, env=env)
        report = json.loads(done.out)
        assert (report["databases"], report["unchanged"]) == ([], ["gone", "orders"])
        assert report["not_compared"]["orders"] == ["connection_settings.password"]


def test_a_service_of_some_databases(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> None:
    """Files that it does not read change nothing of it, good or bad."""
    for name in ("gone", "orders"):
        registry_dir.declare(name, database)
    other = RegistryDirectory(tmp_path / "other.d")
    for name in ("events", "orders"):
        other.declare(name, database)
    other.write("wrong", "connection_settings: {}\n")
    arguments = ("--listen", "127.0.0.1:0", "--grace", "0", "--names", "gone,orders")
    with Serving("serve", registry_dir, *arguments, canary=canary) as service:
        done = invoke("diff", other, "--url", service.url, canary=canary)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()[1:]]
    assert rows == [["gone", "-", "-", "-", "remove"]]


def test_a_service_that_is_not_there(shop: Path, canary: Canary) -> None:
    """Exit code 5, as for every command that asks it."""
    url = f"http://127.0.0.1:{free_port()}"
    done = invoke("diff", "--url", url, canary=canary, cwd=shop)
    assert (done.code, done.err) == (5, f"no service at {url}: Connection refused\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--against", "live.d", "--revision", "HEAD"],
        ["--against", "live.d", "--url", "http://127.0.0.1:1"],
        ["--revision", "-x"],
        ["--revision", ""],
        ["a", "--dir", "a"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], shop: Path, canary: Canary) -> None:
    """There is one other side to compare with."""
    done = invoke("diff", *arguments, canary=canary, cwd=shop)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: pgmonkey diff")


def test_a_directory_that_is_not_there_is_a_problem(shop: Path, canary: Canary) -> None:
    """On either side, with code 1."""
    for words in (["nowhere", "--against", "live.d"], ["--against", "nowhere"]):
        done = invoke("diff", *words, canary=canary, cwd=shop)
        assert (done.code, done.out) == (1, "")
        assert "nowhere: the directory does not exist" in done.err
