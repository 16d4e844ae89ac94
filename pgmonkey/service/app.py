"""The application that shows a registry: the status page and its data as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from pgmonkey.config.explain import Value, explain
from pgmonkey.errors import UnknownDatabaseError
from pgmonkey.registry.registry import Registry
from pgmonkey.service.api import details, event_list, overview
from pgmonkey.service.middleware import Guard
from pgmonkey.service.page import ASSETS, POLICY, StatusPage
from pgmonkey.telemetry import events
from pgmonkey.telemetry.status import DatabaseStatus, RegistryStatus

_NUMBER: Final = 18  # digits
#: Bytes up to which an answer is sent as it is, though the client takes it compressed, too. A
#: page of a thousand databases shrinks to a fortieth, in two milliseconds.
_SMALL: Final = 8 * 1024


def status_app(registry: Registry, *, hosts: Iterable[str] | None = None) -> ASGIApp:
    """Return an ASGI application that shows a registry: its status page and the data behind it.

    Mount it into an application to see that process's own pools. It changes nothing, asks no
    database, and is readable for everybody who reaches it: put it where only operators do.

    Args:
        registry: What to show.
        hosts: The names that a request's `Host` may have, beside `localhost`, loopback addresses
            and the address that it came in at. Default: any, as the application around it decides.

    Example:
        >>> app = FastAPI()
        >>> app.mount("/pgmonkey", status_app(registry))
    """
    return Guard(application(status_routes(registry)), hosts)


def application(routes: Iterable[BaseRoute]) -> Starlette:
    """Return an application with fixed answers for what is not there, or not allowed.

    Args:
        routes: What there is. Paths are compared as they are: no slash is added or taken away.
    """
    app = Starlette(
        routes=list(routes),
        exception_handlers={HTTPException: _refuse},
        middleware=[Middleware(GZipMiddleware, minimum_size=_SMALL, compresslevel=1)],
    )
    app.router.redirect_slashes = False
    return app


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "not found", 405: "method not allowed"}.get(error.status_code, "refused")
    return PlainTextResponse(f"{text}\n", error.status_code, error.headers)


def status_routes(registry: Registry) -> list[BaseRoute]:
    """Return the routes of the status page and of its data. None of them waits for a database.

    Args:
        registry: What they show.
    """
    page = StatusPage()

    # Each runs in a thread: a registry of a thousand databases takes milliseconds to describe.

    def show_overview(request: Request) -> Response:
        status = registry.status()
        return _html(page.overview(_root(request), overview(status), event_list(_events(status))))

    def show_database(request: Request) -> Response:
        database = _find(registry, request)
        values = _values(registry, database)
        report = details(database, _settings(values), events.recent())
        return _html(page.database(_root(request), str(registry.path), report, values))

    def list_databases(_request: Request) -> Response:
        return JSONResponse(overview(registry.status()))

    def describe_database(request: Request) -> Response:
        database = _find(registry, request)
        values = _values(registry, database)
        return JSONResponse(details(database, _settings(values), events.recent()))

    def list_events(request: Request) -> Response:
        after = request.query_params.get("after", "0")
        if not after.isdecimal() or len(after) > _NUMBER:
            return JSONResponse({"error": "after is the number of an event, such as 17"}, 400)
        return JSONResponse(event_list(_events(registry.status()), int(after)))

    def asset(request: Request) -> Response:
        name = request.scope["path"].rpartition("/")[2]
        content, content_type = ASSETS[name]
        return Response(content, headers={"Content-Type": content_type})

    return [
        Route("/", show_overview, methods=["GET"]),
        Route("/databases/{name}", show_database, methods=["GET"]),
        Route("/api/v1/databases", list_databases, methods=["GET"]),
        Route("/api/v1/databases/{name}", describe_database, methods=["GET"]),
        Route("/api/v1/events", list_events, methods=["GET"]),
        *(Route(f"/assets/{name}", asset, methods=["GET"]) for name in ASSETS),
    ]


def _root(request: Request) -> str:
    """Return the path that the application is mounted at, in front of every link."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _html(text: str) -> Response:
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})


def _find(registry: Registry, request: Request) -> DatabaseStatus:
    name = request.path_params["name"]
    for database in registry.status().databases:
        if database.name == name:
            return database
    raise HTTPException(404)


def _values(registry: Registry, database: DatabaseStatus) -> tuple[Value, ...]:
    try:
        config = registry.config(database.name)
    except UnknownDatabaseError:  # removed since
        config = None
    if config is None:
        return ()
    # While the files cannot be used, what runs is not what stands in them.
    return explain(config, registry.path, sources=not database.stale)


def _settings(values: Iterable[Value]) -> list[dict[str, Any]]:
    return [{"key": one.key, "value": one.value, "source": one.source._asdict()} for one in values]


def _events(status: RegistryStatus) -> list[events.Event]:
    """Return the events of this process without those of databases that are not of this registry."""
    names = {one.name for one in status.databases}
    return [one for one in events.recent() if one.fields.get("database") in {None, *names}]
