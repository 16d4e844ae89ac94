from __future__ import annotations

import asyncio

import pytest

from tests.kit import aeventually, eventually


def test_returns_the_first_true_value():
    """`eventually` asks again until the answer is true, and returns that answer."""
    answers = iter([0, "", None, "there"])

    assert eventually(lambda: next(answers)) == "there"


def test_fails_with_the_message_and_the_last_value():
    """A predicate that stays false fails the test, with the awaited condition in the message."""
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: the moon; at last 0"):
        eventually(lambda: 0, timeout=0.01, message="the moon")


def test_an_error_of_the_predicate_is_not_hidden():
    """An exception of the predicate ends the wait at once."""
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)


async def test_the_loop_runs_on_while_waiting():
    """`aeventually` lets the task that it waits for run."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)

    assert await aeventually(done.is_set)


async def test_a_coroutine_function_is_awaited():
    """`aeventually` takes a coroutine function as its predicate."""

    async def answer() -> int:
        return 42

    assert await aeventually(answer) == 42
