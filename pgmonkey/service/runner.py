"""The service: a registry over HTTP, and its signals."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import prometheus_client
from starlette.routing import BaseRoute, Route

from pgmonkey.registry.registry import Registry
from pgmonkey.service.app import Readiness, application, probe_routes, status_routes
from pgmonkey.service.auth import ReloadEndpoint, TokenFile
from pgmonkey.service.middleware import Guard
from pgmonkey.service.server import HttpServer, Listener, url_of
from pgmonkey.service.systemd import notify, notify_reloading, watchdog_interval
from pgmonkey.service.tls import Certificate

#: Seconds in which /readyz says 503 while requests are still answered, before the end.
DEFAULT_GRACE: Final = 1.0

_FILES: Final = 4096  # descriptors: connections of two listening sockets, and those of the registry
_LOOK: Final = 2.0  # seconds between two looks at the certificate's files
_PROBES: Final = ("/metrics", "/healthz", "/readyz")

_log = logging.getLogger("pgmonkey.service")


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How a service answers.

    Args:
        admin: Another listening socket for the page, its data and reloads; they are then not on
            the first one.
        hosts: More names that a request's `Host` may have.
        grace: Seconds between /readyz saying 503 and the end of answering.
        token: The file of the token that POST /-/reload needs; without one it is off.
        certificate: What to encrypt with; without one nothing is encrypted.
    """

    admin: Listener | None = None
    hosts: tuple[str, ...] = ()
    grace: float = DEFAULT_GRACE
    token: TokenFile | None = None
    certificate: Certificate | None = None


class Service:
    """Serve one registry over HTTP, until `stop`.

    The caller opens the registry, with `probe_interval`: /readyz waits for the first probes.
    """

    def __init__(
        self,
        registry: Registry,
        listener: Listener,
        *,
        metrics: prometheus_client.CollectorRegistry,
        options: ServiceOptions | None = None,
    ) -> None:
        options = options or ServiceOptions()
        self._registry = registry
        self.readiness = Readiness(registry)
        self._grace = options.grace
        self._stop = asyncio.Event()
        self._stop_answering = asyncio.Event()
        self._reload_asked = threading.Event()
        self._reloading: threading.Thread | None = None
        self._certificate = options.certificate
        self._scheme = "https" if options.certificate else "http"
        reload = ReloadEndpoint(registry, options.token)
        probes = probe_routes(registry, self.readiness, metrics)
        admin = [*status_routes(registry), Route("/-/reload", reload.answer, methods=["POST"])]

        def server(routes: list[BaseRoute], listener: Listener) -> HttpServer:
            app = Guard(application(routes), options.hosts, _PROBES)
            return HttpServer(app, listener, options.certificate)

        if options.admin is None:
            self._servers = [server([*probes, *admin], listener)]
        else:
            self._servers = [server(probes, listener), server(admin, options.admin)]

    @property
    def url(self) -> str:
        """Where /metrics, /healthz and /readyz are, without a path."""
        return url_of(self._servers[0].listener, self._scheme)

    @property
    def page_url(self) -> str:
        """Where the status page, its data and /-/reload are, without a path."""
        return url_of(self._servers[-1].listener, self._scheme)

    def reload(self) -> None:
        """Reload in the background: once more for all calls that come during a reload."""
        self._reload_asked.set()
        if self._reloading is None:
            # A daemon: a reload that waits for a server must not delay the end of the process.
            self._reloading = threading.Thread(
                target=self._reload_when_asked, name="pgmonkey-reload", daemon=True
            )
            self._reloading.start()

    def stop(self) -> None:
        """Begin the end: not ready at once, no answers after the grace. Called on the loop."""
        self.readiness.stopping = True
        notify("STOPPING=1")
        self._stop.set()

    async def run(self) -> None:
        """Answer until `stop` is called, and finish the requests in progress."""
        loop = asyncio.get_running_loop()
        previous_handler = loop.get_exception_handler()
        loop.set_exception_handler(_on_loop_error)
        try:
            async with asyncio.TaskGroup() as tasks:
                for server in self._servers:
                    tasks.create_task(server.run(self._stop_answering.wait))
                beside = [
                    tasks.create_task(self._follow_certificate()),
                    tasks.create_task(self._feed_watchdog()),
                ]
                if not self._stop.is_set():  # a signal can come before
                    notify("READY=1", f"STATUS=listening on {self.url}")
                await self._stop.wait()
                await asyncio.sleep(self._grace)
                for task in beside:
                    task.cancel()
                self._stop_answering.set()
        finally:
            loop.set_exception_handler(previous_handler)

    async def _follow_certificate(self) -> None:
        while self._certificate is not None:
            await asyncio.sleep(_LOOK)
            await asyncio.to_thread(self._certificate.refresh)

    async def _feed_watchdog(self) -> None:
        """Tell systemd that the loop turns and the watcher lives, as /healthz says it."""
        interval = watchdog_interval(os.environ)
        while interval is not None:
            if self._registry.watching:
                notify("WATCHDOG=1")
            await asyncio.sleep(interval / 2)

    def _reload_when_asked(self) -> None:
        while self._reload_asked.wait():
            self._reload_asked.clear()
            notify_reloading()
            report = self._registry.reload()
            result = (
                f"reloaded: {len(report.applied)} applied, {len(report.rejected)} rejected,"
                f" {len(report.unchanged)} unchanged, {len(report.removed)} removed"
            )
            _log.info("%s", result)
            notify("READY=1", f"STATUS={result}")


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log errors that any client can cause without a traceback, those of a connection at debug."""
    if "transport" in context:
        _log.debug("connection failed: %r", context.get("exception"))
    elif "socket" in context:
        _log.error("cannot accept a connection: %s", context.get("exception"))
    else:
        loop.default_exception_handler(context)


def collector_registry() -> prometheus_client.CollectorRegistry:
    """Return a registry of metrics with those of this process: memory, CPU, files, threads."""
    metrics = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=metrics)
    prometheus_client.PlatformCollector(registry=metrics)
    prometheus_client.GCCollector(registry=metrics)
    return metrics


def note_signals() -> list[int]:
    """Return a list that takes SIGTERM and SIGINT until `on_signals`; the second one ends at once.

    Call it before you listen. A handler that raises could interrupt an import or the start of a
    process, and leave a file open or a process behind. SIGHUP is ignored: the files are about to
    be read.
    """
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        if noted:
            os._exit(128 + number)
        noted.append(number)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return noted


def on_signals(service: Service, stop: Callable[[], None], noted: list[int]) -> None:
    """Let SIGTERM and SIGINT call `stop`, a second one end at once, and SIGHUP reload.

    Called on the loop of the main thread. If a signal was noted before, `stop` is called now.
    """
    loop = asyncio.get_running_loop()

    def end(received: signal.Signals) -> None:
        if noted:
            os._exit(128 + received)
        noted.append(received)
        _log.info("%s: stopping; once more stops at once", received.name)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    if noted:
        stop()


def serve(
    open_registry: Callable[[prometheus_client.CollectorRegistry], Registry],
    listener: Listener,
    options: ServiceOptions,
    noted: list[int],
) -> None:
    """Serve a registry until SIGTERM or SIGINT.

    `open_registry` gets where its metrics go. `noted` is the result of `note_signals`. Raises
    `RegistryConfigError` if a file has problems.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):  # as many as there may be
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))
    metrics = collector_registry()
    with (
        listener,
        options.admin or contextlib.nullcontext(),
        open_registry(metrics) as registry,
    ):
        asyncio.run(_serve(registry, listener, metrics, options, noted))
    _log.info("stopped")


async def _serve(
    registry: Registry,
    listener: Listener,
    metrics: prometheus_client.CollectorRegistry,
    options: ServiceOptions,
    noted: list[int],
) -> None:
    service = Service(registry, listener, metrics=metrics, options=options)
    on_signals(service, service.stop, noted)
    _log.info("listening on %s", service.url)
    if service.page_url != service.url:
        _log.info("status page on %s", service.page_url)
    if options.token is not None and options.certificate is None:
        address = ipaddress.ip_address((options.admin or listener).getsockname()[0])
        if not address.is_loopback:
            _log.warning("tokens for /-/reload cross the network unencrypted: use --tls-cert")
    await service.run()
