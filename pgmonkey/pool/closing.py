"""Closing what an event loop has: a generation, or all that a dropped handle has left there."""

from __future__ import annotations

from pgmonkey.pool import fault_points
from pgmonkey.pool.connection import AsyncPool, AsyncPooledConnection
from pgmonkey.pool.estate import Estate
from pgmonkey.pool.generation import Generation
from pgmonkey.pool.loop_task import loop_task
from pgmonkey.pool.stranded import close_soon


def hang_up(generation: Generation[AsyncPool]) -> None:
    """Retire a generation and close what is idle, in one step.

    psycopg_pool has its workers end first. In a loop that is ending it would never come to the
    connections, of which nobody else knows by then.
    """
    if not generation.retired:
        generation.retire()
    idle = generation.pool._pool
    while idle:
        idle.popleft().hang_up()


async def close_generation(generation: Generation[AsyncPool]) -> None:
    """Close the pool of a generation; what is out is closed when it comes back."""
    hang_up(generation)
    try:
        await fault_points.reach_async("before_close")
    finally:
        # No waiting for its worker: it may be stuck in a connect, and the clients that queue
        # on this pool hear of the swap only when `close` is through.
        await generation.pool.close(timeout=0)
    while seed := generation.dialer.uproot():  # the pool never got to take it
        assert isinstance(seed, AsyncPooledConnection)
        await seed.close()


def close_estate(estate: Estate) -> None:
    """Close what a dropped handle has left open, on the loop that it belongs to."""
    if estate.is_empty():
        return

    async def close(left: list[Generation[AsyncPool]]) -> None:
        for generation in left:
            await close_generation(generation)
            estate.generations.discard(generation)

    def begin() -> None:
        for task in estate.connecting.copy():
            task.cancel()
        left = list(estate.generations)
        for generation in left:
            hang_up(generation)
        estate.keep(loop_task(close, left))

    close_soon(estate, begin)
