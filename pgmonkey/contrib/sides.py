"""Checkouts for frameworks: on the side that they need, and in the name of the code that asks."""

from __future__ import annotations

from types import CodeType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.pool.handle import Borrowed, Database
    from pgmonkey.registry.registry import Registry

_SYNC: Final[dict[ConnectionType, ConnectionType]] = {"async": "normal", "async_pool": "pool"}
_ASYNC: Final[dict[ConnectionType, ConnectionType]] = {"normal": "async", "pool": "async_pool"}


def sync_handle(registry: Registry, name: str) -> Database:
    """Return the handle to enter with `with`: of the declared type, or its sync counterpart."""
    handle = registry.get(name)
    other = _SYNC.get(handle.connection_type)
    return handle if other is None else registry.get(name, other)


def async_handle(registry: Registry, name: str) -> Database:
    """Return the handle to enter with `async with`: of the declared type, or its async counterpart."""
    handle = registry.get(name)
    other = _ASYNC.get(handle.connection_type)
    return handle if other is None else registry.get(name, other)


def checkout_for(handle: Database, code: CodeType | None, instruction: int = 0) -> Borrowed:
    """Return a checkout that shows in errors and in the status as one of other code.

    Args:
        handle: The handle.
        code: That of the application, which is not the one that enters the block; `None` if it is
            not known.
        instruction: Which one of its instructions asks for the connection.
    """
    block: Any = handle.connection()
    if code is not None:
        block.code = code
        block.instruction = instruction
    return block  # type: ignore[no-any-return]  # a checkout is one
