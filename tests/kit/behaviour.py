"""Rules for every test: it has a docstring, and an `async def` test runs on a new event loop.

A plain `asyncio.Runner` for each test is all that is needed here: pytest-asyncio and anyio bring
scopes of loops and asynchronous fixtures, whose interplay hides exactly what is tested, namely what a
handle leaves behind on a loop that ends. An asynchronous resource is opened in the test itself.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.kit import leaks


def pytest_configure() -> None:
    """Let programs of tests be interrupted, though a shell has these tests in the background.

    What a shell starts there ignores Ctrl-C, and so would whatever the tests start.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a test that does not say which behaviour it shows."""
    if isinstance(item, pytest.Function) and item.cls is None:
        documented = item.obj
    elif isinstance(item, pytest.Function) and not hasattr(item.cls, "TestCase"):
        # Stateful tests of Hypothesis are classes of unittest: the class says what they show.
        documented = item.obj if inspect.getdoc(item.obj) else item.cls
    else:
        return
    if not (documented.__doc__ or "").strip():
        pytest.fail(f"{item.name} has no docstring that states the behaviour", pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function on a new event loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    asyncio.run(_run(pyfuncitem.obj, arguments))
    return True


async def _run(test: Callable[..., Coroutine[Any, Any, None]], arguments: dict[str, Any]) -> None:
    before = asyncio.all_tasks()
    await test(**arguments)
    left = asyncio.all_tasks() - before
    if left:
        _, left = await asyncio.wait(left, timeout=leaks.GRACE)
    if left:
        names = ", ".join(sorted(f"task {t.get_name()!r} ({t.get_coro()!r})" for t in left))
        pytest.fail(f"the test left {names} behind", pytrace=False)
