"""Load a config again and again while its secrets are replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.errors import ConfigError
from tests.kit.eventually import eventually


def assert_pairs(
    write: Callable[[int], object], load: Callable[[], DatabaseConfig], *, states: int
) -> None:
    """Check that every config has a user and a password of one state.

    Args:
        write: Replaces the secrets by those of a state: the user `u7` with the password `p7`.
        load: Makes a config.
        states: How many of them must be seen.
    """
    stop = threading.Event()
    write(0)

    def swap() -> None:
        number = 0
        while not stop.is_set():
            write(number := number + 1)

    seen: set[str] = set()

    def enough() -> bool:
        try:
            kwargs = load().connect_kwargs("normal")
        except ConfigError as error:
            if error.problems[0].code != "secret.moving":  # replaced 8 times while it was read
                raise
            return False
        assert kwargs["user"][1:] == kwargs["password"][1:]
        seen.add(kwargs["user"])
        return len(seen) > states

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        eventually(enough, timeout=30)
    finally:
        stop.set()
        thread.join()
