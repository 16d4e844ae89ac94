"""Flask: a connection for each request, committed before the response is sent.

from flask import Flask
from pgmonkey.contrib.flask import connection, init_app

app = Flask(__name__)
init_app(app, "registry.d")

@app.post("/orders/<item>")
def add(item):
    connection("orders").execute("INSERT INTO orders (item) VALUES (%s)", [item])
    return "", 201
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from sys import _getframe
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, current_app, g
from flask.signals import got_request_exception

from pgmonkey.contrib.sides import SYNC, checkout
from pgmonkey.registry.registry import Registry

if TYPE_CHECKING:
    import psycopg

#: The key of `app.extensions` and of `g`.
_KEY: Final = "pgmonkey"


class _Borrowed:
    """The connections of one application context, which is that of one request."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.connections: dict[str, psycopg.Connection[Any]] = {}


def init_app(app: Flask, registry: Registry | str | os.PathLike[str] | None = None) -> None:
    """Give an application its registry; then `connection(name)` works in its requests.

    Call it right after the application was made: what `after_request` functions do is then
    committed, too. It connects to nothing.

    Args:
        app: The application.
        registry: The registry, or its directory; default: the directory that
            `app.config["PGMONKEY_REGISTRY"]` names.

    Raises:
        RegistryConfigError: the directory or a file has problems.
        RuntimeError: neither an argument nor the configuration names a registry.

    Example:
        >>> app = Flask("shop")
        >>> init_app(app, registry)
        >>> with app.app_context():
        ...     connection("orders").execute("SELECT 1").fetchone()
        (1,)
    """
    if registry is None:
        registry = app.config.get("PGMONKEY_REGISTRY")
        if registry is None:
            raise RuntimeError(
                'init_app() needs a registry: init_app(app, "registry.d"), or'
                ' app.config["PGMONKEY_REGISTRY"] = "registry.d"'
            )
    app.extensions[_KEY] = registry if isinstance(registry, Registry) else Registry(registry)
    app.after_request(_commit)
    app.teardown_appcontext(_give_back)
    # An error that the application handles reaches neither the signal nor the teardown.
    handle = app.handle_user_exception

    def handle_user_exception(*arguments: Any) -> Any:
        _give_back(arguments[-1])  # the error; Flask 3.2 puts its context before it
        return handle(*arguments)

    setattr(app, "handle_user_exception", handle_user_exception)  # noqa: B010 - there is no hook
    got_request_exception.connect(_roll_back, app)


def connection(name: str) -> psycopg.Connection[Any]:
    """Return the connection of this request to a database; the first call borrows it.

    What the request did is committed when its response is made, before it is sent; if that fails,
    the response is a 500. It is rolled back if the request raises, also if an error handler makes
    a response of that. Then the connection is given back. A call after that, in an error handler
    or in a stream, borrows another one until the end of the context.

    Outside of a request, in a command or in `with app.app_context():`, it is committed at the end
    of the context, or rolled back if that ends with an exception.

    Args:
        name: The name of the database, of any type.

    Raises:
        RuntimeError: there is no application context, or `init_app` was not called.
        CheckoutTimeout, ConnectError, UnknownDatabaseError: as a checkout does.

    Example:
        >>> app = Flask("shop")
        >>> init_app(app, registry)
        >>> with app.app_context():
        ...     connection("orders") is connection("orders")
        True
    """
    borrowed: _Borrowed | None = g.get(_KEY)
    if borrowed is None:
        borrowed = _Borrowed()
        setattr(g, _KEY, borrowed)
    conn = borrowed.connections.get(name)
    if conn is None:
        registry = current_app.extensions.get(_KEY)
        if registry is None:
            raise RuntimeError(
                'the application has no registry: call init_app(app, "registry.d") where it is made'
            )
        caller = _getframe(1)
        block = checkout(registry, name, SYNC, caller.f_code, caller.f_lasti)
        conn = borrowed.connections[name] = borrowed.stack.enter_context(block)
    return conn


def _commit(response: Response) -> Response:
    """Commit before the response is sent: the teardown would be too late for an error."""
    _give_back(None)
    return response


def _roll_back(_app: Flask, exception: BaseException, **_: object) -> None:
    _give_back(exception)


def _give_back(error: BaseException | None) -> None:
    """Commit, or roll back after an error, and give back what the context has borrowed."""
    borrowed: _Borrowed | None = g.pop(_KEY, None)
    if borrowed is None:
        return
    if error is None:
        borrowed.stack.close()
    else:
        borrowed.stack.__exit__(type(error), error, error.__traceback__)
