"""The demonstration: a real PostgreSQL, and three databases that change under load."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing

import prometheus_client

from pgmonkey.demo.server import EmbeddedServer
from pgmonkey.demo.shop import Shop
from pgmonkey.demo.story import Story
from pgmonkey.demo.workload import Workload
from pgmonkey.registry.registry import Registry
from pgmonkey.service.runner import (
    Service,
    ServiceOptions,
    collector_registry,
    note_signals,
    on_signals,
)
from pgmonkey.service.server import Listener
from pgmonkey.version import __version__


def run_demo(
    listener: Listener, *, pause: float | None, rotate_every: float, duration: float | None
) -> None:
    """Run the demonstration until SIGINT or SIGTERM. It leaves no process and no file behind.

    Args:
        listener: The listening socket of the service.
        pause: Seconds before each step of the story; `None`: without the story.
        rotate_every: Seconds between two rotations after the story; the databases take turns.
        duration: Seconds after which it ends by itself; `None`: never.

    Raises:
        EmbeddedServerError: PostgreSQL does not start.
    """
    noted = note_signals()
    print(f"pgmonkey {__version__}: starting PostgreSQL ...", flush=True)
    with listener, EmbeddedServer() as server, closing(Shop(server)) as shop:
        shop.create()
        if noted:
            raise KeyboardInterrupt
        variables = {
            "PGMONKEY_DEMO_HOST": server.host,
            "PGMONKEY_DEMO_PORT": str(server.port),
            "PGMONKEY_DEMO_SECRETS": os.fspath(shop.secrets),
        }
        metrics = collector_registry()
        registry = Registry(
            shop.registry,
            metrics=metrics,
            probe_interval=15.0,
            trust="off",  # started by root, the files are in a directory of the server's account
            env=variables,
        )
        workload = asyncio.run(
            _run(registry, listener, metrics, shop, pause, rotate_every, duration, noted)
        )
    print(
        f"stopped after {workload.total('ok'):,} transactions, {workload.total('error'):,} failed;"
        " PostgreSQL and all files of the demonstration are gone",
        flush=True,
    )


async def _run(
    registry: Registry,
    listener: Listener,
    metrics: prometheus_client.CollectorRegistry,
    shop: Shop,
    pause: float | None,
    rotate_every: float,
    duration: float | None,
    noted: list[int],
) -> Workload:
    async with registry:
        workload = Workload(registry)
        metrics.register(workload)
        service = Service(registry, listener, metrics=metrics, options=ServiceOptions(grace=0.0))
        ended = asyncio.Event()

        def stop() -> None:
            service.readiness.stopping = True
            ended.set()

        on_signals(service, stop, noted)
        if duration is not None:
            asyncio.get_running_loop().call_later(duration, stop)
        print(_welcome(service, shop), flush=True)
        serving = asyncio.create_task(service.run())
        workload.start()
        telling = asyncio.create_task(
            _tell(Story(registry, workload, shop), shop, pause, rotate_every)
        )
        try:
            done, _ = await asyncio.wait(
                {serving, telling, asyncio.ensure_future(ended.wait())},
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                task.result()
        finally:
            telling.cancel()
            await workload.stop()
            service.stop()
            await serving
    return workload


async def _tell(story: Story, shop: Shop, pause: float | None, rotate_every: float) -> None:
    if pause is not None:
        print(f"Five things happen to orders now, one every {pause:g} seconds.", flush=True)
        await story.tell(pause)
    print(_your_turn(shop, rotate_every), flush=True)
    await story.rotate_forever(rotate_every)


def _welcome(service: Service, shop: Shop) -> str:
    (server,) = shop.servers
    with server.connect() as conn:
        version = conn.info.parameter_status("server_version")
    return f"""
PostgreSQL {version} listens on {server.host}:{server.port}. Threads and tasks write to three databases.
Everything here is a copy that Ctrl-C removes:

files    {shop.registry}
secrets  {shop.secrets}
page     {service.page_url}/
metrics  curl -s {service.url}/metrics | grep demo_transactions
"""


def _your_turn(shop: Shop, rotate_every: float) -> str:
    return f"""
Your turn, while a password is rotated every {rotate_every:g} seconds:

- Edit {shop.registry / "orders.yaml"}: another max_size takes effect when you save.
- Make a mistake in it: the event names file, line and key; the old settings stay in use.
- echo wrong > {shop.secrets / "orders" / "password"}
  The server rejects it, so the old connections stay; the next rotation mends it.
- Ctrl-C stops everything.
"""
