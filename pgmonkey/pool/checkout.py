"""One borrowed connection, from entering `with` to leaving it: what sync and async share."""

from __future__ import annotations

import sys
from functools import partial
from sys import _getframe
from threading import get_ident
from types import CodeType, FrameType, MethodType
from typing import Any, Final, Self

from pgmonkey.errors import WrongSideError
from pgmonkey.pool.hints import hinted_block
from pgmonkey.telemetry import events

#: The stages of a checkout: looked up in one half only, made for one block, looked up in both
#: halves by one `with`, which enters it at once, entered otherwise.
MADE: Final = 0
BOUND: Final = 1
PAIRED: Final = 2
ENTERED: Final = 3
#: What is added to the last stage: it was reported as held too long; its block succeeded, but
#: swallowed the error of a statement, so that the server rolled it back.
REPORTED: Final = 4
ROLLED_BACK: Final = 8

#: What a checkout by hand ends with, in the place of the class of an exception: it is rolled back.
BY_HAND: Final = "putconn"

#: How many calls of a borrower's stack are kept.
DEEPEST: Final = 40

#: `with` looks up both halves before it calls either: which one first depends on the version.
_EXIT_FIRST: Final = sys.version_info >= (3, 14)


class OneSided:
    """Refuse `with` and `async with`; the class of each side replaces one of them."""

    __slots__ = ()

    handle: Any

    def __enter__(self) -> Any:
        raise wrong_side(self.handle.name, self.handle.connection_type)

    def __exit__(self, kind: object = None, error: object = None, _trace: object = None) -> Any:
        raise wrong_side(self.handle.name, self.handle.connection_type)

    def __aenter__(self) -> Any:
        raise wrong_side(self.handle.name, self.handle.connection_type)

    def __aexit__(self, kind: object = None, error: object = None, _trace: object = None) -> Any:
        raise wrong_side(self.handle.name, self.handle.connection_type)


@hinted_block
class Checkout(OneSided):
    """Borrow one connection of a handle, once.

    Made by a handle; not by hand. It carries its own state, so that any number of them can be
    open at once in one thread or task, and end in another one, in any order.
    """

    # One is made for every block. Slots that are set where their value is known cost a third of
    # what defaults of the class cost, which an object without slots would hide one by one.
    __slots__ = (
        "__weakref__",
        "began",
        "callers",
        "code",
        "connection",
        "handle",
        "instruction",
        "owner",
        "pool",
        "stage",
        "taken",
        "timeout",
    )

    #: How it is written.
    block: Final = "connection() as conn"
    #: Seconds to wait, or `None` for the configured ones.
    timeout: float | None
    #: How far it is.
    stage: int
    # What follows is set when it is entered.
    connection: Any
    pool: Any
    #: The thread's number or the task that borrowed.
    owner: Any
    #: When it began to wait, and when it got its connection, on the monotonic clock.
    began: float
    taken: float
    #: Where the borrower was called from, innermost first; not set unless the file asks for it.
    callers: tuple[tuple[CodeType, int], ...]
    # Code and instruction say where it was borrowed, without holding the frame and with it the
    # borrower's variables; the line is worked out when somebody asks.
    code: CodeType
    instruction: int

    @classmethod
    def bound(cls, handle: Any, timeout: float | None, frame: FrameType) -> Self:
        """Return a checkout that is its own `with` block's, such as `connection()` gives.

        Args:
            handle: The handle.
            timeout: Seconds to wait, or `None` for the configured ones.
            frame: The borrower's.
        """
        checkout = cls()
        checkout.handle = handle
        checkout.timeout = timeout
        checkout.code = frame.f_code
        checkout.instruction = frame.f_lasti
        checkout.stage = BOUND
        return checkout

    def enter_alone(self) -> None:
        """Take note that `__enter__` was called by hand, so that `__exit__` finds it.

        Raises:
            RuntimeError: it was entered before.
        """
        self.owner = get_ident()
        if self.stage == BOUND:
            return
        if self.stage >= ENTERED:
            raise RuntimeError("a checkout can be entered once; ask the handle for another one")
        _halves.pop(get_ident(), None)  # it would keep this checkout alive
        self.handle.loose.append(self)

    def itself(self) -> Self:
        """Return itself: what a connection refers to that was borrowed by hand."""
        return self

    def report(self, seconds: float) -> None:
        """Report what is to be told of it, now that it has ended.

        Args:
            seconds: How long it lasted.
        """
        handle, code = self.handle, self.code
        emit = partial(events.emit, database=handle.name, connection_type=handle.connection_type)
        if self.stage & REPORTED:
            emit("checkout.returned_late", seconds=round(seconds, 3), place=self.place)
        name = "checkout.rolled_back"
        if self.stage & ROLLED_BACK and events.is_first(
            name, code.co_filename, code.co_firstlineno, self.instruction
        ):
            emit(name, place=self.place)

    @property
    def place(self) -> str:
        """Return where it was borrowed, as `file:line in function`."""
        return _place(self.code, self.instruction)

    def keep_stack(self, frame: FrameType | None) -> None:
        """Remember the stack of the borrower, without holding its frames.

        Args:
            frame: The borrower's, or one of ours that it has called.
        """
        callers: list[tuple[CodeType, int]] = []
        borrower = frame
        while borrower is not None and borrower.f_code is not self.code:
            borrower = borrower.f_back
        frame = borrower or frame  # else it is entered somewhere else than where it was made
        while frame is not None and len(callers) < DEEPEST:
            callers.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        self.callers = tuple(callers)

    @property
    def stack(self) -> tuple[str, ...]:
        """Return the borrower's stack, each call as `file:line in function`, innermost first."""
        return tuple(
            _place(code, instruction) for code, instruction in getattr(self, "callers", ())
        )


def _place(code: CodeType, instruction: int) -> str:
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end), None)
    return f"{code.co_filename}:{line} in {code.co_name}"


#: The checkouts of which `with` has looked up one half only, by thread: one each at most. An
#: entry of this dictionary costs less than an attribute of a thread-local.
_halves: Final[dict[int, Any]] = {}


class _Unbound:
    """Pair the two halves that `ExitStack` looks up on the class."""

    __slots__ = ("checkout", "frame", "handle", "stage")

    def __init__(self, frame: FrameType) -> None:
        self.handle: Any = None
        self.stage = MADE
        self.frame = frame
        self.checkout: Any = None

    def enter(self, handle: Any) -> Any:
        self.checkout = checkout = handle.checkout_class.bound(handle, None, self.frame)
        del self.frame  # it would keep the borrower's variables alive
        self.stage = ENTERED
        return checkout.enter()

    def leave(self, _handle: Any, *exc_info: Any) -> Any:
        return self.checkout.leave(*exc_info)


class EnterHalf:
    """`__enter__` or `__aenter__` of a handle: each look-up begins or completes a checkout.

    `with` looks up both halves on the spot, one right after the other, in one thread. So the
    first look-up makes a checkout and the second one binds to it: the block then owns its
    checkout, whichever thread leaves it and in whatever order. A stack in a thread-local or
    context variable cannot do that. When `__enter__` is called by hand, there is no second
    look-up yet; such checkouts wait in the handle's list, and `__exit__` takes the last one.
    """

    __slots__ = ()

    def __get__(self, handle: Any, owner: type) -> Any:
        frame = _getframe(1)
        thread = get_ident()
        if handle is None:
            pair = _halves[thread] = _Unbound(frame)
            return pair.enter
        if _EXIT_FIRST:
            checkout = _halves.pop(thread, None)
            if checkout is not None and checkout.handle is handle and checkout.stage == MADE:
                checkout.stage = PAIRED
                checkout.owner = thread
                return checkout.enter
        # Made here, field by field: this is on the way of every block.
        checkout = handle.checkout_class()
        checkout.handle = handle
        checkout.timeout = None
        checkout.stage = MADE
        checkout.code = frame.f_code
        checkout.instruction = frame.f_lasti
        if not _EXIT_FIRST:
            _halves[thread] = checkout
        return checkout.enter


class ExitHalf:
    """`__exit__` or `__aexit__` of a handle; see `EnterHalf`."""

    __slots__ = ()

    def __get__(self, handle: Any, owner: type) -> Any:
        thread = get_ident()
        checkout = _halves.pop(thread, None)
        if handle is None:
            return _leave_of_class(checkout)
        if _EXIT_FIRST:
            checkout = _halves[thread] = handle.checkout_class.bound(handle, None, _getframe(1))
            checkout.stage = MADE
            return MethodType(_leave_or_loose, checkout)
        if checkout is not None and checkout.handle is handle and checkout.stage == MADE:
            checkout.stage = PAIRED
            checkout.owner = thread
            return checkout.leave
        return loose(handle).leave


def _leave_of_class(pair: Any) -> Any:
    """Return what `ExitStack` calls with the handle: the other half, if it has looked that up."""
    if isinstance(pair, _Unbound) and pair.stage == MADE:
        pair.stage = BOUND
        return pair.leave
    return lambda handle, *exc_info: loose(handle).leave(*exc_info)


def _leave_or_loose(checkout: Any, *exc_info: Any) -> Any:
    if checkout.stage >= PAIRED:
        return checkout.leave(*exc_info)
    return loose(checkout.handle).leave(*exc_info)


def loose(handle: Any) -> Any:
    """Return the checkout that was entered last by calling `__enter__` by hand."""
    try:
        return handle.loose.pop()
    except IndexError:
        raise RuntimeError(f"{handle!r} was not entered") from None


def wrong_side(name: str, connection_type: str, block: str = " as conn") -> WrongSideError:
    """Return the error for `with` on an async handle, or the reverse.

    Args:
        name: The name of the database.
        connection_type: Its type.
        block: What follows the handle in the right block.
    """
    used, right = (
        ("`async with` or `await`", "with")
        if connection_type in ("normal", "pool")
        else ("`with`", "async with")
    )
    return WrongSideError(
        f"{name} is a {connection_type} database: {used} does not work on it; "
        f'use `{right} registry.get("{name}"){block}:`'
    )
