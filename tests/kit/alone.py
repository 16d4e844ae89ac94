"""Let tests that bound durations run alone, while the others run side by side in several workers.

A bound of real time (recovery within two seconds, an answer within 100 milliseconds) is a promise of
a machine that does nothing else. A test that has one is marked `alone`: it waits until the tests of
the other workers are through, and they wait for it. Such tests come first, one after the other in the
same worker: at any other time, the processors would be idle until the longest of what runs has ended.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import pytest


class Controller:
    """Give all workers of one run the same place for their locks."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="pgmonkey-tests-")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker, before it starts."""
        node.workerinput["room"] = self._directory

    def pytest_unconfigure(self) -> None:
        """Remove the locks after the run."""
        shutil.rmtree(self._directory)


class Room:
    """Let a worker's tests in: one that is alone, or any number of others.

    Args:
        directory: Where the locks are.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "room"
        # Held while waiting for the room, so that those who come later do not enter before one
        # that waits to be alone.
        self._door = directory / "door"
        # Held by every test that runs: shared, or exclusively by one that is alone.
        self._room: IO[str] | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the tests that are alone before all others; the first worker gets them."""
        items.sort(key=lambda item: not _is_alone(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Run the test when the room is free for it; its time limit begins after that."""
        if self._room is None:
            self._room = self._enter(alone=_is_alone(item))
        try:
            return (yield)
        finally:
            stays = nextitem is not None and _is_alone(item) and _is_alone(nextitem)
            if not stays:
                self._room.close()
                self._room = None

    def _enter(self, *, alone: bool) -> IO[str]:
        room = self._path.open("a")
        with self._door.open("a") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return room


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def pytest_configure(config: pytest.Config) -> None:
    """Install what a controller or a worker of pytest-xdist needs; nothing without it."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.pluginmanager.register(Room(Path(workerinput["room"])), "pgmonkey-room")
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(Controller(), "pgmonkey-room-controller")
