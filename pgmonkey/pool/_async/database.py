"""The handle of an `async` or `async_pool` database: what its clients call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from functools import partial
from itertools import repeat
from sys import _getframe
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from weakref import ref

from psycopg import AsyncTransaction

from pgmonkey.errors import OverrideError
from pgmonkey.pool import messages
from pgmonkey.pool._async import giving_way, rotation
from pgmonkey.pool._async.checkout import AsyncCheckout
from pgmonkey.pool._async.connection import IN_ERROR, AsyncPooledConnection
from pgmonkey.pool._async.listening import AsyncListener, AsyncListening
from pgmonkey.pool._async.pool import AsyncPool
from pgmonkey.pool._async.savepoints import AsyncSavepoint, AsyncSharedTransaction
from pgmonkey.pool._async.waiting import (
    Loop,
    LoopStandsStillError,
    call_all,
    finish_in,
    in_thread,
    is_closed,
    is_elsewhere,
    release_in,
    running_loop,
    soon,
    start_in,
)
from pgmonkey.pool._sync.connecting import connect as connect_plainly
from pgmonkey.pool.checkout import ROLLED_BACK, EnterHalf, ExitHalf, OneSided
from pgmonkey.pool.failures import ConnectFailure
from pgmonkey.pool.handle import Borrowed, BorrowedCursor, Closing, Database, Hooks, Sharing
from pgmonkey.pool.hints import hinted_block

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext

    from pgmonkey.config.models import ConnectionType
    from pgmonkey.errors import PgmonkeyError
    from pgmonkey.pool._async.connecting import AsyncConnector
    from pgmonkey.pool.limits import ConnectionLimits
    from pgmonkey.pool.version import Version

T = TypeVar("T")

#: What every open pool of a handle has connected with, before a version is put in force.
Prepared: TypeAlias = Mapping[Loop, rotation.Prepared]

#: Every pool that is not closed yet, also of handles that were dropped, every group of listeners, and
#: every transaction that blocks share.
_pools: Final[set[AsyncPool | AsyncListening | AsyncSharedTransaction]] = set()
#: What a child process got from its parent. It is never touched again, and never freed: the
#: destructors of pools and connections take locks that may be held for ever.
_inherited: Final[list[AsyncPool | AsyncListening | AsyncSharedTransaction]] = []


@hinted_block
class AsyncBlock(OneSided):
    """What `transaction()` and `cursor()` return.

    Args:
        handle: The handle.
        context: What is entered.
        block: How it is written.
    """

    __slots__ = ("_context", "block", "handle")

    def __init__(
        self, handle: AsyncDatabase, context: AbstractAsyncContextManager[Any], block: str
    ) -> None:
        self.handle = handle
        self.block = block
        self._context: Any = context

    async def __aenter__(self) -> Any:
        return await self._context.__aenter__()

    async def __aexit__(self, *exc_info: object) -> Any:
        return await self._context.__aexit__(*exc_info)


class AsyncDatabase(Database):
    """Hand out connections of an `async` or `async_pool` database, in any number of event loops.

    Each loop that uses it has a pool of its own; a handle that was never used costs nothing.
    """

    if not TYPE_CHECKING:
        __aenter__ = EnterHalf()
        __aexit__ = ExitHalf()

    def __init__(
        self,
        version: Version,
        connection_type: ConnectionType,
        limits: ConnectionLimits,
        hooks: Hooks,
        original: Database | None = None,
        context: AdaptContext | None = None,
    ) -> None:
        super().__init__(version, connection_type, limits, hooks, original, context)
        # Not of the class: an attribute of the object is found faster, by every checkout.
        self.checkout_class: type[AsyncCheckout] = AsyncCheckout
        #: The pool of each loop. Read without a lock.
        self.pools: dict[Loop, AsyncPool] = {}
        #: The listeners of each loop. Read without a lock.
        self.listening: dict[Loop, AsyncListening] = {}
        #: The transactions that blocks share, by loop and by the overrides that say where they are.
        self.shared: dict[tuple[Loop, tuple[object, ...]], AsyncSharedTransaction] = {}
        # Closed pools, until their last connection comes back.
        self._closed_pools: list[AsyncPool] = []
        # A program may drop a handle, or end, without closing it.
        weakref.finalize(self, _release, self.pools, self.listening)

    # Borrowing

    def connection(self, timeout: float | None = None) -> Borrowed:
        """Borrow a connection: see `Database.connection`."""
        return self.checkout_class.bound(self, timeout, _getframe(1))

    def transaction(
        self, timeout: float | None = None, *, force_rollback: bool = False
    ) -> Borrowed:
        """Borrow a connection in a transaction: see `Database.transaction`."""
        checkout = self.checkout_class.bound(self, timeout, _getframe(1))
        block = self._transaction(checkout, force_rollback)
        return AsyncBlock(self, block, "transaction() as conn")

    @asynccontextmanager
    async def _transaction(
        self, checkout: AsyncCheckout, force_rollback: bool
    ) -> AsyncIterator[Any]:
        async with checkout as connection:
            # Not `connection.transaction()`: a generator would end it when a child process drops it.
            transaction = AsyncTransaction(connection, force_rollback=force_rollback)
            async with _left_where_entered(checkout, transaction):
                yield connection
                if connection.pgconn.transaction_status == IN_ERROR and not force_rollback:
                    checkout.stage |= ROLLED_BACK  # that is what the server does now

    def cursor(self, timeout: float | None = None, **options: Any) -> BorrowedCursor:
        """Borrow a connection for one cursor: see `Database.cursor`."""
        checkout = self.checkout_class.bound(self, timeout, _getframe(1))
        return AsyncBlock(self, self._cursor(checkout, options), "cursor() as cur")

    @asynccontextmanager
    async def _cursor(self, checkout: AsyncCheckout, options: dict[str, Any]) -> AsyncIterator[Any]:
        async with (
            checkout as connection,
            _left_where_entered(checkout, connection.cursor(**options)) as cursor,
        ):
            yield cursor

    def getconn(self, timeout: float | None = None) -> Awaitable[AsyncPooledConnection]:  # type: ignore[override]  # its other half is never there: wrong side
        """Borrow a connection by hand: see `Database.getconn`."""
        return self.checkout_class.bound(self, timeout, _getframe(1)).enter_by_hand()

    async def putconn(self, connection: Any) -> Any:
        """Give back what `getconn` gave: see `Database.putconn`."""
        if isinstance(connection, AsyncPooledConnection) and connection.was_given_back_closed():
            return
        checkout: Any = self.held(connection)
        if checkout.pool.inherited:
            return
        if is_elsewhere(checkout.pool.loop):
            raise messages.other_loop(self.name)
        if not await self.take_back(connection, checkout):
            raise messages.not_by_hand(self, checkout)

    async def take_back(self, connection: AsyncPooledConnection, checkout: Any) -> bool:
        """Take back what was borrowed by hand; false if another thread or task does, or a block.

        Args:
            connection: The connection.
            checkout: What holds it.
        """
        with self._lock:
            if connection.holder != checkout.itself:
                return False
            # One thread gives it back. An interrupt may come from here on: then the checkout is lost.
            connection.holder = ref(checkout, checkout.pool.on_lost)
        await checkout.leave_by_hand(connection)
        return True

    def listen(self, *channels: str, timeout: float | None = None) -> AsyncListener:
        """Listen for notifications: see `Database.listen`."""
        return AsyncListener(self, self._enter_listener, channels, timeout)

    def _enter_listener(self, listener: AsyncListener) -> AsyncListening:
        """Take in a listener of the running loop.

        Raises:
            PgmonkeyError: the handle may not be used any more.
        """
        loop = running_loop()
        self.raise_if_gone()
        self.hooks.on_open()
        with self._lock:
            self.raise_if_gone()
            group = self.listening.get(loop)
            if group is None:
                drop_closed_loops()
                for closed in [one for one in self.listening if is_closed(one)]:
                    del self.listening[closed]
                group = self.listening[loop] = AsyncListening(
                    self.version,
                    self.connection_type,
                    stats=self.stats,
                    limits=self.limits,
                    hooks=self.hooks,
                    loop=loop,
                )
                _pools.add(group)
            group.add(listener)
        while group.connector.target is not self.version:  # put in force while it was made
            group.connector.adopt(self.version)
        return group

    # Opening and closing

    async def open(self, timeout: float | None = None) -> Database:
        """Connect now: see `Database.open`."""
        if self._force_due:
            self._force_due = False
            await in_thread(self.hooks.force_reload)
        if self.sharing is not None:
            return self  # the first block connects
        pool = await self.pool_here()
        if not pool.connections:
            checkout = AsyncCheckout.bound(self, timeout, _getframe(0))
            connection = await checkout.enter()
            await checkout.pool.put(connection)
        return self

    async def start(self) -> None:
        """Begin to connect, without waiting for it."""
        if self.sharing is not None:
            return
        pool = await self.pool_here()
        if not pool.settings.min_size and not pool.connections:
            await pool.nudge()

    async def pool_here(self) -> AsyncPool:
        """Return the pool of the running loop, open and up to date."""
        loop = running_loop()
        if loop not in self.pools:
            self.raise_if_gone()
            self.hooks.on_open()
        with self._lock:
            self.raise_if_gone()
            if self.sharing is not None:
                raise OverrideError(
                    f"{self.name}: this block was made before override(rollback=True) began,"
                    " and would not be rolled back"
                )
            pool = self.pools.get(loop)
            if pool is None:
                drop_closed_loops()
                pool = self.pools[loop] = AsyncPool(
                    self.version,
                    self.connection_type,
                    stats=self.stats,
                    limits=self.limits,
                    hooks=self.hooks,
                    loop=loop,
                    pools=self.pools,
                    context=self.context,
                )
                _pools.add(pool)
                for closed in [one for one in self.pools if is_closed(one)]:
                    del self.pools[closed]
        if pool.target is not self.version:
            await pool.catch_up(self.version)
        await pool.open()
        return pool

    def shared_here(self) -> AsyncSharedTransaction:
        """Return the transaction that all blocks of the running loop share.

        Raises:
            PgmonkeyError: the handle may not be used any more, or the override has ended.
        """
        loop = running_loop()
        self.raise_if_gone()
        self.hooks.on_open()
        with self._lock:
            self.raise_if_gone()
            sharing = self.sharing
            if sharing is None:
                raise OverrideError(
                    f"{self.name}: this block was made in an override that has ended"
                )
            key = loop, sharing.places
            shared = self.shared.get(key)
            if shared is None:
                drop_closed_loops()
                for closed in [one for one in self.shared if is_closed(one[0])]:
                    del self.shared[closed]
                shared = AsyncSharedTransaction(self, sharing, loop, threading.get_ident())
                self.shared[key] = shared
                _pools.add(shared)
        return shared

    async def close(self) -> Database:
        """Close the connections: see `Database.close`."""
        for one in (self, *self.copies()):
            await one.close_own()
        return self

    async def close_own(self) -> None:
        """Close the connections of this handle alone, not those of its copies."""
        here = running_loop()
        pools = self._take_pools(None)
        self._end_listeners(None)
        own = pools.pop(here, None)
        for loop, pool in pools.items():
            start_in(loop, pool.end)
        if own is not None:
            await own.end()

    def _take_pools(self, gone: PgmonkeyError | None) -> dict[Loop, AsyncPool]:
        with self._lock:
            if gone is not None:
                self.gone = gone
            pools = self.pools.copy()
            pop: Callable[..., AsyncPool | None] = self.pools.pop
            # One step for an interrupt. A signal handler may have taken some meanwhile.
            self._closed_pools.extend(filter(None, map(pop, pools, repeat(None))))
        return pools

    def shut(self, gone: PgmonkeyError) -> None:
        """End this handle until `revive`, from any thread.

        The pools of event loops close at the next turn of their loops.

        Args:
            gone: Why.
        """
        for pool in self._take_pools(gone).values():
            pool.ending = True  # for `wait_closed`, which may come before the loop turns
            soon(pool.loop, pool.hang_up)  # if the loop ends now, no task begins in it any more
            finish_in(pool.loop, pool.thread, pool.end)
        for key in list(self.shared):
            shared = self.shared.pop(key)
            shared.ending = True
            finish_in(shared.loop, shared.thread, shared.end)
        self._end_listeners(gone)
        drop_closed_loops()

    def _end_listeners(self, why: PgmonkeyError | None) -> None:
        for group in self.listening.copy().values():
            group.end(why)

    async def wait_closed(self) -> None:
        """Wait until the connections of the running loop are closed, after `shut`."""
        here = running_loop()
        for pool in _pools.copy():
            if not isinstance(pool, AsyncListening) and pool.ending and pool.loop == here:
                await pool.end()
        if (group := self.listening.get(here)) is not None:
            await group.connector.let_go()

    # Reload: prepare every pool, which may fail; then adopt and rotate, which may not.

    def prepare(self, version: Version) -> Prepared:
        """Connect once with a version in every pool that is open; from any thread.

        A loop that does not turn is left out: it catches up at its next checkout. If no loop
        turns, one connection outside of any loop tells whether the version works.

        Raises:
            ConnectError: the version does not work; nothing has changed.
        """
        if version.since == self.version.since or self.gone is not None:
            return {}
        pools = {loop: pool for loop, pool in self.pools.copy().items() if pool.opened}
        results = call_all(
            {loop: partial(rotation.prepare, pool, version) for loop, pool in pools.items()},
            drop=lambda loop, one: self._discard(pools, {loop: one} if one else {}),
        )
        prepared = {
            loop: one for loop, one in results.items() if isinstance(one, rotation.Prepared)
        }
        errors = [one for one in results.values() if isinstance(one, BaseException)]
        failed = [one for one in errors if not isinstance(one, LoopStandsStillError)]
        if failed:
            self._discard(pools, prepared)
            raise failed[0]
        untried = [pool.connector for pool in pools.values()] if errors else []
        untried += [one.connector for one in self.listening.copy().values() if one.listeners()]
        if untried and not prepared:
            _probe(untried[0], version)
        return prepared

    def discard(self, prepared: Prepared) -> None:
        """Close the prepared connections; from any thread."""
        self._discard(self.pools.copy(), prepared)

    def _discard(self, pools: Mapping[Loop, AsyncPool], prepared: Prepared) -> None:
        for loop, one in prepared.items():
            # At once: in a loop that ends, a task may be cancelled before it begins.
            if not soon(loop, one.connection.hang_up):
                one.connection.hang_up()
                one.connection.forget()
            elif loop in pools:
                start_in(loop, partial(rotation.discard, pools[loop], one))
            else:
                start_in(loop, one.connection.let_go)

    def adopt(self, version: Version, prepared: Prepared) -> None:
        """Put a version in force; from any thread, at once.

        Pools that were not prepared, and have connections of an older version, catch up at their
        next checkout.
        """
        self.version = version
        self.keeps_stacks = version.config.leak_stack
        for loop, pool in self.pools.copy().items():
            if loop in prepared or not pool.opened or pool.target.since == version.since:
                pool.adopt(version)
        for group in self.listening.copy().values():
            group.connector.adopt(version)

    def cut_over(self, version: Version) -> None:
        """Put a version in force, and hand out no connection of an older one; from any thread."""
        self.version = version
        for pool in self.pools.copy().values():
            pool.adopt(version, cut=True)
        for group in self.listening.copy().values():
            group.connector.adopt(version)

    def share(self, sharing: Sharing | None) -> None:
        """Let all blocks share one transaction, or no more: see `Database.share`."""
        with self._lock:
            self.sharing = sharing
            self.checkout_class = AsyncCheckout if sharing is None else AsyncSavepoint

    def redirect(self, version: Version, sharing: Sharing | None) -> list[Closing]:
        """Put a version in force without connecting: see `Database.redirect`."""
        moves = version.since != self.version.since
        self.version = version
        self.keeps_stacks = version.config.leak_stack
        self.share(sharing)
        closings = [
            Closing(loop, pool.thread, pool.end) for loop, pool in self._take_pools(None).items()
        ]
        for key, one in self.shared.copy().items():
            left, finish = one.left(sharing), one.settle
            if one.is_over(sharing):
                finish = one.end
                self.shared.pop(key, None)
            closings.append(Closing(one.loop, one.thread, finish, left))
        for group in self.listening.copy().values():
            group.connector.adopt(version)
            for connection in group.connector.connections.copy() if moves else ():
                connection.shut_down()  # its reader connects again
        drop_closed_loops()
        return closings

    def rotate(self, prepared: Prepared) -> None:
        """Replace the connections of the pools that were prepared; from any thread, after `adopt`.

        Returns when no older connection is handed out any more. It waits for loops that turn.
        """
        pools = self.pools.copy()
        closed = prepared.keys() - pools.keys()
        self._discard({}, {loop: prepared[loop] for loop in closed})
        call_all(
            {
                loop: partial(rotation.rotate, pool, self.version, prepared.get(loop))
                for loop, pool in pools.items()
            },
            late=True,
        )
        for pool in pools.values():
            pool.floor = pool.version
            if pool.ending:  # its loop may have ended before it could begin
                soon(pool.loop, pool.hang_up)
        drop_closed_loops()

    # Maintenance, forks

    def patrol(self, now: float) -> None:
        """Report checkouts that last too long, and let the pools do what is due.

        Args:
            now: The monotonic clock.
        """
        self.report_long_checkouts(now)
        for pool in self._closed_pools.copy():
            if not pool.connector.ended:  # perhaps an interrupt kept it from its end
                start_in(pool.loop, pool.end)
        for loop, pool in self.pools.copy().items():
            if pool.target is not self.version:
                start_in(loop, partial(pool.catch_up, self.version))
            if pool.needs_care():
                start_in(loop, pool.care)
            if pool.may_give_way():
                pool.fair_share.begin()
                with suppress(RuntimeError):  # no thread can be started
                    release_in(loop, partial(giving_way.give_way, pool))  # it may wait

    def all_pools(self) -> list[Any]:
        """Return the pools of this handle, with those that are closed but have connections out."""
        with self._lock:
            self._closed_pools = [pool for pool in self._closed_pools if pool.connections]
            pools: list[Any] = [*self.pools.values(), *self._closed_pools, *self.shared.values()]
        if any(is_closed(pool.loop) for pool in pools):
            drop_closed_loops()
        return [pool for pool in pools if not is_closed(pool.loop)]

    def forget(self) -> None:
        """Forget the parent's connections in a child process, without touching them."""
        self.shared.clear()
        self.pools.clear()
        self.listening.clear()
        self._closed_pools = []
        self._lock = threading.RLock()
        self.loose.clear()
        self.stats = self._new_stats()


@asynccontextmanager
async def _left_where_entered(
    checkout: AsyncCheckout, block: AbstractAsyncContextManager[T]
) -> AsyncIterator[T]:
    """Enter a block of a borrowed connection, and leave it, except in a child process."""
    async with AsyncExitStack() as stack:
        try:
            yield await stack.enter_async_context(block)
        finally:
            if checkout.pool.inherited:
                stack.pop_all()


def _probe(connector: AsyncConnector, version: Version) -> None:
    """Connect once with a version, outside of the loop of the connector that counts it.

    Raises:
        ConnectError: it does not work.
    """
    refusal = connector.reserve(version)
    if refusal is not None:
        raise messages.no_room(connector.name, refusal, connector.explain_limit(version))
    try:
        made = connect_plainly(version.config, connector.connection_type)
        if isinstance(made, ConnectFailure):
            raise made.error(connector.name)
        made.close()
    finally:
        connector.release(version)


def _release(pools: dict[Loop, AsyncPool], groups: dict[Loop, AsyncListening]) -> None:
    """Close the pools of a handle that was dropped, and its listeners."""
    for pool in pools.values():
        release_in(pool.loop, pool.end)
    for group in groups.values():
        release_in(group.loop, group.close)


def drop_closed_loops() -> None:
    """Close the connections of loops that have ended: no task can use them any more."""
    for pool in _pools.copy():
        if is_closed(pool.loop):
            pool.drop()
        if pool.connector.ended and not pool.connections:
            _pools.discard(pool)


def forget_pools() -> None:
    """Forget the parent's pools in a child process, without touching them."""
    for pool in _pools:
        pool.inherited = True
        for connection in pool.connections.copy():
            connection.cut_off()
    _inherited.extend(_pools)
    _pools.clear()
