"""The ASGI applications: what each path answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import prometheus_client
from prometheus_client.exposition import choose_encoder
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
from pgmonkey.service.page import ASSETS, POLICY, Choice, StatusPage
from pgmonkey.telemetry import events
from pgmonkey.telemetry.status import DatabaseStatus, RegistryStatus

_NUMBER: Final = 18  # digits
#: Bytes up to which an answer is not compressed. The page of a thousand databases shrinks to less
#: than a tenth, in a millisecond.
_SMALL: Final = 8 * 1024


def status_app(registry: Registry, *, hosts: Iterable[str] | None = None) -> ASGIApp:
    """Return an ASGI application with the status page of a registry, and its data as JSON.

    Mount it into an application to see the pools of that process. It changes nothing and asks no
    database. Everybody who reaches it can read it, so put it where only operators can.

    Args:
        registry: The registry to show.
        hosts: The names that a request's `Host` may have, beside `localhost`, loopback addresses
            and the address that it was sent to. Default: any name.

    Example:
        >>> app = FastAPI()
        >>> app.mount("/pgmonkey", status_app(registry))
    """
    return Guard(application(status_routes(registry)), hosts)


def application(routes: Iterable[BaseRoute]) -> Starlette:
    """Return an application of these routes. Large answers are compressed."""
    compress = Middleware(GZipMiddleware, minimum_size=_SMALL, compresslevel=1)
    app = Starlette(routes=list(routes), middleware=[compress])
    app.router.redirect_slashes = False
    return app


def status_routes(registry: Registry) -> list[BaseRoute]:
    """Return the routes of the status page and of its data. None of them waits for a database."""
    page = StatusPage()

    # Each runs in a thread: a registry of a thousand databases takes milliseconds to describe.

    def show_overview(request: Request) -> Response:
        try:
            choice = Choice.of(request.query_params)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", 400)
        status = registry.status()
        report, recent = overview(status), event_list(_events(status))
        return _html(page.overview(_root(request), report, recent, choice))

    def report_of(request: Request) -> tuple[dict[str, Any], tuple[Value, ...]]:
        name = request.path_params["name"]
        database = next((one for one in registry.status().databases if one.name == name), None)
        if database is None:
            raise HTTPException(404)
        values: tuple[Value, ...] = ()
        with suppress(UnknownDatabaseError):  # removed since
            config = registry.config(name)
            # While the files cannot be used, the values in use do not come from them.
            values = explain(config, sources=not database.stale) if config else ()
        return details(database, values, events.recent()), values

    def show_database(request: Request) -> Response:
        report, values = report_of(request)
        return _html(page.database(_root(request), str(registry.path), report, values))

    def list_databases(_request: Request) -> Response:
        return JSONResponse(overview(registry.status()))

    def describe_database(request: Request) -> Response:
        return JSONResponse(report_of(request)[0])

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


class Readiness:
    """Decide the answer of /readyz.

    Ready means: every required database that was declared at the start was reached at least once.
    A later outage changes nothing, because a database that is down must not take every pod out of
    service. Only the end of the process does.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._awaited = {one.name for one in registry.status().databases if one.required}
        #: Set when the process begins to shut down.
        self.stopping = False

    def body(self) -> dict[str, Any]:
        """Return the body of /readyz; `ready` is the verdict."""
        databases = [one for one in self._registry.status().databases if one.state]
        if self._awaited:
            self._awaited &= {one.name for one in databases if one.required and not one.reached}
        return {
            "ready": not self._awaited and not self.stopping,
            "stopping": self.stopping,
            "waiting_for": sorted(self._awaited),
            "databases": {
                one.name: {
                    "required": one.required,
                    "reached": one.reached,
                    "state": one.state,
                    "reason": _reason(one),
                }
                for one in databases
            },
        }


def _reason(database: DatabaseStatus) -> str | None:
    """Return why the last probe failed: in one word, never a text of the server."""
    if database.state == "failed":
        return "config"
    if database.probe is None and not database.reached:
        return "not_probed"
    return database.last_error_reason


class _Scrapes:
    """Collect the metrics in a thread, one collection at a time.

    Scrapes that come meanwhile share the next collection: a hundred cost as much as two.
    """

    def __init__(self, metrics: prometheus_client.CollectorRegistry) -> None:
        self._metrics = metrics
        self._lock = asyncio.Lock()
        self._waiting: dict[str, asyncio.Task[bytes]] = {}  # by content type

    async def answer(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        task = self._waiting.get(content_type)
        if task is None:
            task = asyncio.create_task(self._collect(encode, content_type))
            self._waiting[content_type] = task
        text = await asyncio.shield(task)  # others wait for it, too
        return Response(text, headers={"Content-Type": content_type})

    async def _collect(
        self, encode: Callable[[prometheus_client.CollectorRegistry], bytes], content_type: str
    ) -> bytes:
        async with self._lock:
            del self._waiting[content_type]
            return await asyncio.to_thread(encode, self._metrics)


def probe_routes(
    registry: Registry, readiness: Readiness, metrics: prometheus_client.CollectorRegistry
) -> list[BaseRoute]:
    """Return the routes for Kubernetes and Prometheus. None of them waits for a database."""

    async def healthz(_request: Request) -> Response:
        watching = registry.watching
        return JSONResponse({"healthy": watching, "watching": watching}, 200 if watching else 503)

    async def readyz(_request: Request) -> Response:
        body = readiness.body()
        return JSONResponse(body, 200 if body["ready"] else 503)

    return [
        Route("/metrics", _Scrapes(metrics).answer, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
    ]


def _root(request: Request) -> str:
    """Return the path that the application is mounted at. It precedes every link."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _html(text: str) -> Response:
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})


def _events(status: RegistryStatus) -> list[events.Event]:
    """Return the events of this process, without those of other registries' databases."""
    names = {one.name for one in status.databases}
    return [one for one in events.recent() if one.fields.get("database") in {None, *names}]
