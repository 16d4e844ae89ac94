"""The errors of a checkout, in words for the person who reads them at night."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pgmonkey.errors import CheckoutTimeout, NestedCheckoutError, TooManyWaiting
from pgmonkey.pool.connect_failure import HINTS

if TYPE_CHECKING:
    from pgmonkey.pool.checkout import Checkout
    from pgmonkey.pool.database import Database
    from pgmonkey.pool.generation import Generation

#: How many of those who hold a connection longest an error names.
_HOLDERS: Final = 3


def checkout_timeout(
    handle: Database, generation: Generation[Any] | None, waited: float
) -> CheckoutTimeout:
    """Return the error of a checkout that got no connection in time, and count it."""
    handle.usage.errors["timeout"] += 1
    status = handle.status()
    longest = sorted(status.checkouts, key=lambda one: one.seconds, reverse=True)[:_HOLDERS]
    holders = "".join(
        f"\n  held for {one.seconds:.1f} s by {one.holder}, borrowed at {one.place}"
        for one in longest
    )
    full = handle.share.explain() if handle.has_room() else None
    why = ""
    if full is not None:
        why = f"\n  {full}"
        hint = "raise max_connections, or lower max_size, min_size or max_idle of who holds them"
    elif status.last_failure is not None and status.last_failure_reason is not None:
        hint = f"{HINTS[status.last_failure_reason]}; it is tried again all the time"
    elif generation is None:
        why = "\n  the first connection is still being made"
        hint = "the server is slow to answer: raise `timeout`, or look at the network"
    else:
        hint = "raise max_size, shorten the transactions, or look for a checkout that is never left"
    return CheckoutTimeout(
        f"no connection within {waited:.2f} s"
        f" (open {status.idle + status.used}, in use {status.used}, waiting {status.waiting},"
        f" max_size {status.max_size}){holders}{why}",
        database=handle.name,
        reason=status.last_failure_reason,
        text=status.last_failure or "",
        hint=hint,
    )


def guard(handle: Database, checkout: Checkout, generation: Generation[Any]) -> None:
    """Refuse a checkout that would wait for itself, or for too many others.

    Raises:
        NestedCheckoutError: its thread or task holds the one connection already.
        TooManyWaiting: `max_waiting` others wait.
    """
    if generation.single:
        for other in generation.out():
            if other.owner == checkout.owner:
                raise _nested_checkout(handle, other)
    if generation.crowd is not None and len(generation.checkouts) >= generation.crowd:
        handle.usage.errors["too_many"] += 1
        raise _too_many_waiting(handle, generation)


def _nested_checkout(handle: Database, outer: Checkout) -> NestedCheckoutError:
    """Return the error of a block that would wait for the block around it."""
    return NestedCheckoutError(
        f"{handle.name} is a {handle.connection_type} database with one connection, and this"
        f" {'thread' if handle.connection_type == 'normal' else 'task'} holds it already,"
        f" borrowed at {outer.place}"
        "\n  hint: use the connection of the outer block, or make it a "
        f"{'pool' if handle.connection_type == 'normal' else 'async_pool'}"
    )


def _too_many_waiting(handle: Database, generation: Generation[Any]) -> TooManyWaiting:
    """Return the error of a checkout that found `max_waiting` others before it."""
    return TooManyWaiting(
        f"{handle.name}: {generation.waiting()} clients wait already"
        f" (max_waiting {generation.settings.max_waiting}, max_size {generation.settings.max_size})"
        "\n  hint: the pool is too small for this load, or a checkout is never left"
    )
