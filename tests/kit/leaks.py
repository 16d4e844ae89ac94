"""Fail a test that leaves a thread or a child process behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tests.kit.eventually import eventually
from tests.kit.server import PostgresServer

GRACE = 3.0  # seconds for what was told to end

#: Servers that outlive the test which started them.
session_servers_key = pytest.StashKey[list[PostgresServer]]()

T = TypeVar("T")

#: What Linux says of the threads of this process.
_THREADS = Path("/proc/self/task")


def _children() -> set[int]:
    return {child for child in _child_ids() if _runs(child)}


def _child_ids() -> Iterator[int]:
    if not _THREADS.exists():
        # It reads the parent of each process of the machine.
        yield from (child.pid for child in psutil.Process().children())
        return
    for thread in _THREADS.iterdir():
        with suppress(OSError):  # it has just ended
            yield from map(int, (thread / "children").read_text(encoding="ascii").split())


def _runs(child: int) -> bool:
    try:
        return psutil.Process(child).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class LeakPlugin:
    """The hooks; one object for a session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        config.stash[session_servers_key] = []
        self._threads: set[threading.Thread] = set()
        self._lasting: set[threading.Thread] = set()
        # The children that no test left behind, or that were reported already. Known from one test to
        # the next, as each look takes milliseconds.
        self._processes = _children()

    @contextmanager
    def shared(self, make: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
        """Enter a context; its threads and child processes may outlive the test that enters it."""
        threads, processes = set(threading.enumerate()), _children()
        with make() as entered:
            self._lasting |= set(threading.enumerate()) - threads
            self._processes |= _children() - processes
            yield entered

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        """Remember the threads that run."""
        self._threads = set(threading.enumerate())
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, None, None]:
        """Compare, after every fixture of the test was torn down."""
        yield
        try:
            eventually(lambda: not self._new_threads() and not self._new_processes(), GRACE)
        except AssertionError:
            processes = self._new_processes()
            self._processes |= processes
            left = [f"thread {name!r}" for name in self._new_threads()]
            left += [f"child process {pid}" for pid in processes]
            pytest.fail(f"the test left {', '.join(left)} behind", pytrace=False)

    def _new_threads(self) -> list[str]:
        known = self._threads | self._lasting
        return [t.name for t in threading.enumerate() if t not in known and t.is_alive()]

    def _new_processes(self) -> set[int]:
        expected = self._processes
        for server in self._config.stash[session_servers_key]:
            expected = expected | server.helper_pids
        return _children() - expected


def pytest_configure(config: pytest.Config) -> None:
    """Install the plugin object."""
    if not config.pluginmanager.has_plugin("pgmonkey-leaks"):
        config.pluginmanager.register(LeakPlugin(config), "pgmonkey-leaks")
