"""Read a listener of either side, sync or async, from plain calls."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from pgmonkey import Gap
from tests.kit.eventually import eventually
from tests.pool.side import Client

GAP = "(gap)"


class Reader:
    """Read a listener of a client to its end, in a thread or task of its own."""

    def __init__(self, client: Client, *channels: str, timeout: float | None = 5) -> None:
        self.listener: Any = client.handle.listen(*channels or ("news",), timeout=timeout)
        self.got: list[Any] = []
        self._entered: Future[None] = Future()
        self.ended: Future[None] = Future()
        if client.is_async:
            asyncio.run_coroutine_threadsafe(self._read_async(), client.loop)
        else:
            threading.Thread(target=self._read, name="reads").start()
        self._entered.result(20)

    def _read(self) -> None:
        try:
            with self.listener as notes:
                self._entered.set_result(None)
                self.got.extend(notes)
        except BaseException as error:
            self._fail(error)
        else:
            self.ended.set_result(None)

    async def _read_async(self) -> None:
        try:
            async with self.listener as notes:
                self._entered.set_result(None)
                async for note in notes:
                    self.got.append(note)
        except BaseException as error:
            self._fail(error)
        else:
            self.ended.set_result(None)

    def _fail(self, error: BaseException) -> None:
        (self.ended if self._entered.done() else self._entered).set_exception(error)

    @property
    def payloads(self) -> list[str]:
        return [GAP if isinstance(one, Gap) else one.payload for one in list(self.got)]

    def has(self, *payloads: str, timeout: float = 10) -> None:
        """Wait until it has read exactly these, or more gaps than these."""
        eventually(lambda: self.payloads[-1:] == [*payloads][-1:], timeout, f"read {payloads}")
        found = [one for one, _ in itertools.groupby(self.payloads)]
        assert found == [*payloads]

    def stop(self) -> None:
        self.listener.stop()
        self.ended.result(10)


@contextmanager
def reading(client: Client, *channels: str, **options: Any) -> Iterator[Reader]:
    """Read a listener until the end of the block."""
    reader = Reader(client, *channels, **options)
    try:
        yield reader
    finally:
        reader.listener.stop()
        eventually(reader.ended.done, 10, "the reader has ended")
