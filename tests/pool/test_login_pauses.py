"""Login pauses: a server that locks an account after some wrong logins gets no reason to."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest

from pgmonkey import Registry
from pgmonkey.pool.connect_failure import ConnectFailure
from pgmonkey.pool.login_pauses import FIRST_PAUSE, LONGEST_PAUSE, LoginPauses
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory

REFUSED = ConnectFailure("auth", "password authentication failed")
ACCOUNT, OTHER_ACCOUNT = b"app@server", b"other@server"
LOGIN, NEW_LOGIN = b"old password", b"new password"


# The decisions, with a clock that the test turns.


def test_a_refused_login_is_repeated_after_pauses_that_double_from_one_to_thirty_seconds() -> None:
    """Exactly one attempt is given out at the end of each pause, whoever asks."""
    pauses = LoginPauses()
    assert pauses.claim(ACCOUNT, LOGIN, 0.0) is None
    pauses.refused(ACCOUNT, LOGIN, REFUSED, 0.0)
    now = 0.0
    for pause in (1, 2, 4, 8, 16, 30, 30):
        assert pauses.claim(ACCOUNT, LOGIN, now + pause - 0.001) is REFUSED
        assert pauses.is_paused(ACCOUNT, LOGIN, now + pause - 0.001)
        now += pause
        assert not pauses.is_paused(ACCOUNT, LOGIN, now)
        assert pauses.claim(ACCOUNT, LOGIN, now) is None
        assert pauses.claim(ACCOUNT, LOGIN, now) is REFUSED, "the attempt is another one's"
        pauses.refused(ACCOUNT, LOGIN, REFUSED, now)
    assert (FIRST_PAUSE, LONGEST_PAUSE) == (1, 30)


def test_attempts_that_were_under_way_together_make_one_pause() -> None:
    """Three loops that are refused in the same moment wait for a second, not for four."""
    pauses = LoginPauses()
    for _ in range(3):
        assert pauses.claim(ACCOUNT, LOGIN, 0.0) is None
    for _ in range(3):
        pauses.refused(ACCOUNT, LOGIN, REFUSED, 0.0)
    assert pauses.claim(ACCOUNT, LOGIN, 1.0) is None


def test_a_login_that_was_not_refused_yet_is_tried_at_once() -> None:
    """A rotated secret does not wait for the pause of the old one; both share the next pauses."""
    pauses = LoginPauses()
    pauses.refused(ACCOUNT, LOGIN, REFUSED, 0.0)
    assert pauses.claim(ACCOUNT, NEW_LOGIN, 0.1) is None
    pauses.refused(ACCOUNT, NEW_LOGIN, REFUSED, 0.1)
    assert pauses.claim(ACCOUNT, NEW_LOGIN, 1.1) is None
    assert pauses.claim(ACCOUNT, LOGIN, 1.1) is REFUSED, "the account was asked in this second"
    assert pauses.claim(OTHER_ACCOUNT, LOGIN, 0.1) is None


def test_a_login_that_works_again_ends_the_pause_of_its_account() -> None:
    """The server has changed its mind: others that were refused may try at once, one by one."""
    pauses = LoginPauses()
    for login in (LOGIN, NEW_LOGIN):
        pauses.refused(ACCOUNT, login, REFUSED, 0.0)
    assert pauses.claim(ACCOUNT, LOGIN, 1.0) is None
    pauses.accepted(ACCOUNT, LOGIN)
    assert pauses.claim(ACCOUNT, LOGIN, 1.0) is None
    assert pauses.claim(ACCOUNT, NEW_LOGIN, 1.0) is None
    pauses.refused(ACCOUNT, NEW_LOGIN, REFUSED, 1.0)
    pauses.accepted(ACCOUNT, LOGIN)
    assert pauses.claim(ACCOUNT, NEW_LOGIN, 1.5) is REFUSED, (
        "a login that always worked says nothing"
    )


def test_the_refused_logins_that_are_remembered_are_few() -> None:
    """A password that changes every minute and never works does not fill the memory."""
    pauses = LoginPauses()
    for number in range(1000):
        pauses.refused(ACCOUNT, b"%d" % number, REFUSED, 0.0)
    assert len(pauses._accounts[ACCOUNT].refused) < 100


# The same, counted by the server.


def moments(database: TemporaryDatabase, since: int) -> list[float]:
    """Return when the server refused a login of this database's user, in seconds."""
    text = database.server.log_text()[since:]
    found = re.findall(
        rf'^(\S+ \S+) \S+ .*FATAL:  password authentication failed for user "{database.user}"',
        text,
        re.MULTILINE,
    )
    return [datetime.fromisoformat(one).timestamp() for one in found]


def borrow_again_and_again(handle: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with handle.connection(timeout=0.3) as connection:
                connection.execute("SELECT pg_sleep(0.01)")
        except psycopg.OperationalError:
            stop.wait(0.005)


def borrow_on_a_loop(handle: Any, stop: threading.Event) -> None:
    async def work() -> None:
        while not stop.is_set():
            try:
                async with handle.connection(timeout=0.3) as connection:
                    await connection.execute("SELECT pg_sleep(0.01)")
            except psycopg.OperationalError:
                await asyncio.sleep(0.005)

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(4)))
        await handle.close()

    asyncio.run(main())


def threads_on_a_pool(registry: Registry) -> list[Callable[[threading.Event], None]]:
    handle = registry.get("orders", "pool")
    return [lambda stop: borrow_again_and_again(handle, stop)] * 8


def three_loops(registry: Registry) -> list[Callable[[threading.Event], None]]:
    handle = registry.get("orders", "async_pool")
    return [lambda stop: borrow_on_a_loop(handle, stop)] * 3


def a_background_probe(registry: Registry) -> list[Callable[[threading.Event], None]]:
    def probe(stop: threading.Event) -> None:
        while not stop.wait(0.1):
            registry.probe("orders")

    return [probe]


def everything(registry: Registry) -> list[Callable[[threading.Event], None]]:
    handle = registry.get("orders", "normal")
    return [
        *threads_on_a_pool(registry),
        *three_loops(registry),
        *a_background_probe(registry),
        lambda stop: borrow_again_and_again(handle, stop),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("one_is_alive", [False, True], ids=["all gone", "one alive"])
@pytest.mark.parametrize("clients", [threads_on_a_pool, three_loops, everything])
def test_the_server_is_asked_at_most_once_a_second_and_less_and_less_by_all_of_a_process(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    clients: Callable[[Registry], list[Callable[[threading.Event], None]]],
    one_is_alive: bool,
) -> None:
    """Threads, loops, types and probes share the pause, also while a pool has to replace many.

    Only what was under way when the first was refused may have come in the same moment.
    """
    sizes = {"min_size": 4, "max_size": 4}
    registry_dir.declare("orders", database, pool_settings=sizes, async_pool_settings=sizes)
    stop, release = threading.Event(), threading.Event()
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders")
        work = clients(registry)
        threads = [threading.Thread(target=one, args=(stop,)) for one in work]
        spared: list[int] = []

        def hold() -> None:
            with handle as connection:
                spared.append(connection.info.backend_pid)
                release.wait(60)

        if one_is_alive:
            threads.append(threading.Thread(target=hold))
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(database.backends()) >= 4, 20, "connections are there")
            eventually(lambda: len(spared) == one_is_alive, 20, "one is held")
            database.rotate()
            since = len(database.server.log_text())
            for backend in database.backends():
                if backend["pid"] not in spared:
                    database.execute("SELECT pg_terminate_backend(%s)", backend["pid"])
            eventually(lambda: len(moments(database, since)) >= 3, 30, "it was tried again")
            first = moments(database, since)[0]
            eventually(lambda: moments(database, since)[-1] > first + 2.5, 30, "and once more")
        finally:
            stop.set()
            release.set()
            for thread in threads:
                thread.join()

        first, *others = moments(database, since)
        # As many as five others may have been under way when the first was refused, however late
        # the server came to them; what is left has come after a second, and two, and four.
        assert any(spaced(first, others[number:]) for number in range(6)), [first, *others]


def spaced(first: float, later: list[float]) -> bool:
    pauses = [after - before for before, after in itertools.pairwise(later)]
    return (
        len(later) >= 2
        and later[0] - first >= 0.95 * FIRST_PAUSE
        and all(pause >= 1.9 * FIRST_PAUSE for pause in pauses)
    )
