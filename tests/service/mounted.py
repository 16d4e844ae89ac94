"""An application with the status page in it, answered by a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from pgmonkey.service.server import HttpServer, listen, url_of
from pgmonkey.service.tls import Certificate


@contextmanager
def answering(
    app: ASGIApp, address: str = "127.0.0.1:0", certificate: Certificate | None = None
) -> Iterator[str]:
    """Answer with an application; yield the address, without a path."""
    listener = listen(address)
    started = threading.Event()
    stop: list[asyncio.Event] = []

    async def serve() -> None:
        stop.append(asyncio.Event())
        started.set()
        await HttpServer(app, listener, certificate).run(stop[0].wait)

    loops: list[asyncio.AbstractEventLoop] = []

    def run() -> None:
        with asyncio.Runner() as runner:
            loops.append(runner.get_loop())
            runner.run(serve())

    thread = threading.Thread(target=run, name="answering")
    thread.start()
    assert started.wait(10)
    try:
        yield url_of(listener, "https" if certificate else "http")
    finally:
        loops[0].call_soon_threadsafe(stop[0].set)
        thread.join(10)
