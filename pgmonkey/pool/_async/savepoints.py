"""Blocks that are savepoints of one transaction, which is rolled back: `override(rollback=True)`.

A handle has such a transaction in each event loop, on a connection outside of the pool. Its blocks
take turns; those that one thread or task nests are nested savepoints.
"""

from __future__ import annotations

import sys
from itertools import count
from sys import _getframe
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import ref

import psycopg
from psycopg import AsyncCursor
from psycopg.errors import InvalidSavepointSpecification
from psycopg.rows import tuple_row

from pgmonkey.config.overrides import Overrides
from pgmonkey.errors import CheckoutTimeout, ConnectError, OverrideError
from pgmonkey.pool import messages
from pgmonkey.pool._async.checkout import AsyncCheckout
from pgmonkey.pool._async.connecting import AsyncLooseConnector, NoRoomError
from pgmonkey.pool._async.connection import IN_ERROR, AsyncPooledConnection
from pgmonkey.pool._async.waiting import (
    Lock,
    acquire,
    current_owner,
    current_task,
    is_closed,
    sleep,
)
from pgmonkey.pool.checkout import BY_HAND, ENTERED, PAIRED, ROLLED_BACK
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.messages import Numbers
from pgmonkey.pool.stats import FOLD_AT

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgmonkey.pool._async.waiting import Loop
    from pgmonkey.pool.handle import Database, Sharing
    from pgmonkey.pool.version import Version

#: Seconds before another look whether there is room for the connection.
_PAUSE: Final = 0.05
#: Seconds to wait for the answer to the last ROLLBACK.
_LONGEST_ROLLBACK: Final = 5.0
#: What fits a connection whose statements may all be undone: the types of a prepared one, too.
_SETTINGS: Final = Overrides({"autocommit": False, "prepare_threshold": None}, {})
#: A transaction that is open for long must not be ended for that. Which of them a server has depends
#: on its version.
_NO_TIMEOUTS: Final = (
    "SELECT set_config(name, '0', true) FROM pg_settings"
    " WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
_GONE: Final = "its savepoint is gone: a block or an override around it was rolled back"
_ENDED: Final = "the override has ended"
_CLOSED: Final = "its connection was lost or closed, and with it all that the blocks had done"


class _Level(NamedTuple):
    """A savepoint: of a block, or of an override inside another one."""

    of: object
    savepoint: str


class AsyncSavepointConnection(AsyncPooledConnection):
    """A connection whose `commit` and `rollback` end no transaction: they act on a savepoint."""

    #: Whose it is; `None` until it is made, as the functions of `configure` get it.
    shared: AsyncSharedTransaction | None = None

    async def commit(self) -> None:
        """Keep what the block has done so far, until the override ends."""
        await (self.shared.commit() if self.shared is not None else super().commit())

    async def rollback(self) -> None:
        """Roll back what the block has done since it began, or since its last `commit`."""
        await (self.shared.rollback() if self.shared is not None else super().rollback())


class AsyncSharedTransaction:
    """The transaction that all blocks of a handle share in one event loop.

    For a block it is what otherwise a pool is.

    Args:
        handle: The handle.
        sharing: What is in force; the transaction ends with the first override that it names.
        loop: The event loop that it lives in.
        thread: The thread of the loop.
    """

    def __init__(self, handle: Database, sharing: Sharing, loop: Loop, thread: int) -> None:
        self.loop = loop
        self.thread = thread
        #: Whether it belongs to the parent of this process, and must not be touched.
        self.inherited = False
        #: Whether it was reported that older connections are out for too long: there are none.
        self.lingers = False
        self.connector = AsyncLooseConnector(
            handle.version,
            handle.connection_type,
            stats=handle.stats,
            limits=handle.limits,
            functions=handle.hooks.configure,
            label="override",
            connection_class=AsyncSavepointConnection,
            context=handle.context,
        )
        self.connections = self.connector.connections
        #: Whether it is closing for good.
        self.ending = False
        #: Why no other block can begin; empty: one can.
        self.lost = ""
        self._handle = handle
        self._first = sharing.rollbacks[0]
        self._places = sharing.places
        self._connection: AsyncSavepointConnection | None = None
        # The blocks that are entered and not left, and the savepoints, outermost first. Changed by
        # who has the turn.
        self._open: list[AsyncSavepoint] = []
        self._levels: list[_Level] = []
        # Held while a block is open or begins.
        self._turn = Lock()
        # Held while it is closed, once.
        self._closing = Lock()
        self._names = count(1)
        self._waiting = 0

    # What a handle asks of its pools

    @property
    def target(self) -> Version:
        """What is in force: no reload replaces its connection."""
        return self._handle.version

    @property
    def opened(self) -> bool:
        """Whether it has a connection."""
        return self._connection is not None and not self.lost

    def numbers(self) -> Numbers:
        """Count the connection of this moment, and its blocks."""
        blocks = self.blocks()
        idle = int(self.opened and not blocks)
        return Numbers(idle, [*blocks], [], 0, self._waiting)

    def on_lost(self, _holder: object) -> None:
        """Do nothing: the levels keep each block until it is left."""

    def blocks(self) -> list[AsyncSavepoint]:
        """Return the blocks that are open, outermost first."""
        return self._open.copy()

    # Blocks

    async def enter(self, block: AsyncSavepoint, timeout: float) -> AsyncSavepointConnection:
        """Let a block begin when it is its turn."""
        deadline = monotonic() + timeout
        outer = self.blocks()
        nested = bool(outer) and outer[-1].owner == block.owner
        if nested and self._handle.connection_type in ("normal", "async"):
            raise messages.nested_checkout(
                self._handle.name, self._handle.connection_type, outer[-1]
            )
        if not nested:
            self._waiting += 1
            try:
                in_time = await acquire(self._turn, max(0.0, timeout))
            finally:
                self._waiting -= 1
            if not in_time:
                raise messages.not_its_turn(self._handle.name, timeout, self.blocks())
        try:
            self._raise_if_lost()
            if self._connection is None:
                self._connection = await self._connect(deadline)
                await _execute(self._connection, _NO_TIMEOUTS)
            connection = self._connection
            await self._settle(connection)
            await self._begin(connection, block)
            self._raise_if_lost()  # the override may have ended meanwhile
        except BaseException as error:
            try:
                await self._failed(error)
            finally:
                if not nested:
                    self._turn.release()
            raise
        self._open.append(block)
        return connection

    async def _failed(self, error: BaseException) -> None:
        """Clean up after a block that could not begin."""
        if self._connection is None:
            return
        self._look(self._connection)
        if self.lost:
            await self.connector.let_go()
            if isinstance(error, psycopg.Error):
                raise self._gone() from None

    async def _connect(self, deadline: float) -> AsyncSavepointConnection:
        """Connect as soon as there is room.

        Raises:
            ConnectError: there is none in time, or the server refuses.
        """
        version, connector = self._handle.version, self.connector
        version = version._replace(config=version.config.overridden(_SETTINGS))
        connector.adopt(version)
        while True:
            try:
                made: Any = await connector.make(version)
            except NoRoomError as refusal:
                if monotonic() + _PAUSE > deadline:
                    raise ConnectError(
                        connector.explain_limit(version) or refusal.text,
                        database=self._handle.name,
                        reason=refusal.reason,
                        hint="raise max_connections, or lower the max_size of other pools",
                    ) from None
                await sleep(_PAUSE)
            except ConnectError as error:
                error.rejected = self._handle.hooks.rejected()
                raise
            else:
                made.shared = self
                made.version = sys.maxsize  # it is never too old
                return made  # type: ignore[no-any-return]  # of the class that was asked for

    async def _begin(self, connection: AsyncSavepointConnection, of: object) -> None:
        name = f"pgmonkey_{next(self._names)}"
        await _execute(connection, f"SAVEPOINT {name}")
        self._levels.append(_Level(of, name))

    async def _settle(self, connection: AsyncSavepointConnection) -> None:
        """Roll back what ended overrides have left, and begin those that began."""
        sharing = self._handle.sharing
        rollbacks = () if sharing is None else sharing.rollbacks
        for level in self._levels:
            if not isinstance(level.of, AsyncSavepoint) and level.of not in rollbacks:
                await self._end(connection, level, failed=True)
                break
        known = [level.of for level in self._levels]
        for override in rollbacks:
            if override not in known and override is not self._first:
                await self._begin(connection, override)

    async def leave(self, block: AsyncSavepoint, *, failed: bool) -> None:
        """Let a block end: keep what it has done, or roll it back.

        Raises:
            OverrideError: its savepoint is gone.
            LeftOpenError: the block was in the middle of something.
        """
        connection: AsyncSavepointConnection = block.connection
        try:
            await self._leave(block, connection, failed=failed)
        finally:
            self._levels[:] = [level for level in self._levels if level.of is not block]
            self._open.remove(block)
            self._look(connection)
            connection.holder = self._open[-1].reference if self._open else None
            if not self._open:
                self._turn.release()
        if self.lost:
            await self.connector.let_go()

    def _look(self, connection: AsyncSavepointConnection) -> None:
        """Close a connection on which no other block can begin."""
        if connection.closed:
            self._lose(_CLOSED)
        elif connection.pgconn.transaction_status == IN_ERROR and not self._open:
            self._lose("a block was interrupted when it began or ended")
        if self.lost:
            connection.hang_up()

    async def _leave(
        self, block: AsyncSavepoint, connection: AsyncSavepointConnection, *, failed: bool
    ) -> None:
        if connection.changed or connection.lock.locked():
            what = await connection.left_open()
            if what is not None:
                connection.evict()
                if not failed:
                    raise messages.left_open(block, what)
                return
            if not connection.closed:
                await connection.restore()
                connection.changed = False
        level = next((one for one in self._levels if one.of is block), None)
        if level is None or connection.closed or self.lost:
            why = self.lost or (_CLOSED if connection.closed else _GONE)
            if not failed:
                raise self._error(block, why)
            return
        in_error = connection.pgconn.transaction_status == IN_ERROR
        try:
            await self._end(connection, level, failed=failed or in_error)
        except InvalidSavepointSpecification:
            self._lose(
                "a block ended the transaction: it sent COMMIT or ROLLBACK as SQL, so what the blocks"
                " have written may be committed; call commit() and rollback() of the connection"
            )
            if not failed:
                raise self._error(block, self.lost) from None
        except psycopg.Error:
            if not failed:
                raise
        else:
            if in_error and not failed:
                block.stage |= ROLLED_BACK

    async def _end(
        self, connection: AsyncSavepointConnection, level: _Level, *, failed: bool
    ) -> None:
        """Release a savepoint, or roll back to it, and with it to those inside of it."""
        at = self._levels.index(level)
        if failed:
            name = level.savepoint
            await _execute(connection, f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")
            del self._levels[at:]
        elif at == len(self._levels) - 1:  # else another one inside of it still needs its own
            await _execute(connection, f"RELEASE SAVEPOINT {level.savepoint}")
            del self._levels[at:]

    async def commit(self) -> None:
        """Keep what the innermost block has done so far."""
        connection, level = self._innermost()
        if connection.pgconn.transaction_status == IN_ERROR:  # a server rolls back then, too
            await self.rollback()
        elif level is not None and level is self._levels[-1]:
            name = level.savepoint
            await _execute(connection, f"RELEASE SAVEPOINT {name}; SAVEPOINT {name}")

    async def rollback(self) -> None:
        """Roll back what the innermost block has done since it began, or since its last commit."""
        connection, level = self._innermost()
        if level is not None:
            await _execute(connection, f"ROLLBACK TO SAVEPOINT {level.savepoint}")
            del self._levels[self._levels.index(level) + 1 :]

    def _innermost(self) -> tuple[AsyncSavepointConnection, _Level | None]:
        assert self._connection is not None
        blocks = [level for level in self._levels if isinstance(level.of, AsyncSavepoint)]
        return self._connection, blocks[-1] if blocks else None

    # The end

    def is_over(self, sharing: Sharing | None) -> bool:
        """Tell whether it ends when this is in force."""
        return (
            sharing is None
            or self._first not in sharing.rollbacks
            or not set(self._places) <= set(sharing.places)
        )

    def left(self, sharing: Sharing | None) -> tuple[str, ...]:
        """Return where the open blocks were begun that are rolled back when this is in force."""
        levels = [] if is_closed(self.loop) else self._levels.copy()
        if sharing is not None and not self.is_over(sharing):
            ended = [
                not isinstance(level.of, AsyncSavepoint) and level.of not in sharing.rollbacks
                for level in levels
            ]
            levels = levels[ended.index(True) :] if True in ended else []
        return tuple(level.of.place for level in levels if isinstance(level.of, AsyncSavepoint))

    async def settle(self) -> None:
        """Roll back what an ended override has left, unless a block of another client is open."""
        mine = self._is_mine()
        if self._connection is None or not (mine or await acquire(self._turn, 0.0)):
            return
        try:
            await self._settle(self._connection)
        except psycopg.Error:
            self._lose(_CLOSED)
        finally:
            if not mine:
                self._turn.release()

    async def end(self) -> None:
        """Roll back, and close. Blocks that are open lose their connection."""
        self.ending = True
        self._lose(_ENDED)
        async with self._closing:
            connection, mine = self._connection, self._is_mine()
            if connection is None or self.connector.ended:
                pass  # who connects at this moment will see it
            elif mine or await acquire(self._turn, 0.0):
                await connection.ask(b"ROLLBACK", _LONGEST_ROLLBACK)
                await connection.close()
                if not mine:
                    self._turn.release()  # who waits for it gets the reason
            else:
                connection.shut_down()  # another thread or task may use it at this moment
            self.connector.ended = True

    def _is_mine(self) -> bool:
        """Tell whether the innermost block was begun by the thread or task that asks."""
        blocks = self.blocks()
        return bool(blocks) and blocks[-1].owner == current_owner()

    def drop(self) -> None:
        """Close the connection of a loop that has ended."""
        self._lose(_ENDED)
        self.ending = self.connector.ended = True
        for connection in self.connections.copy():
            connection.pgconn.finish()
            connection.forget()

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why

    def _raise_if_lost(self) -> None:
        if self.lost:
            raise self._gone()

    def _gone(self) -> OverrideError:
        return OverrideError(f"{self._handle.name}: no block can begin any more: {self.lost}")

    def _error(self, block: AsyncSavepoint, why: str) -> OverrideError:
        return OverrideError(f"{self._handle.name}: the block begun at {block.place}: {why}")


class AsyncSavepoint(AsyncCheckout):
    """A block that is a savepoint."""

    __slots__ = ("reference",)

    #: Returns this block: what its connection refers to.
    reference: Callable[[], AsyncSavepoint | None]

    async def enter(self) -> AsyncSavepointConnection:
        """Return the connection that all blocks share, when it is the turn of this one."""
        timeout = None
        if self.stage != PAIRED:
            self.enter_alone()
            timeout = self.timeout
        self.stage = ENTERED
        handle = self.handle
        self.began = self.taken = monotonic()
        self.owner = current_task()
        if handle.keeps_stacks:
            self.keep_stack(_getframe(1))
        self.pool = shared = handle.shared_here()
        if timeout is None:
            timeout = handle.version.config.pool(handle.connection_type).timeout
        try:
            connection: AsyncSavepointConnection = await shared.enter(self, timeout)
        except BaseException as error:
            late = isinstance(error, CheckoutTimeout)
            handle.stats.errors["timeout" if late else "other"] += 1
            raise
        self.taken = monotonic()
        connection.holder = self.reference = ref(self)
        connection.borrower = self.code
        self.connection = connection
        return connection

    __aenter__ = enter

    def hand_over(self) -> None:
        """Let the block be open until the connection is put back."""
        self.connection.holder = self.reference = self.itself

    async def leave_by_hand(self, _connection: AsyncPooledConnection) -> None:
        """Roll back what was not committed."""
        await self.leave(BY_HAND)

    async def leave(self, kind: object = None, error: object = None, _trace: object = None) -> None:  # noqa: ARG002 - as its base
        """Keep what the block has done, or roll it back."""
        shared: AsyncSharedTransaction = self.pool
        if shared.inherited or is_closed(shared.loop):
            return
        try:
            await shared.leave(self, failed=kind is not None)
        finally:
            self.connection = None
            records = self.handle.stats.records
            now = monotonic()
            records.extend((self.taken - self.began, now - self.taken))
            if len(records) >= FOLD_AT:
                self.handle.stats.fold()
            if self.stage != ENTERED:
                self.report(now - self.taken)

    __aexit__ = leave


async def _execute(connection: AsyncSavepointConnection, statement: str) -> None:
    """Execute a statement of ours, whatever the application's factories are."""
    cursor = AsyncCursor(connection, row_factory=tuple_row)
    await cursor.execute(statement.encode(), prepare=False)
