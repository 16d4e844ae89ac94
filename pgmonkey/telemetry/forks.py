"""Forks: none happens while another thread is in a library whose locks a child could not open."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Seconds for which a fork waits: a thread may be stuck, or wait for the very one that forks.
_LONGEST_WAIT: Final = 1.0


class _Crossing:
    """Let threads pass side by side, and forks only between them."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew in a child process, which has none of the other threads."""
        # Guards the two below. Reentrant, for the garbage collector may have something to log.
        self._changed = threading.Condition(threading.RLock())
        #: By thread, how many blocks it is in.
        self._inside: dict[int, int] = {}
        #: The threads that fork.
        self._forking: set[int] = set()

    def enter(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(
                lambda: not self._forking or me in self._forking or me in self._inside,
                _LONGEST_WAIT,
            )
            self._inside[me] = self._inside.get(me, 0) + 1

    def leave(self) -> None:
        me = threading.get_ident()
        with self._changed:
            depth = self._inside.pop(me, 0)  # 0 in a child that was forked inside
            if depth > 1:
                self._inside[me] = depth - 1
            self._changed.notify_all()

    def before_fork(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._forking.add(me)
            self._changed.wait_for(lambda: self._inside.keys() <= {me}, _LONGEST_WAIT)

    def after_fork(self) -> None:
        with self._changed:
            self._forking.discard(threading.get_ident())
            self._changed.notify_all()


_crossing: Final = _Crossing()


@contextmanager
def no_fork() -> Iterator[None]:
    """Keep other threads from forking during a block.

    structlog and prometheus_client take locks and do not renew them in a child: one that was held
    by another thread in that moment stays locked there for ever. It costs some microseconds; a
    fork waits for the block, a second at most.

    Example:
        >>> with no_fork():
        ...     print("whole lines only")
        whole lines only
    """
    _crossing.enter()
    try:
        yield
    finally:
        _crossing.leave()


os.register_at_fork(
    before=_crossing.before_fork,
    after_in_parent=_crossing.after_fork,
    after_in_child=_crossing.renew,
)
