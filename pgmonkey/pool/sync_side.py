"""The generations of a sync handle, from the first to the last."""

from __future__ import annotations

import random
import threading
import weakref
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from copy import copy
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.errors import ConnectError, ReloadRejectedError
from pgmonkey.pool import fault_points
from pgmonkey.pool.connection import LONGEST_PING, PooledConnection, SyncPool
from pgmonkey.pool.database import Database
from pgmonkey.pool.generation import POOL_PREFIX, Candidate, Generation, make_pool
from pgmonkey.pool.lifecycle import Lifecycle
from pgmonkey.pool.limits import UNLIMITED
from pgmonkey.pool.refusal import checkout_timeout
from pgmonkey.pool.seeds import gather
from pgmonkey.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.dialer import Dialer
    from pgmonkey.pool.limits import Budget
    from pgmonkey.pool.target import Applied

#: Seconds between attempts while the first connection cannot be made: doubled up to the second.
_FIRST_RETRY: Final = 0.1
_LONGEST_RETRY: Final = 1.0
#: Seconds after which a retired generation without checkouts has been forgotten.
_OVERDUE: Final = 5.0
#: How often, and with what pause in seconds, a new pool is looked at before it is used.
_SETTLING_LOOKS: Final = 100
_SETTLING_PAUSE: Final = 0.0005


def _close_all(generations: set[Generation[SyncPool]]) -> None:
    """Close what a dropped handle has left open.

    The garbage collector may call this in the worker of any pool, while that worker holds the
    lock that closing needs: then another thread does it.
    """
    if generations and threading.current_thread().name.startswith(POOL_PREFIX):
        threading.Thread(target=_close_all, args=(set(generations),), daemon=True).start()
        return
    for generation in list(generations):
        _close_one(generation)


def _let_it_settle(generation: Generation[SyncPool], number: int) -> None:
    """Wait until the pool's worker has taken in the connections that it starts from.

    A client that came before it would make the pool grow by one that is not needed.
    """
    pause = threading.Event()
    for _ in range(_SETTLING_LOOKS):
        if generation.idle() >= number:
            break
        pause.wait(_SETTLING_PAUSE)
    # It was opened with as many as it starts from; from here on it has its own size.
    generation.pool.resize(generation.settings.min_size, generation.settings.max_size)


def _close_one(generation: Generation[SyncPool]) -> None:
    generation.retire()
    try:
        fault_points.reach("before_close")
    finally:
        # No waiting for its worker: it may be stuck in a connect, and the clients that queue
        # on this pool hear of the swap only when `close` is through.
        generation.pool.close(timeout=0)
    while seed := generation.dialer.uproot():  # the pool never got to take it
        assert isinstance(seed, PooledConnection)
        seed.close()


class SyncSide(Database, Lifecycle[SyncPool]):
    """Keep the generations of a sync handle; the handle itself adds what clients call."""

    def __init__(self, applied: Applied, connection_type: ConnectionType, budget: Budget) -> None:
        Database.__init__(self, applied, connection_type, budget)
        Lifecycle.__init__(self)
        # Runs when the handle is dropped, and at exit: a pool left open prints at shutdown.
        weakref.finalize(self, _close_all, self.open_generations)
        self._opening: Future[None] | None = None
        # Held while a forced reload runs, probe included. No checkout ever waits for it.
        self._reloading = threading.Lock()
        self._attempt_now = threading.Event()
        # Until when somebody waits for the first connection, on the monotonic clock.
        self._wanted_until = 0.0

    # Opening: the first connection is made by a thread of its own, for all who wait for it.

    def obtain(self, began: float, timeout: float | None) -> Generation[SyncPool]:
        """Return the current generation; open the first one if there is none.

        Args:
            began: When the caller began to wait, on the monotonic clock.
            timeout: Seconds from then.
        """
        if timeout is None:
            timeout = self.target.applied.config.pool(self.connection_type).timeout
        while (generation := self.generation) is None:
            if self.on_open is not None:
                self.on_open()
            self._wanted_until = max(self._wanted_until, began + timeout)
            opening = self._start_opening()
            try:
                opening.result(max(0.0, timeout - (monotonic() - began)))
            except WaitTimeout:
                raise checkout_timeout(self, None, monotonic() - began) from None
            except ConnectError as error:
                self.usage.errors["other"] += 1
                # Each client gets an error of its own: one object in several threads would
                # collect the tracebacks of all of them.
                raise copy(error) from None
        return generation

    def start(self) -> None:
        """Begin to open, without waiting for it."""
        if self.generation is None:
            self._start_opening()

    def _start_opening(self) -> Future[None]:
        with self._lock:
            self.refuse_if_gone()
            if self.generation is not None:  # it came since the caller looked
                ready: Future[None] = Future()
                ready.set_result(None)
                return ready
            if (opening := self._opening) is None:
                try:
                    opening = self._opening = Future()
                    thread = threading.Thread(
                        target=self._open,
                        args=(opening,),
                        name=f"pgmonkey-open-{self.name}",
                        daemon=True,
                    )
                    self._attempt_now.clear()
                    thread.start()
                except BaseException:  # no thread can be had, or Ctrl-C: the next one tries again
                    self._opening = None
                    raise
            return opening

    def _open(self, opening: Future[None]) -> None:
        """Make the first connection, however often it takes while somebody waits for it."""

        def overtaken() -> bool:
            return self._opening is not opening

        error: BaseException | None = None
        delay = _FIRST_RETRY
        patience = self.target.applied.config.pool(self.connection_type).timeout
        self._wanted_until = max(self._wanted_until, monotonic() + patience)
        try:
            while not overtaken():
                applied = self.target.applied
                left = self._wanted_until - monotonic()
                try:
                    generation = self._first(applied, overtaken, left)
                except ConnectError as failed:
                    failure = self.gate.last_failure
                    if self.target.applied is not applied:
                        continue  # it was the login of before that failed
                    if (
                        failure is None
                        or failure.lasting
                        or self.connection_type == "normal"
                        or monotonic() > self._wanted_until
                        or self.target.gone is not None
                    ):
                        error = failed
                        return
                    self._attempt_now.wait(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                    delay = min(delay * 2, _LONGEST_RETRY)
                    continue
                if generation is None:
                    if self.target.applied is applied:
                        return  # a client with time left asks again
                    continue
                if self.publish_first(generation, overtaken):
                    return
                self.discard(generation)
                if self.target.gone is not None or self.generation is not None:
                    return  # another one came first, begun by who was interrupted
        except BaseException as unexpected:  # noqa: BLE001 - it is handed to those who wait
            error = unexpected
        finally:
            with self._lock:
                if self._opening is opening:
                    self._opening = None
                if opening.done():
                    pass  # who waited has heard already that the handle was closed
                elif error is None:
                    opening.set_result(None)
                else:
                    opening.set_exception(error)

    def _first(
        self, applied: Applied, overtaken: Callable[[], bool], left: float
    ) -> Generation[SyncPool] | None:
        """Return a generation with one verified connection.

        Args:
            applied: What to connect with.
            overtaken: Tells whether no client waits for it any more.
            left: Seconds for which room is waited for.

        Returns:
            `None` if the other databases of the registry left no connection for it in time.
        """
        dialer = self.make_dialer(applied)
        slot = self.gate.wait(
            lambda: self.is_gone() or overtaken() or self.target.applied is not applied,
            server=dialer.server,
            beyond=UNLIMITED,  # what a closed generation has out still is not waited for
            timeout=max(0.0, left),
        )
        if slot is None:
            return None
        return self._generation_from(applied, dialer, [dialer.dial(slot)])

    def _generation_from(
        self, applied: Applied, dialer: Dialer, seeds: list[PooledConnection]
    ) -> Generation[SyncPool]:
        generation: Generation[SyncPool] | None = None
        try:
            for seed in seeds:
                dialer.plant(seed)
            generation = Generation(
                applied,
                self.connection_type,
                dialer,
                make_pool(applied, self.connection_type, dialer),
            )
            self.open_generations.add(generation)
            generation.pool.open()
            _let_it_settle(generation, len(seeds))
        except BaseException:
            if generation is not None:  # its pool may be half open: no thread could be had, say
                self._close_pool(generation)
            for seed in seeds:
                seed.close()
            raise
        return generation

    # Reload: prepare a candidate, which may fail, then swap to it, which may not.

    def prepare(self, applied: Applied) -> Candidate[SyncPool]:
        """Probe a configuration with one connection, if there is a generation to replace.

        Raises:
            ConnectError: the probe failed; what runs goes on.
        """
        current = self.generation
        if current is None or current.applied.since == applied.since:
            return Candidate(applied, current, None)
        dialer = self.make_dialer(applied)
        seeds = gather(self, applied, dialer, current)
        return Candidate(applied, current, self._generation_from(applied, dialer, seeds))

    def swap_to(self, candidate: Candidate[SyncPool]) -> bool:
        """Make the candidate current and retire what it replaces.

        Returns:
            False if the handle opened, closed or swapped since `prepare`: prepare again.
        """
        began = monotonic()
        try:
            fault_points.reach("before_swap")
        except BaseException:
            self.drop(candidate)
            raise
        with self._lock:
            old = self.generation
            if old is not candidate.replaces or self.target.gone is not None:
                stale = True
            else:
                stale = False
                self.target.applied = candidate.applied
                self.gate.limit = candidate.applied.config.pool(self.connection_type).max_size
                if candidate.generation is not None:
                    if old is not None:
                        self.retired.append(old)
                    self.generation = candidate.generation
        if stale:
            if candidate.generation is not None:
                self.discard(candidate.generation)
            return False
        self._attempt_now.set()
        self.gate.wake()
        if candidate.generation is not None and old is not None:
            # From here on the old one must go, whatever else happens.
            try:
                self.count_replaced(old)
                fault_points.reach("after_swap")
            finally:
                try:
                    self._close_pool(old)
                finally:
                    self.report_swap(old, candidate.generation, monotonic() - began)
                    self.drained_if_empty(old)
        return True

    def force_reload(self, config: DatabaseConfig | None = None) -> None:
        """Replace the generation, though nothing may have changed; open nothing that is closed.

        Callers that ask while another one is at it share its result.

        Args:
            config: What to run; default: what runs now.

        Raises:
            ReloadRejectedError: the probe failed; the old generation keeps serving.
        """
        asked_at = self.target.applied.version
        with events.held_back(), self._reloading:
            applied = self.target.applied
            config = config or applied.config
            if applied.version > asked_at and applied.config.digest == config.digest:
                return
            try:
                while not self.swap_to(self.prepare(applied.forced(config))):
                    self.refuse_if_gone()
            except ConnectError as error:
                raise ReloadRejectedError(
                    error.text, database=self.name, reason=error.reason, hint=error.hint
                ) from None

    def drop(self, candidate: Candidate[SyncPool]) -> None:
        """Throw away a candidate that is not committed."""
        if candidate.generation is not None:
            self.discard(candidate.generation)

    def discard(self, generation: Generation[SyncPool]) -> None:
        """Close a generation that never became current."""
        self._close_pool(generation)

    def _close_pool(self, generation: Generation[SyncPool]) -> None:
        _close_one(generation)
        self.open_generations.discard(generation)

    def shut(self, gone: Exception | None) -> list[Any]:
        """Close the current generation; for good, if `gone` says why."""
        with self._lock:
            old, self.generation = self.generation, None
            if gone is not None:  # what is gone for good stays so, when it is closed besides
                self.target.gone = gone
            if old is not None:
                self.retired.append(old)
            if self._opening is not None:
                # Its connect may hang for long in a silent network: its clients hear of it now,
                # and those that have time left begin another, unless the handle is gone.
                opening, self._opening = self._opening, None
                opening.set_result(None)
        self._attempt_now.set()
        self.gate.wake()
        if old is not None:
            self._close_pool(old)
            self.drained_if_empty(old)
        return []

    def is_fit(
        self,
        connection: PooledConnection,
        generation: Generation[SyncPool],
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
        try:
            if (
                reason is None
                and self.needs_ping(connection, generation, now)
                and not connection.ping(min(LONGEST_PING, left / 3))
            ):
                reason = "check"
        except BaseException:
            self._drop_connection(connection, generation, "check")
            raise
        if reason is None:
            return True
        self._drop_connection(connection, generation, reason)
        if reason == "standby":
            self.replace_later(generation, reason)
        return False

    def _drop_connection(
        self,
        connection: PooledConnection,
        generation: Generation[SyncPool],
        reason: str,
    ) -> None:
        self.usage.evicted[reason] += 1
        connection.close()
        generation.pool.putconn(connection)

    def replace_later(self, generation: Generation[SyncPool], why: str) -> None:
        """Close a generation that is of no use any more; the next checkout opens another."""
        if self.give_up(generation, why):
            self._bury(generation)

    def refused(self) -> None:
        """Tell the registry, if there is one, that a login was refused."""
        if self.on_refused is not None:
            self.on_refused()

    def dead_end(self, dialer: Dialer) -> None:
        """Give up the generation of this dialer, so that its clients get the reason now."""
        current = self.generation
        if current is not None and current.dialer is dialer and self.give_up(current, "connect"):
            # It is the pool's own worker that calls: closing the pool would wait for itself.
            threading.Thread(
                target=self._bury,
                args=(current,),
                name=f"pgmonkey-bury-{self.name}",
                daemon=True,
            ).start()

    def bury_overdue(self, now: float) -> None:
        """Close retired generations that have nothing out and are there still.

        The call that retired them was interrupted before the end.

        Args:
            now: The monotonic clock.
        """
        for generation in self.retired.copy():
            if generation.retired_at == 0.0:
                generation.retired_at = now  # seen for the first time: it may be in good hands
            elif not generation.checkouts and now - generation.retired_at > _OVERDUE:
                self._bury(generation)

    def _bury(self, generation: Generation[SyncPool]) -> None:
        self._close_pool(generation)
        self.drained_if_empty(generation)

    def forget(self) -> None:
        """Forget the parent's connections in a child process, without touching them."""
        super().forget()
        self._opening = None
        self._reloading = threading.Lock()
        self._attempt_now = threading.Event()
