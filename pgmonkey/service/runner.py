"""The service: a registry over HTTP, for operators, probes and scrapes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import prometheus_client
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from pgmonkey.config.trust import Trust
from pgmonkey.registry.prober import Prober
from pgmonkey.registry.registry import Registry
from pgmonkey.service.app import application, status_app, status_routes
from pgmonkey.service.auth import TokenFile
from pgmonkey.service.listener import url_of
from pgmonkey.service.middleware import Guard
from pgmonkey.service.readiness import Readiness
from pgmonkey.service.reload_endpoint import ReloadEndpoint
from pgmonkey.service.server import HttpServer
from pgmonkey.service.tls import Certificate
from pgmonkey.telemetry.status import DatabaseStatus

__all__ = ["Service", "ServiceOptions", "serve", "status_app"]

#: Seconds in which /readyz says 503 while requests are still answered, before the end.
DEFAULT_GRACE: Final = 1.0

_LOOK: Final = 2.0  # seconds between two looks at the certificate's files
_PROBES: Final = ("/metrics", "/healthz", "/readyz")

_log = logging.getLogger("pgmonkey.service")


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Say how a service answers.

    Args:
        admin: Another socket that listens already, for the page, its data and reloads; they are
            then not on the first one.
        hosts: More names that a request's `Host` may have.
        grace: Seconds between /readyz saying 503 and the end of answering.
        token: The file of the token that POST /-/reload wants; without one it is off.
        certificate: What to encrypt with; without one nothing is encrypted.
    """

    admin: socket.socket | None = None
    hosts: tuple[str, ...] = ()
    grace: float = DEFAULT_GRACE
    token: TokenFile | None = None
    certificate: Certificate | None = None


def probe_routes(
    registry: Registry,
    readiness: Readiness,
    prober: Prober,
    metrics: prometheus_client.CollectorRegistry,
) -> list[BaseRoute]:
    """Return the routes that machines ask. None of them waits for a database.

    Args:
        registry: What it shows.
        readiness: What decides about /readyz.
        prober: What knows why a database was not reached.
        metrics: What /metrics exports.
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

    return [
        Route("/metrics", scrape, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
    ]


class Service:
    """Serve one registry over HTTP and probe its databases, until told to stop.

    Args:
        registry: What to serve. It stays open afterwards: whoever made it closes it.
        listener: A socket that listens already.
        metrics: What /metrics exports; the probes' results are added.
        options: How to answer.
    """

    def __init__(
        self,
        registry: Registry,
        listener: socket.socket,
        *,
        metrics: prometheus_client.CollectorRegistry,
        options: ServiceOptions | None = None,
    ) -> None:
        options = options or ServiceOptions()
        self.registry = registry
        self.readiness = Readiness(registry)
        self.prober = Prober(registry)
        self._grace = options.grace
        self._stop = asyncio.Event()
        self._reloads = _Reloads(registry)
        self._certificate = options.certificate
        tls = self._certificate.context if self._certificate else None
        self._scheme = "https" if tls else "http"
        reload = ReloadEndpoint(registry, options.token)
        read_only = probe_routes(registry, self.readiness, self.prober, metrics)
        admin = [*status_routes(registry), Route("/-/reload", reload.answer, methods=["POST"])]

        def guarded(routes: list[BaseRoute]) -> ASGIApp:
            return Guard(application(routes), options.hosts, _PROBES)

        if options.admin is None:
            self._servers = [HttpServer(guarded([*read_only, *admin]), listener, tls)]
        else:
            self._servers = [
                HttpServer(guarded(read_only), listener, tls),
                HttpServer(guarded(admin), options.admin, tls),
            ]

    @property
    def url(self) -> str:
        """Where /metrics, /healthz and /readyz are, without a path."""
        return url_of(self._servers[0].listener, self._scheme)

    @property
    def page_url(self) -> str:
        """Where the status page, its data and /-/reload are, without a path."""
        return url_of(self._servers[-1].listener, self._scheme)

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
        following = asyncio.create_task(self._follow_certificate())
        try:
            for server in self._servers:
                await server.start()
            await self._stop.wait()
            self.prober.stop()
            await asyncio.sleep(self._grace)
        finally:
            following.cancel()
            self.prober.stop()
            await asyncio.gather(*(server.stop() for server in self._servers))

    async def _follow_certificate(self) -> None:
        while self._certificate is not None:
            await asyncio.sleep(_LOOK)
            await asyncio.to_thread(self._certificate.refresh)


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
    options: ServiceOptions,
    *,
    allow_sensitive_defaults: bool = False,
    trust: Trust = "strict",
) -> None:
    """Serve a registry until SIGTERM or SIGINT.

    Args:
        directory: The registry's directory.
        listener: A socket that listens already.
        options: How to answer.
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
        options.admin or contextlib.nullcontext(),
        Registry(
            directory,
            metrics=metrics,
            allow_sensitive_defaults=allow_sensitive_defaults,
            trust=trust,
        ) as registry,
    ):
        asyncio.run(_serve(registry, listener, metrics, options))
    _log.info("stopped")


def _leave(_number: int, _frame: object) -> None:
    raise SystemExit(0)


async def _serve(
    registry: Registry,
    listener: socket.socket,
    metrics: prometheus_client.CollectorRegistry,
    options: ServiceOptions,
) -> None:
    service = Service(registry, listener, metrics=metrics, options=options)
    on_signals(service, service.stop)
    _log.info("listening on %s", service.url)
    if service.page_url != service.url:
        _log.info("status page on %s", service.page_url)
    if options.token is not None and options.certificate is None:
        address = ipaddress.ip_address((options.admin or listener).getsockname()[0])
        if not address.is_loopback:
            _log.warning("tokens for /-/reload cross the network in the clear: --tls-cert")
    await service.run()
