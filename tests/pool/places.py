"""Blocks at places of their own: some events come once from each place in the code."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from itertools import count
from typing import Any

from tests.pool.side import Client

_BLOCK = """
def block(borrow, work):
    with borrow() as connection:
        return work(connection)

async def block_async(borrow, work):
    async with borrow() as connection:
        done = work(connection)
        return await done if isawaitable(done) else done
"""
#: Where the two blocks begin, and where the functions do.
LINES = {False: (3, 2), True: (7, 6)}

_numbers = count(1)

Block = Callable[..., Any]


def new_place(client: Client) -> tuple[Block, str, str]:
    """Return a block at a place from which none was entered before, its line, and its function.

    The block takes what works with a connection, and what borrows one: `connection` of the
    handle, unless another one is given. What works may return something awaitable.
    """
    file = f"place_{next(_numbers)}.py"
    namespace: dict[str, Any] = {"isawaitable": inspect.isawaitable}
    exec(compile(_BLOCK, file, "exec"), namespace)
    name = "block_async" if client.is_async else "block"
    block = namespace[name]

    def call(work: Callable[[Any], Any], borrow: Callable[[], Any] | None = None) -> Any:
        done = block(borrow or client.handle.connection, work)
        if client.is_async:
            return asyncio.run_coroutine_threadsafe(done, client.loop).result(30)
        return done

    line, function_line = LINES[client.is_async]
    return call, f"{file}:{line} in {name}", f"{file}:{function_line} in {name}"
