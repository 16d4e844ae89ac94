"""The errors of a checkout, in words for the person who reads them at night."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgmonkey.errors import (
    REJECTED,
    CheckoutTimeout,
    ConnectError,
    LeftOpenError,
    NestedCheckoutError,
    TooManyWaiting,
)
from pgmonkey.pool.clock import monotonic

if TYPE_CHECKING:
    from types import CodeType

    from pgmonkey.pool.checkout import Checkout
    from pgmonkey.pool.failures import ConnectFailure

#: How many of those who hold a connection longest an error names.
_HOLDERS: Final = 3
#: What a block can leave open, and what to write instead.
_ENDINGS: Final = {
    "pipeline()": "write `with conn.pipeline():` inside the block",
    "copy()": "write `with cursor.copy(...) as copy:` inside the block",
    "stream()": "read it to the end, or write `with contextlib.closing(cursor.stream(...)) as rows:`",
    "notifies()": "read it to the end, or write `with contextlib.closing(conn.notifies()) as notes:`",
    "a statement": "wait for the thread or task that runs it before the block ends",
    "tpc_begin()": "call tpc_prepare(), tpc_commit() or tpc_rollback() before the block ends",
}


class Numbers(NamedTuple):
    """The connections of one pool at one moment.

    Args:
        idle: Those that are not checked out.
        held: The checkouts that hold a connection of the version in force.
        retired: The checkouts that hold a connection of an older version.
        closing: Connections that the server has not closed yet.
        waiting: Clients that wait for a connection.
    """

    idle: int
    held: list[Checkout]
    retired: list[Checkout]
    closing: int
    waiting: int


def explain_timeout(
    numbers: Numbers, max_size: int, limit: str | None, failure: ConnectFailure | None
) -> tuple[str, str]:
    """Return why a checkout got no connection in time, and a hint.

    Args:
        numbers: The connections of its pool.
        max_size: How many there may be.
        limit: Which limit over several pools is reached, and who holds its connections.
        failure: Why the last connect failed.
    """
    now = monotonic()
    longest = sorted(numbers.held + numbers.retired, key=lambda one: one.taken)[:_HOLDERS]
    holders = "".join(
        f"\n  held for {now - one.taken:.1f} s by {holder_name(one.owner)}, borrowed at {one.place}"
        for one in longest
    )
    used, retired = len(numbers.held), len(numbers.retired)
    if limit is not None:
        why = f"\n  {limit}"
        hint = "raise max_connections, or lower max_size, min_size or max_idle of the databases that hold them"
    elif failure is not None:
        why = ""
        hint = f"{failure.hint}; pgmonkey keeps trying"
    elif not (numbers.idle + used + retired + numbers.closing):
        why = "\n  the first connection is still being made"
        hint = "the server is slow to answer: raise `timeout`, or look at the network"
    else:
        why = ""
        hint = "raise max_size, shorten the transactions, or look for a checkout that is never left"
    left = f", retired {retired}" if retired else ""
    if numbers.closing:
        left += f", closing {numbers.closing}"
    text = (
        f"(open {numbers.idle + used}, in use {used}{left}, waiting {numbers.waiting},"
        f" max_size {max_size}){holders}{why}"
    )
    return text, hint


def checkout_timeout(
    database: str,
    waited: float,
    explained: tuple[str, str],
    failure: ConnectFailure | None,
    rejected: str,
) -> CheckoutTimeout:
    """Return the error of a checkout that got no connection in time.

    Args:
        database: Its name.
        waited: Seconds.
        explained: What `explain_timeout` returned.
        failure: Why the last connect failed.
        rejected: The first problem of the files of the database, if they are rejected.
    """
    text, hint = explained
    return CheckoutTimeout(
        f"no connection within {waited:.2f} s {text}",
        database=database,
        reason=failure.reason if failure else None,
        text=failure.text if failure else "",
        hint=hint,
        rejected=rejected,
    )


def not_its_turn(database: str, waited: float, blocks: list[Any]) -> CheckoutTimeout:
    """Return the error of a block that waited for its turn in `override(rollback=True)`.

    Args:
        database: Its name.
        waited: Seconds.
        blocks: Those that are open.
    """
    now = monotonic()
    holders = "".join(
        f"\n  held for {now - one.taken:.1f} s by {holder_name(one.owner)}, begun at {one.place}"
        for one in blocks
    )
    return CheckoutTimeout(
        f"no turn within {waited:.2f} s: all blocks share one connection in"
        f" override(rollback=True){holders}",
        database=database,
        hint="end that block before you wait for another thread or task that begins one",
    )


def nested_checkout(database: str, connection_type: str, outer: Checkout) -> NestedCheckoutError:
    """Return the error of a block that would wait for the block around it."""
    single = connection_type == "normal"
    return NestedCheckoutError(
        f"{database} is a {connection_type} database with one connection, and this"
        f" {'thread' if single else 'task'} holds it already, borrowed at {outer.place}"
        "\n  hint: use the connection of the outer block, or make it a "
        f"{'pool' if single else 'async_pool'}"
    )


def not_by_hand(handle: Any, checkout: Checkout | None) -> ValueError:
    """Return the error for a connection that this handle did not lend by hand.

    Args:
        handle: What was asked.
        checkout: What holds the connection, if something of ours does.
    """
    name, connection_type = handle.name, handle.connection_type
    if checkout is None:
        why = "it was given back before, or comes from somewhere else"
    elif checkout.handle is handle:
        why = f"the block that borrowed it at {checkout.place} gives it back"
    elif (other := checkout.handle).name == name and other.connection_type == connection_type:
        why = (
            f"it was borrowed at {checkout.place} from another handle of {name}, with another pool"
        )
    else:
        why = f"it belongs to {other.name}, type {other.connection_type}"
    return ValueError(
        f"{name}: this connection is not borrowed from this handle ({connection_type}): {why}"
    )


def other_loop(database: str) -> RuntimeError:
    """Return the error of giving a connection back in another event loop than its own."""
    return RuntimeError(
        f"{database}: this connection belongs to another event loop; give it back there:"
        " asyncio.run_coroutine_threadsafe(handle.putconn(conn), loop)"
    )


def left_open(checkout: Checkout, what: str) -> LeftOpenError:
    """Return the error of a block that ended in the middle of something.

    Args:
        checkout: The block's.
        what: What it has left open.
    """
    hint = _ENDINGS[what]
    if checkout.handle.connection_type.startswith("async"):
        hint = hint.replace("`with ", "`async with ").replace("closing(", "aclosing(")
    return LeftOpenError(
        f"{checkout.handle.name}: the block ended inside of {what}, so its connection was closed,"
        f" and what it had not committed is rolled back; borrowed at {checkout.place}"
        f"\n  hint: {hint}"
    )


def too_many_waiting(
    database: str, waiting: int, max_waiting: int, max_size: int, rejected: str
) -> TooManyWaiting:
    """Return the error of a checkout that found `max_waiting` others before it."""
    files = f"\n  {REJECTED}: {rejected}" if rejected else ""
    return TooManyWaiting(
        f"{database}: {waiting} clients wait already"
        f" (max_waiting {max_waiting}, max_size {max_size}){files}"
        "\n  hint: the pool is too small for this load, or a checkout is never left"
    )


def no_room(database: str, why: str, limit: str | None) -> ConnectError:
    """Return the error of a reload that finds every connection in use.

    Args:
        database: Its name.
        why: Which limit is reached.
        limit: Which limit over several pools is reached, if it is one, and who holds them.
    """
    return ConnectError(
        f"{limit or why}, so none is left to probe the new configuration",
        database=database,
        reason="too_many_connections",
        hint="the reload is tried again; shorten the transactions"
        f" or raise {'max_connections' if limit else 'max_size'}",
    )


def describe(checkout: Checkout, now: float) -> dict[str, Any]:
    """Return the fields of an event about a checkout.

    Args:
        checkout: One in progress.
        now: The monotonic clock.
    """
    described: dict[str, Any] = {
        "holder": holder_name(checkout.owner),
        "seconds": round(now - checkout.taken, 3),
        "place": checkout.place,
    }
    if stack := checkout.stack:
        # A text: structlog's console writes a field of this name as it is.
        described["stack"] = "\n".join(stack)
    return described


def function_name(code: CodeType | None) -> str:
    """Return where a function is, as `file:line in function`."""
    return f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}" if code else "unknown"


def raised_at(error: BaseException) -> str:
    """Return where an exception was raised, as `file:line in function`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    code = trace.tb_frame.f_code
    return f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"


def holder_name(owner: Any) -> str:
    """Return the name of a thread or task, for messages."""
    if isinstance(owner, int):
        for thread in threading.enumerate():
            if thread.ident == owner:
                return f"thread {thread.name}"
        return f"thread {owner} (ended)"
    name = getattr(owner, "get_name", None)
    return f"task {name()}" if name else "unknown"
