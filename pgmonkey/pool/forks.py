"""Keep forks and connects apart.

A connect runs code of libpq, OpenSSL and Kerberos that holds locks of its own. A child that is forked
meanwhile inherits them held, by a thread that it does not have: its first connect would hang. So a
fork waits a moment for the connects of other threads, and connects wait for a fork.
"""

from __future__ import annotations

import threading
import time
from typing import Final

#: Seconds for which a fork waits at most. A connect that takes longer waits for its server, and holds
#: none of those locks then.
_LONGEST_WAIT: Final = 0.5
#: Seconds between two looks.
LOOK_AGAIN: Final = 0.001

#: The connects under way, each with its thread, and the threads that fork. Each step is one operation
#: of a dictionary or a set, which needs no lock: a child could inherit that one, too.
_connects: Final[dict[object, int]] = {}
_forks: Final[set[int]] = set()


def begin_connect(token: object) -> bool:
    """Note that a connect begins, unless another thread forks: then call it again a moment later.

    Args:
        token: Any object of its own, for `end_connect`.
    """
    _connects[token] = own = threading.get_ident()
    if _forks <= {own}:
        return True
    del _connects[token]
    return False


def end_connect(token: object) -> None:
    """Note that a connect has ended, or did not begin."""
    _connects.pop(token, None)


def before_fork() -> None:
    """Hold back new connects of other threads, and wait for those under way."""
    own = threading.get_ident()
    _forks.add(own)
    until = time.monotonic() + _LONGEST_WAIT
    while any(thread != own for thread in list(_connects.values())) and time.monotonic() < until:
        time.sleep(LOOK_AGAIN)


def after_fork_in_parent() -> None:
    """Let connects begin again."""
    _forks.discard(threading.get_ident())


def after_fork_in_child() -> None:
    """Forget the threads of the parent."""
    _connects.clear()
    _forks.clear()
