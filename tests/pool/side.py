"""One way to write a test of a checkout for both sides, sync and async."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from pgmonkey import CheckoutTimeout, ConnectError, HandleClosedError, Registry
from tests.kit.eventually import eventually

SIDES = ("pool", "async_pool")

#: A connection that came back less than this many seconds ago is handed out without a look at it.
FRESH = 0.1

#: What a deadline may be missed by, in seconds, on a machine that does other things too. Where
#: a deadline does not hold, it is missed by much more: by a backoff, a connect, or for ever.
GRACE = 1.5

Make = Callable[..., "Client"]


class Client:
    """Use a handle from plain calls: directly, or on an event loop in a thread.

    Args:
        registry: The registry.
        name: What it calls the database.
        connection_type: Another one than its file says.
    """

    def __init__(
        self, registry: Registry, name: str = "orders", connection_type: Any = None
    ) -> None:
        self.registry = registry
        self.handle: Any = registry.get(name, connection_type)
        self._original = self.handle
        self.is_async = self.handle.connection_type.startswith("async")
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        if self.is_async:
            self._thread.start()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def ask(self, statement: str = "SELECT 1", *, timeout: float = 5) -> Any:
        """Run one statement in a checkout of its own and return the first column."""
        if self.is_async:
            return self._run(self._ask(statement, timeout))
        with self.handle.connection(timeout=timeout) as connection:
            row = connection.execute(statement).fetchone()
        return row[0]

    async def _ask(self, statement: str, timeout: float) -> Any:
        async with self.handle.connection(timeout=timeout) as connection:
            cursor = await connection.execute(statement)
            row = await cursor.fetchone()
        return row[0]

    def run(self, work: Callable[[Any], Any], *, timeout: float = 5) -> Any:
        """Call `work` with a connection of a checkout; what it returns may be awaitable."""

        async def run_async() -> Any:
            async with self.handle.connection(timeout=timeout) as connection:
                done = work(connection)
                return await done if inspect.isawaitable(done) else done

        if self.is_async:
            return self._run(run_async())
        with self.handle.connection(timeout=timeout) as connection:
            return work(connection)

    def getconn(self, *, timeout: float = 5) -> Any:
        """Borrow a connection by hand."""

        async def getconn() -> Any:
            return await self.handle.getconn(timeout)

        return self._run(getconn()) if self.is_async else self.handle.getconn(timeout)

    def putconn(self, connection: Any) -> None:
        """Give back what `getconn` gave, or something else."""
        if self.is_async:
            self._run(self.handle.putconn(connection))
        else:
            self.handle.putconn(connection)

    def on(self, act: Callable[[], Any]) -> Any:
        """Do something with a connection that was borrowed by hand; what it returns may be awaitable."""

        async def act_async() -> Any:
            done = act()
            return await done if inspect.isawaitable(done) else done

        return self._run(act_async()) if self.is_async else act()

    def after_return(self, act: Callable[[Any], None]) -> None:
        """Borrow a connection, give it back, and do something to it."""
        borrowed = self.run(lambda connection: [connection])
        act(borrowed[0])

    def ask_soon(self, statement: str = "SELECT 1", *, timeout: float = 5) -> Future[Any]:
        """Begin to `ask` in a thread or task of its own."""
        if self.is_async:
            return asyncio.run_coroutine_threadsafe(self._ask(statement, timeout), self.loop)
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(self.ask(statement, timeout=timeout))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="asks").start()
        return answer

    @contextmanager
    def holding(self, number: int = 1, *, timeout: float = 10) -> Iterator[list[int]]:
        """Hold that many connections, and give their backends."""
        if not self.is_async:
            with self._held(number, timeout) as backends:
                yield backends
            return
        let_go = asyncio.Event()
        held: Future[list[int]] = Future()

        async def hold() -> None:
            try:
                await self._fill(number, timeout, held, let_go)
            except BaseException as error:
                if held.done():
                    raise
                held.set_exception(error)

        holder = asyncio.run_coroutine_threadsafe(hold(), self.loop)
        try:
            yield held.result()
        finally:
            self.loop.call_soon_threadsafe(let_go.set)
            holder.result()

    def open(self, *, timeout: float = 10) -> None:
        """Make the first connection."""
        if self.is_async:
            self._run(self.handle.open(timeout))
        else:
            self.handle.open(timeout)

    def errors(self) -> dict[str, int]:
        """Return the checkouts that got no connection, by reason."""
        return {reason: count for reason, count in self.handle.status().errors.items() if count}

    def shut(self) -> None:
        """Close the connections; the next checkout opens again."""
        if self.is_async:
            self._run(self.handle.close())
        else:
            self.handle.close()

    def fill(self, number: int, *, timeout: float = 10) -> list[int]:
        """Hold that many connections at once, give them all back, and return their backends.

        Afterwards they are idle for long enough to be looked at before they are handed out.
        """
        with self.holding(number, timeout=timeout) as backends:
            pass
        self.rest()
        return backends

    def rest(self) -> None:
        """Let connections be idle for long enough to be looked at before they are handed out."""
        returned = time.monotonic()
        eventually(lambda: time.monotonic() - returned > FRESH, 5, "they are idle")

    @contextmanager
    def _held(self, number: int, timeout: float) -> Iterator[list[int]]:
        if number == 0:
            yield []
            return
        with self.handle.connection(timeout=timeout) as connection:
            connection.execute("SELECT 1")
            with self._held(number - 1, timeout) as others:
                yield [connection.info.backend_pid, *others]

    async def _fill(
        self,
        number: int,
        timeout: float,
        held: Future[list[int]],
        let_go: asyncio.Event,
        backends: tuple[int, ...] = (),
    ) -> None:
        if number == 0:
            held.set_result(list(backends))
            await let_go.wait()
            return
        async with self.handle.connection(timeout=timeout) as connection:
            await connection.execute("SELECT 1")
            backends = (*backends, connection.info.backend_pid)
            await self._fill(number - 1, timeout, held, let_go, backends)

    def close(self) -> None:
        """Close the handle and its copies, and end the loop."""
        if self.is_async:
            self._run(self._close())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        else:
            for handle in (self._original, *self._original.copies()):
                handle.close()
        self.loop.close()

    async def _close(self) -> None:
        for handle in (self._original, *self._original.copies()):
            with suppress(HandleClosedError):
                await handle.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=3)


@contextmanager
def takes(at_most: float, at_least: float = 0.0) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    assert at_least <= seconds <= at_most + GRACE


def refuses(client: Client, timeout: float) -> CheckoutTimeout | ConnectError:
    """Return the error of a checkout, which must come within its timeout."""
    with takes(timeout), pytest.raises((CheckoutTimeout, ConnectError)) as caught:
        client.ask(timeout=timeout)
    return caught.value


def works(client: Client) -> bool:
    with suppress(psycopg.OperationalError):
        return bool(client.ask(timeout=2) == 1)
    return False


def do(client: Client, body: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Run the body of a block, written once for both sides: see `wait`, `first` and `entered`."""
    return client.run(plain(client, body))


def plain(client: Client, body: Callable[[Any], Coroutine[Any, Any, Any]]) -> Callable[[Any], Any]:
    """Return a body that was written once as a function of the client's side."""
    if client.is_async:
        return body

    @functools.wraps(body)
    def work(connection: Any) -> Any:
        coroutine = body(connection)
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("the body of a sync block waited for a loop")

    return work


async def wait(value: Any) -> Any:
    """Return a value, or what an awaitable gives."""
    return await value if inspect.isawaitable(value) else value


async def first(items: Any) -> Any:
    """Return the next of a generator, or `None` at its end."""
    return await anext(items, None) if hasattr(items, "__anext__") else next(items, None)


async def entered(manager: Any) -> Any:
    """Enter a context manager, and leave it open."""
    enter = getattr(manager, "__aenter__", None) or manager.__enter__
    return await wait(enter())
