"""When to connect again: after an outage, and after a login that the server refused."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgmonkey import Registry
from pgmonkey.pool.connecting import Outage, RefusedLogins
from pgmonkey.pool.failures import ConnectFailure
from tests.kit.database import TemporaryDatabase
from tests.kit.dictionaries import config_from_dict
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.conftest import Clock

WRONG = ConnectFailure("auth", "password authentication failed", wrong_password=True)
NO_LOGIN = ConnectFailure("auth", "role is not permitted to log in")
NO_DATABASE = ConnectFailure("no_database", "database does not exist")


def login(password: str = "tea", *, user: str = "app", dbname: str = "orders"):
    return config_from_dict(
        {
            "connection_settings": {
                "host": "db",
                "user": user,
                "dbname": dbname,
                "password": password,
            }
        }
    )


OLD, NEW, OTHER = login("old"), login("new"), login("old", user="other")


# The decisions, with a clock that the test turns.


def test_a_wrong_password_is_repeated_after_pauses_that_double_from_one_to_thirty_seconds(
    clock: Clock,
) -> None:
    """Exactly one try is given out at the end of each pause, however many ask."""
    logins = RefusedLogins()
    assert logins.claim(OLD) is None
    logins.refused(OLD, WRONG)
    for pause in (1, 2, 4, 8, 16, 30, 30):
        clock.now += pause - 0.001
        assert logins.claim(OLD) is WRONG
        assert logins.paused(OLD) is WRONG
        clock.now += 0.002
        assert logins.paused(OLD) is None
        assert logins.claim(OLD) is None
        assert logins.claim(OLD) is WRONG, "the try is another one's"
        logins.refused(OLD, WRONG)


@pytest.mark.parametrize(
    "failure",
    [
        NO_LOGIN,
        NO_DATABASE,
        ConnectFailure("hba", "no pg_hba.conf entry"),
        ConnectFailure("tls", "certificate verify failed"),
        ConnectFailure("setting", "unrecognized configuration parameter"),
    ],
)
def test_what_locks_no_account_is_tried_again_each_second(
    clock: Clock, failure: ConnectFailure
) -> None:
    """A database that is created again, or a role that may log in again, is found within two."""
    logins = RefusedLogins()
    logins.refused(OLD, failure)
    for _ in range(100):
        clock.now += 0.999
        assert logins.paused(OLD) is failure
        assert logins.claim(OLD) is failure
        clock.now += 0.002
        assert logins.paused(OLD) is None
        assert logins.claim(OLD) is None
        assert logins.claim(OLD) is failure, "the try is another one's"
        logins.refused(OLD, failure)


def test_a_database_that_does_not_exist_does_not_hasten_wrong_passwords(clock: Clock) -> None:
    """Of two databases of one account, one has a wrong password: that is not tried more often."""
    logins = RefusedLogins()
    missing = login("new", dbname="audit")
    tried = 0
    logins.refused(OLD, WRONG)
    logins.refused(missing, NO_DATABASE)
    for _ in range(60):
        clock.now += 1.001
        if logins.claim(OLD) is None:
            tried += 1
            logins.refused(OLD, WRONG)
        assert logins.claim(missing) is None
        logins.refused(missing, NO_DATABASE)
    assert tried == 5, "after 1, 2, 4, 8 and 16 seconds"


def test_tries_that_were_under_way_together_make_one_pause(clock: Clock) -> None:
    """Three loops that are refused in the same moment wait for a second, not for four."""
    logins = RefusedLogins()
    for _ in range(3):
        assert logins.claim(OLD) is None
    for _ in range(3):
        logins.refused(OLD, WRONG)
    clock.now += 1
    assert logins.claim(OLD) is None


def test_a_login_that_was_not_refused_yet_is_tried_at_once(clock: Clock) -> None:
    """A rotated secret does not wait for the pause of the old one; both share the next pauses."""
    logins = RefusedLogins()
    logins.refused(OLD, WRONG)
    clock.now += 0.1
    assert logins.claim(NEW) is None
    logins.refused(NEW, WRONG)
    clock.now += 1
    assert logins.claim(NEW) is None
    assert logins.claim(OLD) is WRONG, "the account was asked in this second"
    assert logins.claim(OTHER) is None


def test_a_login_that_works_again_ends_the_pause_of_its_account(clock: Clock) -> None:
    """The server has changed its mind: others that were refused may try at once, one by one."""
    logins = RefusedLogins()
    for one in (OLD, NEW):
        logins.refused(one, WRONG)
    clock.now += 1
    assert logins.claim(OLD) is None
    logins.accepted(OLD)
    assert logins.paused(NEW) is None
    assert logins.claim(OLD) is None
    assert logins.claim(NEW) is None
    logins.refused(NEW, WRONG)
    logins.accepted(OLD)
    clock.now += 0.5
    assert logins.claim(NEW) is WRONG, "a login that always worked says nothing"


def test_a_child_process_remembers_what_was_refused(clock: Clock) -> None:
    """Ten workers that are forked do not each try the wrong password at once."""
    logins = RefusedLogins()
    logins.refused(OLD, WRONG)
    logins._lock.acquire()  # another thread of the parent had it
    logins.reset()
    assert logins.claim(OLD) is WRONG


def test_the_refused_logins_that_are_remembered_are_few() -> None:
    """A password that changes every minute and never works does not fill the memory."""
    logins = RefusedLogins()
    one = login()
    many = [copy_with(one, connect_digest=b"%d" % number) for number in range(1000)]
    for each in many:
        logins.refused(each, WRONG)
    assert sum(logins.paused(each) is not None for each in many) < 100


def copy_with(config: Any, **values: Any) -> Any:
    return SimpleNamespace(account=config.account, **values)


# The outage of one pool.


def test_the_pauses_of_an_outage_double_from_a_tenth_of_a_second_to_one(clock: Clock) -> None:
    """A pool tries soon, then each second, a little off so that pools do not try in step."""
    outage = Outage()
    assert outage.pause_left() == 0.0
    for pause in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        outage.failed(ConnectFailure("refused", "connection refused"))
        assert 0.8 * pause <= outage.pause_left() <= pause
        clock.now += pause
        assert outage.pause_left() == 0.0


def test_on_a_full_server_who_has_no_connection_asks_more_often(clock: Clock) -> None:
    """Up to twice a second; who has some waits a second or two, and is not thrown back by that."""
    full = ConnectFailure("too_many_connections", "sorry, too many clients already")
    outage = Outage()
    for pause in (0.1, 0.2, 0.4, 0.5, 0.5):
        outage.failed(full, 0)
        assert 0.8 * pause <= outage.pause_left() <= pause
        clock.now += pause
    outage.failed(full, 1)
    assert 1.0 <= outage.pause_left() <= 2.0
    outage.ended()
    outage.failed(full, 0)
    assert outage.pause_left() <= 0.1


def test_an_outage_begins_once_and_ends_with_its_length(clock: Clock) -> None:
    """It begins with the first failure; a connect that works ends it once."""
    outage = Outage()
    assert outage.ended() is None
    assert outage.failed(ConnectFailure("refused", "connection refused"))
    assert not outage.failed(ConnectFailure("timeout", "timed out"))
    assert outage.failure == ConnectFailure("timeout", "timed out")
    clock.now += 5
    assert outage.ended() == 5
    assert outage.ended() is None
    assert outage.failure is None
    assert outage.pause_left() == 0.0


def test_a_full_server_is_reported_once_a_minute_and_another_failure_at_once(clock: Clock) -> None:
    """Processes that share a server are refused again and again; what is no news is not reported."""
    full = ConnectFailure("too_many_connections", "sorry, too many clients already")
    outage = Outage()
    assert outage.failed(full)
    assert outage.ended() is not None
    assert not outage.failed(full)
    assert outage.ended() is None
    assert not outage.failed(full)
    assert outage.failed(ConnectFailure("refused", "connection refused"))
    assert outage.ended() is not None
    assert outage.failed(full)
    assert outage.ended() is not None
    clock.now += 59
    assert not outage.failed(full)
    clock.now += 1
    assert outage.failed(full)
    assert outage.ended() == 1


def test_a_changed_configuration_is_tried_at_once(clock: Clock) -> None:
    """The pause and the reason are of the old one; the outage goes on until a connect works."""
    outage = Outage()
    for _ in range(5):
        outage.failed(NO_DATABASE)
    outage.retry()
    assert outage.failure is None
    assert outage.pause_left() == 0.0
    assert not outage.failed(NO_DATABASE)
    assert outage.pause_left() <= 0.1


# Wrong passwords, counted by the server.


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
    return len(later) >= 2 and later[0] - first >= 0.95 and all(pause >= 1.9 for pause in pauses)
