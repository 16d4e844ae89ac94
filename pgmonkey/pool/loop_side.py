"""The generations of an async handle in one event loop."""

from __future__ import annotations

import asyncio
import random
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from copy import copy
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec

from pgmonkey.errors import ConnectError
from pgmonkey.pool import fault_points
from pgmonkey.pool.connection import LONGEST_PING, AsyncPool, AsyncPooledConnection
from pgmonkey.pool.dialer import Dialer
from pgmonkey.pool.generation import Generation, make_async_pool
from pgmonkey.pool.lifecycle import Lifecycle
from pgmonkey.pool.loop_resources import (
    LoopResources,
    close_generation,
    close_resources,
    close_soon,
    hang_up,
    loop_task,
)
from pgmonkey.pool.refusal import checkout_timeout
from pgmonkey.pool.seeds import gather_async, give_up_an_idle_one
from pgmonkey.pool.target import Applied

if TYPE_CHECKING:
    from pgmonkey.pool.database import Database
    from pgmonkey.pool.limits import Slot

P = ParamSpec("P")

_FIRST_RETRY: Final = 0.1
_LONGEST_RETRY: Final = 1.0
#: Seconds after which a loop that has not turned is taken to stand still.
_TURN: Final = 1.0
#: Turns of the loop for which a new pool is given time before it is used.
_SETTLING_TURNS: Final = 20


class _Ready(NamedTuple):
    """A generation that is made before its configuration is published."""

    applied: Applied
    making: asyncio.Task[Generation[AsyncPool] | None]


class Forcing:
    """A forced reload that is running.

    Args:
        before: The configuration that it replaces.
        candidate: What it moves to.
    """

    __slots__ = ("before", "candidate", "waiting")

    def __init__(self, before: Applied, candidate: Applied) -> None:
        self.before = before
        self.candidate = candidate
        #: How many callers wait for it.
        self.waiting = 0


class LoopSide(Lifecycle[AsyncPool]):
    """Keep the generations of an async handle in one event loop.

    A connection belongs to the loop that made it, so each loop has its own; all share the
    configuration, the version and the counts of the handle.
    """

    def __init__(self, handle: Database, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = weakref.ref(handle)
        self.name = handle.name
        self.connection_type = handle.connection_type
        self.target = handle.target
        self.usage = handle.usage
        self.share = handle.share
        super().__init__()
        self.loop = weakref.ref(loop)
        #: The thread in which the loop runs.
        self.thread = threading.get_ident()
        self._moving: asyncio.Task[None] | None = None
        #: What a reload has this loop make ready, before it publishes the configuration.
        self._ready: _Ready | None = None
        #: The forced reload that is under way.
        self.forcing: Forcing | None = None
        #: The version whose first connection failed in this loop, and when to try it again.
        self._failed = 0
        self._retry_at = 0.0
        #: How many connects had worked when it failed.
        self._worked = 0
        #: When this loop was last told to try again, on the monotonic clock.
        self._told_at = 0.0
        # Until when somebody waits for the first connection, on the monotonic clock.
        self._wanted_until = 0.0
        self._resources = LoopResources(self.loop, self.gate, self.open_generations)
        self._finalizer = weakref.finalize(handle, close_resources, self._resources)
        self._finalizer.atexit = False

    def move_soon(self) -> None:
        """Move to the newest configuration at the next turn of the loop; from any thread."""
        self._soon(lambda: self.generation is not None and self.move())

    def make_ready_soon(self, applied: Applied) -> threading.Event:
        """Make the next generation at the next turn of the loop; from any thread.

        Checkouts in the loop before the configuration is published get the old one.

        Args:
            applied: What is about to be published.

        Returns:
            What is set when it is ready, or could not be made.
        """
        done = threading.Event()

        def make() -> None:
            # A loop that stood still may have moved there by itself before it came to this: what
            # it made now, nobody would ever take.
            published = self.target.applied.version >= applied.version
            if published or self.generation is None or self.is_gone():
                done.set()
                return
            if self._ready is not None:
                self._keep(self._throw_away, self._ready)
            making = loop_task(self._next, applied, 0.0)
            self._resources.keep(making, connects=True)
            # The move reads the error.
            making.add_done_callback(lambda task: task.cancelled() or task.exception())
            making.add_done_callback(lambda _: done.set())
            self._ready = _Ready(applied, making)

        if not self._soon(make):
            done.set()
        return done

    def drop_ready_soon(self, applied: Applied) -> None:
        """Throw away what was made ready for a configuration; from any thread."""

        def drop() -> None:
            if self._ready is not None and self._ready.applied is applied:
                self._keep(self._throw_away, self._ready)

        self._soon(drop)

    async def _throw_away(self, ready: _Ready) -> None:
        if self._ready is ready:
            self._ready = None
        ready.making.cancel()
        with suppress(asyncio.CancelledError, ConnectError):
            if (generation := await ready.making) is not None:
                await self.discard(generation)

    async def _made(self, applied: Applied) -> Generation[AsyncPool] | None:
        """Return the next generation: what was made ready, or else made now."""
        ready, self._ready = self._ready, None
        if ready is not None and ready.applied is applied:
            return await ready.making
        if ready is not None:
            self._keep(self._throw_away, ready)
        return await self._next(applied, self._wanted_until - monotonic())

    def start_soon(self) -> None:
        """Try to connect at the next turn of the loop; from any thread."""
        self._soon(lambda: self.generation is None and self.target.gone is None and self.move())

    def shut_soon(self) -> None:
        """Close at the next turn of the loop; from any thread."""

        def shut() -> None:
            self._keep(self._end, self._take_down())

        close_soon(self._resources, shut)

    def abandon(self) -> None:
        """Let go of everything: the loop is closed."""
        self._finalizer.detach()  # it would keep what is left of it for as long as the handle
        self._resources.abandon()

    def _soon(self, act: Callable[[], object]) -> bool:
        loop = self.loop()
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed: nothing is left to do there
                loop.call_soon_threadsafe(act)
                return True
        return False

    def _keep(
        self, work: Callable[P, Coroutine[Any, Any, None]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[None]:
        task = loop_task(work, *args, **kwargs)
        self._resources.keep(task)
        return task

    async def move_now(self) -> None:
        """Move to the newest configuration, and raise what prevents it.

        Raises:
            ConnectError: no connection could be made with it.
        """
        moving = self.move()
        try:
            await asyncio.shield(moving)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not moving.cancelled() or (task and task.cancelling()):
                raise
            self.refuse_if_gone()  # closed meanwhile: there is nothing left to move

    async def settle(self) -> None:
        """Move to the newest configuration if that can be done; else the last good one serves."""
        with suppress(ConnectError):
            await self.move_now()

    async def obtain(self, began: float, timeout: float | None) -> Generation[AsyncPool]:
        """Return the current generation, after the move to the newest configuration.

        Raises:
            CheckoutTimeout, ConnectError: there is no generation, and none could be made.
        """
        if timeout is None:
            timeout = self.target.applied.config.pool(self.connection_type).timeout
        while True:
            self.refuse_if_gone()
            generation = self.generation
            if generation is not None and (
                generation.applied.since == self.target.applied.since or self._holds_back()
            ):
                return generation
            handle = self._handle()
            if generation is None and handle is not None and handle.on_open is not None:
                handle.on_open()
            self._wanted_until = max(self._wanted_until, began + timeout)
            moving = self.move()
            try:
                # Not `wait_for`: before Python 3.12 it drops cancellations.
                async with asyncio.timeout(max(0.0, timeout - (monotonic() - began))):
                    await asyncio.shield(moving)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if moving.cancelled() and not (task and task.cancelling()):
                    continue  # the handle was closed meanwhile, in another task: open it again
                raise
            except TimeoutError:
                if self.generation is not None:
                    return self.generation
                assert handle is not None
                raise checkout_timeout(handle, None, monotonic() - began) from None
            except ConnectError as error:
                if self.generation is not None:
                    continue  # the last good one goes on serving
                self.usage.errors["other"] += 1
                raise copy(error) from None

    def is_behind(self) -> bool:
        """Tell whether this loop still has connections of an older configuration."""
        generation = self.generation
        return generation is not None and (
            self.target.gone is not None or generation.applied.since != self.target.applied.since
        )

    def catch_up(self, now: float) -> None:
        """Try the move that failed again, though no client asks; from any thread.

        Args:
            now: The monotonic clock.
        """
        failed = self._failed == self.target.applied.since and now >= self._retry_at
        if failed and self.is_behind() and now >= self._told_at + _LONGEST_RETRY:
            self._told_at = now
            self.move_soon()

    def _holds_back(self) -> bool:
        """Tell whether the last good generation serves for now, for the move to the newest failed.

        As soon as any connect has worked since, there is no reason to hand out what is old.
        """
        return (
            self._failed == self.target.applied.since
            and monotonic() < self._retry_at
            and self.usage.connects.count == self._worked
        )

    def move(self) -> asyncio.Task[None]:
        """Begin to move to the newest configuration; all who wait for it share one task."""
        if self._moving is None or self._moving.done():
            self._moving = loop_task(self._move)
            self._resources.keep(self._moving, connects=True)
            self._moving.set_name(f"pgmonkey-move-{self.name}")
            # Those who wait read the error; without any, the gate has recorded it.
            self._moving.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._moving

    async def _move(self) -> None:
        delay = _FIRST_RETRY
        patience = self.target.applied.config.pool(self.connection_type).timeout
        self._wanted_until = max(self._wanted_until, monotonic() + patience)
        while self.target.gone is None:
            applied, old = self.target.applied, self.generation
            if old is not None and old.applied.since == applied.since:
                return
            try:
                generation = await self._made(applied)
            except ConnectError:
                if self.target.applied is not applied:
                    continue  # it was the login of before that failed
                failure = self.gate.last_failure
                if (
                    old is not None
                    or failure is None
                    or failure.lasting
                    or self.connection_type == "async"
                    or monotonic() > self._wanted_until
                ):
                    self._failed = applied.since
                    self._retry_at = monotonic() + _LONGEST_RETRY
                    self._worked = self.usage.connects.count
                    if old is not None:
                        old.examined = True
                    raise
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                delay = min(delay * 2, _LONGEST_RETRY)
                continue
            if generation is None:
                if self.target.applied is applied:
                    return  # a client with time left asks again
            elif old is None:
                if self.publish_first(generation):
                    return
                await self.discard(generation)
            elif await self._swap(old, generation):
                return

    async def _next(self, applied: Applied, left: float) -> Generation[AsyncPool] | None:
        """Return a generation with one verified connection.

        Returns:
            `None` if it is the first one, and nothing left a connection for it in time.
        """
        dialer = self.make_dialer(applied)
        current = self.generation
        if current is None:
            slot = await self.gate.wait_async(
                lambda: self.is_gone() or self.target.applied is not applied,
                server=dialer.server,
                beyond=1,
                timeout=max(0.0, left),
            )
            if slot is None:
                self.refuse_if_gone()
                return None
            seeds = [await dialer.dial_async(slot)]
        else:
            seeds = await gather_async(self, applied, dialer, current)
        generation: Generation[AsyncPool] | None = None
        try:
            for seed in seeds:
                dialer.plant(seed)
            generation = Generation(
                applied,
                self.connection_type,
                dialer,
                make_async_pool(applied, self.connection_type, dialer),
            )
            self.open_generations.add(generation)
            await generation.pool.open()
            for _ in range(_SETTLING_TURNS):
                # The pool's worker takes them in within a few turns of the loop; a client that
                # came before it would make the pool grow for nothing.
                if generation.idle() >= len(seeds):
                    break
                await asyncio.sleep(0)
            # It was opened with as many as it starts from; from here on it has its own size.
            settings = generation.settings
            await generation.pool.resize(settings.min_size, settings.max_size)
        except BaseException:
            if self._resources.is_over():
                pass  # no task can be had there, and what is open is closed all the same
            elif generation is not None:  # its pool may be open, and has more to close
                await asyncio.shield(self._keep(self._close_pool, generation))
            for seed in seeds:
                await seed.close()
            raise
        return generation

    def wait_for_room(self, dialer: Dialer) -> Slot | None:
        """Let the loop give up one connection for a probe that another thread makes.

        A loop that stands still does not: then the reload is tried again later. It may be the
        very loop on whose thread `reload` was called, which must not wait for itself.
        """
        current = self.generation
        if current is None:
            return None
        current.gives_up = True
        turned = threading.Event()

        def turn() -> None:
            turned.set()
            self._keep(give_up_an_idle_one, current)

        def wait(seconds: float) -> Slot | None:
            return self.gate.wait(
                self.is_gone, server=dialer.server, beyond=1, claimed=True, timeout=seconds
            )

        try:
            with self.share.budget.claim(dialer.server):
                self._soon(turn)
                slot = wait(_TURN)
                return wait(current.timeout) if slot is None and turned.is_set() else slot
        finally:
            current.gives_up = False

    async def _swap(self, old: Generation[AsyncPool], new: Generation[AsyncPool]) -> bool:
        began = monotonic()
        try:
            await fault_points.reach_async("before_swap")
        except BaseException:
            await asyncio.shield(self._keep(self.discard, new))
            raise
        with self._lock:
            good = self.generation is old and self.target.applied.since == new.applied.since
            if good:
                self.gate.limit = new.settings.max_size
                self.retired.append(old)
                self.generation = new
        if not good:
            await self.discard(new)
            return False
        try:
            self.count_replaced(old)
            await fault_points.reach_async("after_swap")
        finally:
            # From here on the old one must go, whatever else happens to this task.
            self.report_swap(old, new, monotonic() - began)
            await asyncio.shield(self._keep(self._bury, old))
        return True

    async def discard(self, generation: Generation[AsyncPool]) -> None:
        """Close a generation that never became current."""
        await self._close_pool(generation)

    async def _close_pool(self, generation: Generation[AsyncPool]) -> None:
        await close_generation(generation)
        self.open_generations.discard(generation)

    async def shut(self) -> None:
        """Close the current generation of this loop."""
        # Who waits may be cancelled, the closing may not: clients would wait for a closed pool.
        await asyncio.shield(self._keep(self._end, self._take_down()))

    def _take_down(self) -> Generation[AsyncPool] | None:
        """Let no generation be current, and close what is idle, in one step.

        A loop that is ending may come to nothing that waits.
        """
        with self._lock:
            old, self.generation = self.generation, None
            if old is not None:
                self.retired.append(old)
        if old is not None:
            hang_up(old)
        return old

    async def _end(self, old: Generation[AsyncPool] | None) -> None:
        """Close what was taken down, and what is on its way."""
        if old is not None:
            await self._bury(old)
        if self._ready is not None:
            await self._throw_away(self._ready)
        # The pool's worker and scheduler end at the loop's next turns; the caller of `close`
        # may end its loop right after.
        moving = self._moving
        if moving is not None and not moving.done():
            moving.cancel()
            with suppress(asyncio.CancelledError, ConnectError):
                await moving

    async def is_fit(
        self,
        connection: AsyncPooledConnection,
        generation: Generation[AsyncPool],
        left: float,
    ) -> bool:
        """Tell whether a connection may be handed out; if not, it is dropped.

        Args:
            connection: What the pool gave.
            generation: Its generation.
            left: Seconds that the checkout has left: a sign of life is waited for no longer
                than for a third of them.
        """
        now = monotonic()
        reason = self.unfit(connection, generation, now)
        if generation.applied.since != self.target.applied.since and not self._holds_back():
            reason = "rotation"
        try:
            if (
                reason is None
                and self.needs_ping(connection, generation, now)
                and not await connection.ping(min(LONGEST_PING, left / 3))
            ):
                reason = "check"
        except BaseException:
            await self._drop_connection(connection, generation, "check")
            raise
        if reason is None:
            return True
        await self._drop_connection(connection, generation, reason)
        if reason == "standby":
            await self.replace_later(generation, reason)
        return False

    async def _drop_connection(
        self,
        connection: AsyncPooledConnection,
        generation: Generation[AsyncPool],
        reason: str,
    ) -> None:
        self.usage.evicted[reason] += 1
        await connection.close()
        await generation.pool.putconn(connection)

    async def replace_later(self, generation: Generation[AsyncPool], why: str) -> None:
        """Close a generation that is of no use any more; the next checkout opens another."""
        if self.give_up(generation, why):
            # Who waits may be cancelled, the closing may not: the pool would stay half open.
            await asyncio.shield(self._keep(self._bury, generation))

    def refused(self) -> None:
        """Tell the registry, if there is one, that a login was refused."""
        handle = self._handle()
        if handle is not None and handle.on_refused is not None:
            handle.on_refused()

    def dead_end(self, dialer: Dialer) -> None:
        """Give up the generation of this dialer, so that its clients get the reason now."""
        current = self.generation
        if current is not None and current.dialer is dialer and self.give_up(current, "connect"):
            self._keep(self._bury, current)

    async def _bury(self, generation: Generation[AsyncPool]) -> None:
        await self._close_pool(generation)
        self.drained_if_empty(generation)

    def forget(self) -> None:
        """Forget the parent's connections in a child process, without touching them."""
        super().forget()
        self._finalizer.detach()
        self._moving = None
        self._ready = None
