"""The service: a registry as a small HTTP server for probes and scrapes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import prometheus_client
import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgmonkey.errors import PgmonkeyError
from pgmonkey.prober import Prober
from pgmonkey.registry import Registry
from pgmonkey.status import DatabaseStatus
from pgmonkey.trust import Trust

DEFAULT_LISTEN: Final = "127.0.0.1:9749"
#: Seconds in which /readyz says 503 while requests are still answered, before the end.
DEFAULT_GRACE: Final = 1.0

_LOCAL_NAMES: Final = frozenset({"localhost"})
_LISTEN: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})"
)
_FINISH: Final = 3  # seconds that requests in progress have at the end
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger("pgmonkey.service")


class ServiceError(PgmonkeyError, OSError):
    """Report that the service cannot listen where it was told to."""


class Readiness:
    """Decide what /readyz says.

    Ready means: every required database that was declared at the start was reached at least
    once. From then on an outage changes nothing, for a database that is down must not take
    every pod out of service; only the end of the process does.

    Args:
        registry: Whose databases count.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._awaited = {one.name for one in registry.status().databases if one.required}
        #: Set when the process begins to shut down.
        self.stopping = False

    def look(self, reason: Callable[[DatabaseStatus], str | None]) -> dict[str, Any]:
        """Return what /readyz says as its body; `ready` is the verdict.

        Args:
            reason: Says why a database was not reached, in one word.
        """
        databases = [one for one in self._registry.status().databases if one.state != "removed"]
        if self._awaited:
            waiting = {one.name for one in databases if one.required and not one.reached}
            self._awaited &= waiting
        return {
            "ready": not self._awaited and not self.stopping,
            "stopping": self.stopping,
            "waiting_for": sorted(self._awaited),
            "databases": {
                one.name: {
                    "required": one.required,
                    "reached": one.reached,
                    "state": one.state,
                    "reason": reason(one),
                }
                for one in databases
            },
        }


def make_app(
    registry: Registry,
    readiness: Readiness,
    prober: Prober,
    metrics: prometheus_client.CollectorRegistry,
    hosts: Iterable[str] = (),
) -> ASGIApp:
    """Return the application. None of its answers waits for a database.

    Args:
        registry: What it shows.
        readiness: What decides about /readyz.
        prober: What knows why a database was not reached.
        metrics: What /metrics exports.
        hosts: More names that a request's `Host` may have; local names and IP addresses may
            always.
    """

    async def healthz(_request: Request) -> Response:
        watching = registry.watching
        return JSONResponse({"healthy": watching, "watching": watching}, 200 if watching else 503)

    async def readyz(_request: Request) -> Response:
        results = prober.results

        def reason(database: DatabaseStatus) -> str | None:
            result = results.get(database.name)
            return result.reason if result else (None if database.reached else "not_probed")

        body = readiness.look(reason)
        return JSONResponse(body, 200 if body["ready"] else 503)

    def scrape(request: Request) -> Response:  # in a thread: it may take milliseconds
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics), headers={"Content-Type": content_type})

    app = Starlette(
        routes=[
            Route("/metrics", scrape, methods=["GET"]),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
        ]
    )
    app.router.redirect_slashes = False
    return _Guard(app, frozenset(host.lower().rstrip(".") for host in hosts) | _LOCAL_NAMES)


class _Guard:
    """Refuse requests for other hosts (DNS rebinding), and add the headers of every answer."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if all(self._allows(value.decode("latin-1")) for value in hosts):
            await self._app(scope, receive, send_with_headers)
        else:
            answer = PlainTextResponse("unknown host\n", 421)
            await answer(scope, receive, send_with_headers)

    def _allows(self, host: str) -> bool:
        name = host.rpartition(":")[0] if re.search(r":[0-9]*$", host) else host
        if host.startswith("["):
            name = host[1:].partition("]")[0]
        if name.lower().rstrip(".") in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _Server(uvicorn.Server):
    """Leave signals to us: uvicorn would raise them once more at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Service:
    """Serve one registry over HTTP and probe its databases, until told to stop.

    Args:
        registry: What to serve. It stays open afterwards: whoever made it closes it.
        listener: A socket that listens already.
        metrics: What /metrics exports; the probes' results are added.
        hosts: More names that a request's `Host` may have.
        grace: Seconds between /readyz saying 503 and the end of answering.
    """

    def __init__(
        self,
        registry: Registry,
        listener: socket.socket,
        *,
        metrics: prometheus_client.CollectorRegistry,
        hosts: Iterable[str] = (),
        grace: float = DEFAULT_GRACE,
    ) -> None:
        self.registry = registry
        self.readiness = Readiness(registry)
        self.prober = Prober(registry)
        self._listener = listener
        self._grace = grace
        self._stop = asyncio.Event()
        self._reloads = _Reloads(registry)
        self._server = _Server(
            uvicorn.Config(
                make_app(registry, self.readiness, self.prober, metrics, hosts),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_FINISH,
            )
        )

    @property
    def url(self) -> str:
        """The address to look at, without a path."""
        host, port = self._listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where to look
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def reload(self) -> None:
        """Look at the files in the background. What came of it is in the events."""
        self._reloads.ask()

    def stop(self) -> None:
        """Begin the end: not ready at once, then no answer any more. Called on the loop."""
        self.readiness.stopping = True
        self._stop.set()

    async def run(self) -> None:
        """Answer until `stop` is called, and then finish what was begun."""
        self.prober.start()
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            self.readiness.stopping = True
            self.prober.stop()
            if not serving.done():
                await asyncio.sleep(self._grace)
            self._server.should_exit = True
            await serving
        finally:
            stopped.cancel()
            self.prober.stop()


class _Reloads:
    """Reload a registry in a thread: one at a time, and once more for all who asked meanwhile."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._asked = False
        self._running = False
        # Guards the two above; never held while reloading.
        self._lock = threading.Lock()

    def ask(self) -> None:
        with self._lock:
            self._asked = True
            if self._running:
                return
            self._running = True
        # A daemon: a reload that waits for a server must not hold up the end of the process.
        threading.Thread(target=self._run, name="pgmonkey-reload", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._running = False
                    return
                self._asked = False
            report = self._registry.reload()
            _log.info(
                "reloaded: %d applied, %d rejected, %d unchanged, %d removed",
                len(report.applied),
                len(report.rejected),
                len(report.unchanged),
                len(report.removed),
            )


def listen(address: str) -> socket.socket:
    """Return a socket that listens at `HOST:PORT`.

    Args:
        address: Such as `127.0.0.1:9749`, `[::1]:9749`, `0.0.0.0:9749`; port 0 is any free one.

    Raises:
        ValueError: It is no address.
        ServiceError: The address cannot be had.

    Example:
        >>> listen("127.0.0.1:0").getsockname()[0]
        '127.0.0.1'
    """
    match = _LISTEN.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:9749")
    host, port = match["six"] or match["host"], int(match["port"])
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(where[:2], family=family, backlog=128)
    except OSError as error:
        # The errno's own text: Python and the resolver add to it what `address` says already.
        known = isinstance(error.errno, int) and error.errno > 0
        reason = os.strerror(error.errno) if known and error.errno else error.strerror
        raise ServiceError(f"cannot listen on {address}: {reason}") from None


def collector_registry() -> prometheus_client.CollectorRegistry:
    """Return a registry of metrics with those of this process: memory, CPU, files, threads."""
    metrics = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=metrics)
    prometheus_client.PlatformCollector(registry=metrics)
    prometheus_client.GCCollector(registry=metrics)
    return metrics


def on_signals(service: Service, stop: Callable[[], None]) -> None:
    """Let SIGTERM and SIGINT stop, the second one at once, and SIGHUP reload.

    Called on the loop of the main thread.

    Args:
        service: Whose files SIGHUP looks at.
        stop: What the first SIGTERM or SIGINT does.
    """
    loop = asyncio.get_running_loop()
    seen: list[signal.Signals] = []

    def end(received: signal.Signals) -> None:
        if seen:
            os._exit(128 + received)
        seen.append(received)
        _log.info("%s: stopping; once more stops at once", received.name)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, service.reload)


def serve(
    directory: str | os.PathLike[str],
    listener: socket.socket,
    *,
    hosts: Iterable[str] = (),
    grace: float = DEFAULT_GRACE,
    allow_sensitive_defaults: bool = False,
    trust: Trust = "strict",
) -> None:
    """Serve a registry until SIGTERM or SIGINT.

    Args:
        directory: The registry's directory.
        listener: A socket that listens already.
        hosts: More names that a request's `Host` may have.
        grace: Seconds between /readyz saying 503 and the end of answering.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and the like.
        trust: What becomes of a database whose files other accounts can change.

    Raises:
        RegistryConfigError: The directory or a file has problems.
    """
    # Until the loop takes over: the first process of a container gets no default action, and
    # a SIGHUP asks for what is about to be done.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    metrics = collector_registry()
    with (
        listener,
        Registry(
            directory,
            metrics=metrics,
            allow_sensitive_defaults=allow_sensitive_defaults,
            trust=trust,
        ) as registry,
    ):
        asyncio.run(_serve(registry, listener, metrics, hosts, grace))
    _log.info("stopped")


def _leave(_number: int, _frame: object) -> None:
    raise SystemExit(0)


async def _serve(
    registry: Registry,
    listener: socket.socket,
    metrics: prometheus_client.CollectorRegistry,
    hosts: Iterable[str],
    grace: float,
) -> None:
    service = Service(registry, listener, metrics=metrics, hosts=hosts, grace=grace)
    on_signals(service, service.stop)
    _log.info("listening on %s", service.url)
    await service.run()
