"""Checkouts for frameworks: on the side that they need, and in the name of the code that asks."""

from __future__ import annotations

from types import CodeType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.pool.handle import Borrowed
    from pgmonkey.registry.registry import Registry

#: What a declared type becomes on each side, if it is one of the other side.
SYNC: Final[dict[ConnectionType, ConnectionType]] = {"async": "normal", "async_pool": "pool"}
ASYNC: Final[dict[ConnectionType, ConnectionType]] = {"normal": "async", "pool": "async_pool"}


def checkout(
    registry: Registry,
    name: str,
    side: dict[ConnectionType, ConnectionType],
    code: CodeType | None,
    instruction: int = 0,
) -> Borrowed:
    """Return a checkout on one side, whatever type the file declares, in the name of other code.

    Errors, events and the status say where a connection was borrowed. For a framework that is not
    the line that enters the block, but the endpoint or view.

    Args:
        registry: The registry.
        name: The name of the database.
        side: `SYNC`, for `with`, or `ASYNC`, for `async with`.
        code: That of the application; `None` if it is not known.
        instruction: Which one of its instructions asks for the connection.
    """
    handle = registry.get(name)
    declared = handle.connection_type
    if declared in side:
        handle = registry.get(name, side[declared])
    block: Any = handle.connection()
    if code is not None:
        # What a checkout has noted of its caller. No public method takes it: applications borrow
        # for themselves.
        block.code = code
        block.instruction = instruction
    return block  # type: ignore[no-any-return]  # a checkout is one
