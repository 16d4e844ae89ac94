"""Libraries that put greenlets in the place of threads: gevent works, eventlet is refused."""

from __future__ import annotations

import select
import sys
from typing import Final

from pgmonkey.errors import PgmonkeyError


def threads_are_greenlets() -> bool:
    """Tell whether gevent has replaced threads: what blocks in one stops all others."""
    gevent = sys.modules.get("gevent.monkey")
    return gevent is not None and bool(gevent.is_module_patched("threading"))


# Locks are taken from `threading` at the import.
_WERE_GREENLETS: Final = threads_are_greenlets()


def check() -> None:
    """Raise what a program has to do that has replaced threads in a way that cannot work.

    Raises:
        PgmonkeyError: gevent came too late, or it is eventlet.
    """
    if threads_are_greenlets() != _WERE_GREENLETS:
        raise PgmonkeyError(
            "gevent has replaced threads after pgmonkey was imported"
            "\n  hint: call gevent.monkey.patch_all() before anything else is imported"
        )
    if not hasattr(select, "poll"):
        raise PgmonkeyError(
            "this process has no select.poll, as after eventlet.monkey_patch()"
            "\n  hint: psycopg does not work with eventlet; use threads, asyncio or gevent"
        )
