"""The recipes of docs/from-4.0/flask.md, in Flask, with its own test client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.kit import TemporaryDatabase, eventually
from tests.kit.manager import declare
from tests.recipes.recipe import ENDS_WITHIN, recipe, run


@pytest.fixture
def program(tmp_path: Path, database: TemporaryDatabase) -> Iterator[dict[str, Any]]:
    """The page's program, run in one namespace; its pool has four connections."""
    with database.connect() as conn:
        conn.execute("CREATE TABLE users (id serial PRIMARY KEY, name text NOT NULL)")
        conn.execute("CREATE TABLE audit (user_id int NOT NULL UNIQUE)")
        conn.execute("INSERT INTO users (name) VALUES ('ada'), ('alan')")
    database.disconnect()
    config = declare(tmp_path, database, pool_settings={"min_size": 1, "max_size": 4})
    text = "".join(
        [
            recipe("from-4.0/flask", "Database Class for Flask"),
            recipe("from-4.0/flask", "Database Class for Flask", number=1),
            recipe("from-4.0/flask", "Several statements in one transaction"),
        ]
    )
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(text.replace("/path/to/config.yaml", str(config)), namespace)
    yield namespace
    namespace["db"].manager.clear_cache()


def users(database: TemporaryDatabase) -> list[str]:
    return [name for (name,) in database.execute("SELECT name FROM users ORDER BY id")]


def test_the_page_answers_concurrent_requests(
    program: dict[str, Any], database: TemporaryDatabase
) -> None:
    """Forty requests on eight threads share one pool of four."""

    def ask(_number: int) -> Any:
        return program["app"].test_client().get("/users").json

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(40)))

    expected = {"users": [{"id": 1, "name": "ada"}, {"id": 2, "name": "alan"}]}
    assert answers == [expected] * 40
    assert len(database.backends()) <= 4


def test_concurrent_writes_are_committed_each_on_its_own(
    program: dict[str, Any], database: TemporaryDatabase
) -> None:
    """A request that fails rolls back its own statements alone."""
    program["app"].config["PROPAGATE_EXCEPTIONS"] = False
    database.execute("INSERT INTO audit SELECT generate_series(3, 42, 4)")

    def add(number: int) -> int:
        return program["app"].test_client().post("/users", json={"name": f"u{number}"}).status_code

    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(add, range(40)))

    assert sorted(codes) == [201] * 30 + [500] * 10
    kept = {f"u{number}" for number, code in enumerate(codes) if code == 201}
    assert set(users(database)) == kept | {"ada", "alan"}


def test_the_methods_of_the_class_commit_and_roll_back(
    program: dict[str, Any], database: TemporaryDatabase
) -> None:
    """`execute` commits, an error rolls back and arrives, the other two return rows."""
    db = program["db"]
    db.execute("INSERT INTO users (name) VALUES (%s)", ["grace"])
    assert users(database) == ["ada", "alan", "grace"]
    assert db.fetch_one("SELECT name FROM users WHERE id = %s", [1]) == ("ada",)
    assert db.fetch_all("SELECT name FROM users ORDER BY id DESC LIMIT 1") == [("grace",)]
    with pytest.raises(Exception, match="null value"):
        db.execute("INSERT INTO users (name) VALUES (%s)", [None])
    assert users(database) == ["ada", "alan", "grace"]


def test_a_method_called_inside_a_block_loses_nothing(
    program: dict[str, Any], database: TemporaryDatabase
) -> None:
    """The class's own method inside `with db.pool` is a checkout of its own; both commit."""
    db = program["db"]
    with db.pool as conn:
        conn.execute("INSERT INTO users (name) VALUES ('outer-1')")
        assert db.fetch_one("SELECT count(*) FROM users") == (2,), "not committed yet"
        db.execute("INSERT INTO users (name) VALUES ('inner')")
        conn.execute("INSERT INTO users (name) VALUES ('outer-2')")

    assert users(database) == ["ada", "alan", "outer-1", "inner", "outer-2"]


def test_the_class_made_by_many_threads_at_once(
    program: dict[str, Any], database: TemporaryDatabase
) -> None:
    """One `Database` used first by twenty threads at the same moment opens one pool."""
    barrier = threading.Barrier(20)
    db = program["Database"](program["db"].config_path)

    def ask(_number: int) -> Any:
        barrier.wait()
        return db.fetch_one("SELECT count(*) FROM users")

    with ThreadPoolExecutor(20) as threads:
        assert set(threads.map(ask, range(20))) == {(2,)}
    assert len(database.backends()) <= 8, "two pools of at most four"
    db.manager.clear_cache()
    program["db"].manager.clear_cache()
    eventually(lambda: database.backends() == [], message="all connections are closed")


def test_the_page_as_a_program(tmp_path: Path, database: TemporaryDatabase) -> None:
    """As a program it ends by itself, without a warning."""
    with database.connect() as conn:
        conn.execute("CREATE TABLE users (id int, name text)")
    database.disconnect()
    declare(tmp_path, database)
    text = recipe("from-4.0/flask", "Database Class for Flask") + recipe(
        "from-4.0/flask", "Database Class for Flask", number=1
    )
    text = text.replace("/path/to/config.yaml", "config.yaml")

    ended = run(text + "\nprint(app.test_client().get('/users').json)\n", tmp_path)

    assert (ended.code, ended.errors, ended.output) == (0, "", ["{'users': []}"])
    assert ended.lingered < ENDS_WITHIN
