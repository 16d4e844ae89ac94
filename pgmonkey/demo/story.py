"""What happens in the demonstration, one thing after the other, and in words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import psycopg

from pgmonkey.demo.server import EmbeddedServerError
from pgmonkey.demo.shop import Shop
from pgmonkey.demo.workload import TABLES, Workload
from pgmonkey.registry.registry import Registry
from pgmonkey.telemetry.status import DatabaseStatus, Outcome

_PATIENCE: Final = 20.0  # seconds until a step is given up
_LOOK: Final = 0.05  # seconds between two looks at the status
_DOWN: Final = 1.5  # seconds without a server


class Story:
    """Change the databases while the workload uses them, and print what happens.

    Args:
        registry: It has the files of the shop.
        workload: It counts the transactions.
        shop: What is changed.
    """

    def __init__(self, registry: Registry, workload: Workload, shop: Shop) -> None:
        self._registry = registry
        self._workload = workload
        self._shop = shop

    async def tell(self, pause: float) -> None:
        """Do all steps, with a pause of so many seconds before each."""
        steps = (
            ("The password of orders is rotated: on the server, then in its file.", self._rotate),
            ("Somebody saves a typo in orders.yaml: max_sise instead of max_size.", self._mistype),
            ("A wrong password is written into the secret of orders.", self._spoil),
            (
                "The database orders moves to another server; its file gets the new port.",
                self._move,
            ),
            ("The new server of orders is killed (SIGKILL) and started again.", self._kill),
        )
        for number, (title, step) in enumerate(steps, 1):
            await asyncio.sleep(pause)
            print(f"\n== {number} of {len(steps)}: {title}", flush=True)
            before = self._workload.total("error")
            try:
                outcome = await step()
            except (psycopg.Error, EmbeddedServerError, OSError) as error:  # a timeout, too
                outcome = f"This step did not work here: {error}."
            failed = self._workload.total("error") - before
            print(f"-> {outcome}\n   {self._count()}, {failed} of them in this step", flush=True)

    async def rotate_forever(self, every: float) -> None:
        """Rotate the passwords of the databases in turn, one every so many seconds."""
        while True:
            for name in TABLES:
                await asyncio.sleep(every)
                print(f"-- {self._count()}; {name} gets a new password", flush=True)
                try:
                    await asyncio.to_thread(self._shop.rotate, name)
                except (psycopg.Error, OSError) as error:
                    # The user may have killed the server, or removed the files.
                    print(f"-- {name} is not rotated: {error}", flush=True)

    async def _rotate(self) -> str:
        async with self._until_one_more("applied"):
            await asyncio.to_thread(self._shop.rotate, "orders")
        return (
            "New connections use the new password; the old ones were closed when their blocks"
            f" had ended. Version {self._orders.version} runs."
        )

    async def _mistype(self) -> str:
        async with self._until_one_more("rejected"):
            self._shop.edit("orders", "max_size:", "max_sise:")
        self._shop.edit("orders", "max_sise:", "max_size:")
        await self._until(lambda: not self._orders.stale)
        return (
            "The file was rejected, with its line and a hint, and the old settings stayed in use."
            " The typo is corrected now."
        )

    async def _spoil(self) -> str:
        async with self._until_one_more("rejected"):
            self._shop.write_password("orders", "wrong")
        async with self._until_one_more("applied"):
            await asyncio.to_thread(self._shop.rotate, "orders")
        return (
            "One connection tried it, and the server refused. The old connections stayed."
            " Another rotation has corrected the secret."
        )

    async def _move(self) -> str:
        async with self._until_one_more("applied"):
            server = await asyncio.to_thread(self._shop.move, "orders")
        await asyncio.to_thread(self._registry.wait_drained, _PATIENCE)
        return (
            f"orders is on port {server.port} now; no connection to the old server is left."
            " (The rows did not move: that is the work of replication.)"
        )

    async def _kill(self) -> str:
        server = self._shop.places["orders"]
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(_DOWN)
        await asyncio.to_thread(server.start_again)
        done = self._workload.done("orders")
        await self._until(lambda: self._workload.done("orders") > done)
        return (
            "A transaction that was in progress is lost, as with any client. The others waited"
            " (timeout: 5s), and orders is served again."
        )

    @property
    def _orders(self) -> DatabaseStatus:
        return next(one for one in self._registry.status().databases if one.name == "orders")

    def _count(self) -> str:
        ok, failed = self._workload.total("ok"), self._workload.total("error")
        return f"{ok:,} transactions done, {failed:,} failed"

    @asynccontextmanager
    async def _until_one_more(self, outcome: Outcome) -> AsyncIterator[None]:
        """After the block, wait for a change of orders with this outcome."""
        before = self._orders.outcomes.get(outcome, 0)
        yield
        await self._until(lambda: self._orders.outcomes.get(outcome, 0) > before)

    async def _until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing happened in {_PATIENCE:g} s")
            await asyncio.sleep(_LOOK)
