"""A candidate: what a reload has made ready, before anything is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from pgmonkey.pool.generation import Generation
    from pgmonkey.pool.target import Applied

PoolT = TypeVar("PoolT")


class Candidate(NamedTuple, Generic[PoolT]):
    """Hold the next configuration of a handle and, if it was open, the generation made from it.

    Args:
        applied: What the handle shall run.
        replaces: The generation that was current when this was prepared, or `None`.
        generation: The verified generation, or `None` when no connection is touched.
    """

    applied: Applied
    replaces: Generation[PoolT] | None
    generation: Generation[PoolT] | None
