"""pgmonkey.contrib.flask, in Flask, with its own test client and a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask, abort, g, redirect, stream_with_context

from pgmonkey import CheckoutTimeout, Registry
from pgmonkey.contrib.flask import connection, init_app
from tests.contrib.test_fastapi import TABLE, totals
from tests.kit import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.secret_volume import SecretVolume


@pytest.fixture
def registry(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, volume: SecretVolume
) -> Iterator[Registry]:
    """A registry with `orders`, whose pool has at most four connections."""
    with database.connect() as conn:
        conn.execute(TABLE)
    database.disconnect()
    sizes = {"min_size": 1, "max_size": 4}
    registry_dir.declare("orders", database, volume=volume, pool_settings=sizes)
    with Registry(registry_dir) as registry:
        yield registry


@pytest.fixture
def app(registry: Registry) -> Flask:
    """An application that adds orders."""
    app = Flask("shop")
    init_app(app, registry)

    @app.post("/orders/<int:total>")
    def add(total: int) -> str:
        connection("orders").execute("INSERT INTO orders VALUES (%s)", [total])
        return "saved"

    return app


def used(registry: Registry) -> int:
    return sum(pool.used for one in registry.status().databases for pool in one.pools)


def test_what_is_answered_is_committed(
    app: Flask, registry: Registry, database: TemporaryDatabase
) -> None:
    """Another session sees the row when the answer begins, before the teardown."""
    seen = []

    def middleware(environ: Any, start_response: Any) -> Any:
        def start(*arguments: Any) -> Any:
            (total,) = environ["PATH_INFO"].rsplit("/", 1)[1:]
            row = other.execute("SELECT 1 FROM orders WHERE total = %s", [total]).fetchone()
            seen.append(row is not None)
            return start_response(*arguments)

        return inner(environ, start)

    inner = app.wsgi_app
    setattr(app, "wsgi_app", middleware)  # noqa: B010 - as Flask documents it
    with database.connect(autocommit=True) as other:
        for total in range(100):
            assert app.test_client().post(f"/orders/{total}").text == "saved"
    database.disconnect()
    assert seen == [True] * 100
    assert used(registry) == 0


def test_a_request_has_one_connection(app: Flask, registry: Registry) -> None:
    """The first call in a request borrows it, and later calls return it; the next request borrows again."""

    @app.get("/same")
    def same() -> dict[str, Any]:
        assert used(registry) == 0
        conn = connection("orders")
        ((place,),) = [
            [checkout.place for checkout in pool.checkouts]
            for one in registry.status().databases
            for pool in one.pools
        ]
        return {"same": conn is connection("orders"), "used": used(registry), "place": place}

    answer = app.test_client().get("/same").json
    assert (answer["same"], answer["used"]) == (True, 1)
    assert answer["place"].startswith(__file__), "where the application asks for it"
    assert answer["place"].endswith(" in same")
    assert used(registry) == 0


def test_a_commit_that_fails_is_an_error_500(
    app: Flask, registry: Registry, database: TemporaryDatabase
) -> None:
    """A deferred constraint refuses the COMMIT, and the client gets the application's page for errors."""

    @app.errorhandler(500)
    def failed(_error: Exception) -> tuple[str, int]:
        return "it was not saved", 500

    client = app.test_client()
    assert client.post("/orders/1").status_code == 200
    answer = client.post("/orders/1")
    assert (answer.status_code, answer.text) == (500, "it was not saved")
    assert totals(database) == [1]
    assert used(registry) == 0


@pytest.mark.parametrize("path", ["unhandled", "handled", "abort", "redirect", "after"])
def test_a_request_that_raises_is_rolled_back(
    app: Flask, registry: Registry, database: TemporaryDatabase, path: str
) -> None:
    """An error rolls back also if a handler makes a good response of it, or if it comes after the view."""

    @app.errorhandler(KeyError)
    def handled(_error: Exception) -> str:
        connection("orders").execute("INSERT INTO orders VALUES (-1)")
        return "that is fine"

    @app.after_request
    def after(response: Any) -> Any:
        if path == "after":
            raise ZeroDivisionError
        return response

    @app.post("/<path>")
    def add_and_raise(path: str) -> str:
        connection("orders").execute("INSERT INTO orders VALUES (1)")
        if path == "handled":
            raise KeyError
        if path == "abort":
            abort(418)
        if path == "redirect":
            abort(redirect("/elsewhere"))
        if path == "unhandled":
            raise ZeroDivisionError
        return "saved"

    expected = {"handled": 200, "abort": 418, "redirect": 302}.get(path, 500)
    assert app.test_client().post(f"/{path}").status_code == expected
    assert totals(database) == ([-1] if path == "handled" else []), "what the handler does counts"
    assert used(registry) == 0


def test_an_exception_that_a_test_client_propagates_rolls_back(
    app: Flask, registry: Registry, database: TemporaryDatabase
) -> None:
    """`TESTING` lets exceptions reach the test; connections still come back."""
    app.testing = True

    @app.post("/fails")
    def fails() -> str:
        connection("orders").execute("INSERT INTO orders VALUES (1)")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), app.test_client() as client:
        client.post("/fails")
    assert used(registry) == 0
    assert totals(database) == []


def test_two_databases_are_both_rolled_back(
    app: Flask,
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
) -> None:
    """The database that was used last commits first; if it cannot, the other one rolls back."""
    registry_dir.declare("audit", database)
    registry.reload()

    @app.post("/both/<int:first>/<int:second>")
    def both(first: int, second: int) -> str:
        connection("audit").execute("INSERT INTO orders VALUES (%s)", [first])
        connection("orders").execute("INSERT INTO orders VALUES (%s)", [second])
        return "saved"

    assert app.test_client().post("/orders/7").status_code == 200
    assert app.test_client().post("/both/1/7").status_code == 500
    assert app.test_client().post("/both/2/3").status_code == 200
    assert totals(database) == [2, 3, 7]
    assert used(registry) == 0


def test_a_stream_borrows_its_own_connection(app: Flask, registry: Registry) -> None:
    """A generator with the context asks for a connection, which comes back when the client has read it."""

    @app.get("/stream")
    def stream() -> Any:
        connection("orders").execute("SELECT 1")

        @stream_with_context
        def numbers() -> Iterator[str]:
            for (number,) in connection("orders").execute("SELECT generate_series(1, 3)"):
                yield str(number)

        return numbers()

    answer = app.test_client().get("/stream")
    assert answer.text == "123"
    answer.close()
    assert used(registry) == 0


def test_a_command_commits_at_its_end(
    app: Flask, registry: Registry, database: TemporaryDatabase
) -> None:
    """Outside of requests the end of the application context commits; a command that raises rolls back."""

    @app.cli.command("add")
    def add() -> None:
        connection("orders").execute("INSERT INTO orders VALUES (1)")

    @app.cli.command("fail")
    def fail() -> None:
        connection("orders").execute("INSERT INTO orders VALUES (2)")
        raise ZeroDivisionError

    runner = app.test_cli_runner()
    assert runner.invoke(args=["add"]).exit_code == 0
    assert isinstance(runner.invoke(args=["fail"]).exception, ZeroDivisionError)
    with app.app_context():
        connection("orders").execute("INSERT INTO orders VALUES (3)")
    with pytest.raises(ZeroDivisionError), app.app_context():
        connection("orders").execute("INSERT INTO orders VALUES (4)")
        raise ZeroDivisionError
    assert totals(database) == [1, 3]
    assert used(registry) == 0


def test_the_configuration_names_the_registry(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, registry: Registry
) -> None:
    """`PGMONKEY_REGISTRY` names a directory; without one, the error says what to write. Async types work."""
    registry_dir.declare("orders", database, "async_pool")
    app = Flask("shop")
    with pytest.raises(RuntimeError, match="PGMONKEY_REGISTRY"):
        init_app(app)
    with app.app_context(), pytest.raises(RuntimeError, match="init_app"):
        connection("orders")
    app.config["PGMONKEY_REGISTRY"] = registry_dir
    init_app(app)
    with app.extensions["pgmonkey"], app.app_context():
        assert isinstance(connection("orders"), psycopg.Connection)
        assert connection("orders").execute("SELECT 1").fetchone() == (1,)
        assert "pgmonkey" in g


def test_outside_of_a_context_flask_says_so() -> None:
    """A call outside of an application context raises the error that Flask raises for `g`."""
    with pytest.raises(RuntimeError, match="outside of application context"):
        connection("orders")


def test_a_busy_pool_is_an_error_of_the_application(
    app: Flask, registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """An error handler of `CheckoutTimeout` tells clients to come back."""

    @app.errorhandler(CheckoutTimeout)
    def busy(error: Exception) -> tuple[str, int, dict[str, str]]:
        return str(error), 503, {"Retry-After": "1"}

    registry_dir.declare("orders", database, pool_settings={"max_size": 1, "timeout": 0.1})
    registry.reload()
    with registry.get("orders").connection(timeout=20):
        answer = app.test_client().post("/orders/1")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
