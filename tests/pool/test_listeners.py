"""`handle.listen()`: every notification once, or a gap that says that some may be missing."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from pgmonkey import (
    ConnectError,
    DatabaseRemovedError,
    Gap,
    HandleClosedError,
    Registry,
    WrongSideError,
)
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.process import in_a_child, interrupted_after
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.server import PostgresServer
from tests.pool.interruption import Interruption, SoftTimeLimit, in_a_thread
from tests.pool.reader import GAP, Reader, reading
from tests.pool.side import Client, Make, takes

#: Of the lines of a rotation, the distance of those that are interrupted; all take too long.
EACH_LINE = 29
#: Seconds of silence after which a listener asks, and for which it waits for the answer.
QUIET = {"keepalives_idle": 1, "keepalives_interval": 1, "connect_timeout": 2}


def notify(database: TemporaryDatabase, payload: str, channel: str = "news") -> None:
    database.execute("SELECT pg_notify(%s, %s)", channel, payload)


def test_notifications_of_all_channels_come_in_their_order(
    make: Make, database: TemporaryDatabase
) -> None:
    """Names of channels are taken as they are: case, quotes and blanks count."""
    channels = ("news", 'Mixed "case"', "später")
    with reading(make(), *channels) as reader:
        for number, channel in enumerate((*channels, "another", *channels)):
            notify(database, str(number), channel)
        reader.has("0", "1", "2", "4", "5", "6")
        assert [one.channel for one in reader.got] == [*channels, *channels]


def test_the_wait_has_a_timeout_and_a_number(make: Make, database: TemporaryDatabase) -> None:
    """`notifies()` ends as psycopg's does, and what comes later is for the next call."""
    client = make()

    async def read_async() -> list[Any]:
        async with client.handle.listen("news") as notes:
            nothing = [note async for note in notes.notifies(timeout=0.1)]
            for number in range(3):
                await asyncio.to_thread(notify, database, str(number))
            two = [note.payload async for note in notes.notifies(stop_after=2)]
            none = [note async for note in notes.notifies(stop_after=0)]
            rest = [note.payload async for note in notes.notifies(timeout=0.3)]
            await asyncio.to_thread(notify, database, "3")
            await asyncio.sleep(0.05)
            polled = [note.payload async for note in notes.notifies(timeout=0)]
        return [nothing, two, none, rest, polled]

    def read() -> list[Any]:
        with client.handle.listen("news") as notes:
            nothing = list(notes.notifies(timeout=0.1))
            for number in range(3):
                notify(database, str(number))
            two = [note.payload for note in notes.notifies(stop_after=2)]
            none = list(notes.notifies(stop_after=0))
            rest = [note.payload for note in notes.notifies(timeout=0.3)]
            notify(database, "3")
            polled = [note.payload for note in notes.notifies(timeout=0)]
        return [nothing, two, none, rest, polled]

    *found, polled = client._run(read_async()) if client.is_async else read()
    assert found == [[], ["0", "1"], [], ["2"]]
    assert polled in ([], ["3"])  # the network may need a moment


def test_a_listener_has_a_connection_of_its_own(make: Make, database: TemporaryDatabase) -> None:
    """It takes no place of the pool, shows in the status, and is closed when its block is left."""
    client = make(pool={"min_size": 0, "max_size": 1})
    with reading(client) as one, reading(client) as two:
        assert client.ask() == 1
        status = client.handle.status()
        assert (status.listeners, status.idle, status.used) == (2, 1, 0)
        notify(database, "tea")
        one.has("tea")
        two.has("tea")
        client.shut()
        one.ended.result(5)
        two.ended.result(5)
    assert client.handle.status().listeners == 0
    eventually(lambda: database.backends() == [], message="all is closed")


def redeclare(registry_dir: RegistryDirectory, database: TemporaryDatabase, name: str) -> None:
    """Change the file, so that connections are replaced."""
    text = registry_dir.file("orders").read_text()
    lines = [line for line in text.splitlines() if "application_name" not in line]
    at = lines.index("connection_settings:") + 1
    registry_dir.write(
        "orders", "\n".join([*lines[:at], f"  application_name: {name}", *lines[at:]])
    )


@pytest.mark.parametrize("opened", [False, True], ids=["only listens", "pool is open"])
def test_a_rotation_loses_and_doubles_nothing(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase, opened: bool
) -> None:
    """Under a steady stream of notifications, over five rotations, each comes once, in order."""
    client = make()
    if opened:
        client.ask()
    over = threading.Event()
    sent: list[str] = []

    def send() -> None:
        with database.connect(autocommit=True) as connection:
            while not over.is_set():
                connection.execute("SELECT pg_notify('news', %s)", [str(len(sent))])
                sent.append(str(len(sent)))

    with reading(client) as reader:
        sender = threading.Thread(target=send)
        sender.start()
        try:
            for number in range(5):
                redeclare(registry_dir, database, f"v{number}")
                client.registry.reload()
                assert client.registry.wait_drained(10)
                assert f"v{number}" in {one["application_name"] for one in database.backends()}
        finally:
            over.set()
            sender.join()
        eventually(lambda: len(reader.payloads) >= len(sent), 10, "all are read")
        assert reader.payloads == sent
        assert client.handle.status().version == 6


def test_a_listener_that_is_not_read_moves_at_its_next_read(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """What came before and after the rotation is read, and the old connection drains then."""
    client = make()

    def rotate() -> None:
        notify(database, "before")
        redeclare(registry_dir, database, "new")
        client.registry.reload()
        notify(database, "after")
        assert not client.registry.wait_drained(0.1)

    async def read_async() -> list[str]:
        async with client.handle.listen("news") as notes:
            await asyncio.to_thread(rotate)
            return [(await anext(notes)).payload, (await anext(notes)).payload]

    def read() -> list[str]:
        with client.handle.listen("news") as notes:
            rotate()
            return [next(notes).payload, next(notes).payload]

    assert (client._run(read_async()) if client.is_async else read()) == ["before", "after"]
    assert client.registry.wait_drained(10)


def test_files_that_do_not_work_change_nothing(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A new configuration that cannot connect is rejected, also if there is only a listener."""
    client = make()
    with reading(client) as reader:
        redeclare(registry_dir, database, "new")
        text = registry_dir.file("orders").read_text()
        registry_dir.write("orders", text.replace(database.name, "nowhere"))
        assert "orders" in client.registry.reload().rejected
        notify(database, "tea")
        reader.has("tea")


def test_another_database_comes_after_a_gap(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase, server: PostgresServer
) -> None:
    """Where a new configuration leads elsewhere, the reader is told, and hears what is there."""
    client = make()
    server.execute(f"CREATE DATABASE {database.name}_two OWNER {database.user}")
    try:
        with reading(client) as reader:
            notify(database, "here")
            reader.has("here")
            text = registry_dir.file("orders").read_text()
            registry_dir.write(
                "orders", text.replace(f"dbname: {database.name}", f"dbname: {database.name}_two")
            )
            client.registry.reload()
            with takes(0.5):  # it waits for no mark of the old one
                reader.has("here", GAP)
            server.execute("NOTIFY news, 'there'", dbname=f"{database.name}_two")
            reader.has("here", GAP, "there")
        client.shut()
    finally:
        server.drop_database(f"{database.name}_two")


def test_without_room_for_two_a_rotation_leaves_a_gap(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """The old connection makes room for the new one."""
    one = {"min_size": 1, "max_size": 1}
    registry_dir.declare(
        "orders", database, connection_type, pool_settings=one, async_pool_settings=one
    )
    with Registry(registry_dir, metrics=None, watch=False, max_connections=2) as registry:
        client = Client(registry)
        client.ask()
        with reading(client) as reader:
            redeclare(registry_dir, database, "new")
            registry.reload()
            reader.has(GAP)
            notify(database, "tea")
            reader.has(GAP, "tea")
            eventually(
                lambda: {one["application_name"] for one in database.backends()} == {"new"},
                message="only the new connection is left",
            )
        client.close()


def test_a_lost_connection_leaves_a_gap(
    make: Make, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """What came before is read first; the gap comes when it listens again."""
    with reading(make()) as reader:
        notify(database, "before")
        database.terminate_backends()
        reader.has("before", GAP)
        notify(database, "after")
        reader.has("before", GAP, "after")
        gap = next(one for one in reader.got if isinstance(one, Gap))
        assert "terminat" in gap.reason or "closed" in gap.reason
        assert 0 <= gap.seconds < 10
    event = events.wait("listen.resumed")
    assert event["channels"] == ["news"]
    assert event["error"] == gap.reason


@pytest.mark.slow
def test_a_listener_survives_a_restart_of_the_server(
    make: Make, database: TemporaryDatabase, server: PostgresServer, events: CapturedEvents
) -> None:
    """While the server is down its reader waits; it listens again as soon as the server accepts."""
    with reading(make()) as reader:
        server.stop("immediate")
        events.wait("connect.failed")
        server.start()
        with takes(3):
            reader.has(GAP)
        notify(database, "tea")
        reader.has(GAP, "tea")
    assert len(events.named("connect.failed")) == 1
    assert events.named("connect.recovered")


@contextmanager
def both_sides(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy, **settings: Any
) -> Iterator[list[Client]]:
    """A sync and an async client of one registry, for tests that wait: both wait at once."""
    address = {"host": proxy.host, "port": proxy.port} | settings
    registry_dir.declare("orders", database, "pool", connection=address)
    registry_dir.declare("events", database, "async_pool", connection=address)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        clients = [Client(registry, "orders"), Client(registry, "events")]
        yield clients
        for client in clients:
            client.close()


@pytest.mark.slow
def test_a_silent_network_is_found(
    registry_dir: RegistryDirectory, proxy: ChaosProxy, database: TemporaryDatabase
) -> None:
    """A quiet server is asked for a sign of life. If it gives none, it is a gap."""
    with both_sides(registry_dir, database, proxy, **QUIET) as clients, ExitStack() as stack:
        readers = [stack.enter_context(reading(client)) for client in clients]
        asked = proxy.round_trips
        eventually(lambda: proxy.round_trips >= asked + 2, 10, "both asked, and have an answer")
        notify(database, "tea")
        for reader in readers:
            reader.has("tea")
        proxy.set("lost")
        proxy.set("pass")  # for new connections
        for reader in readers:
            reader.has("tea", GAP)
            assert reader.got[-1].reason == "no sign of life within 1 s"
        notify(database, "cake")
        for reader in readers:
            reader.has("tea", GAP, "cake")


def test_many_listeners_of_one_handle(
    make: Make, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """Five readers lose their connections at once: one after the other listens again."""
    client = make()
    with ExitStack() as stack:
        readers = [stack.enter_context(reading(client)) for _ in range(5)]
        database.terminate_backends()
        for reader in readers:
            reader.has(GAP)
        notify(database, "tea")
        for reader in readers:
            reader.has(GAP, "tea")
    assert not events.named("connect.failed")


@pytest.mark.parametrize("what", ["registry", "handle", "listener"])
def test_a_close_ends_the_iteration(make: Make, database: TemporaryDatabase, what: str) -> None:
    """A reader that waits comes to its end, without an error, and no connection is left."""
    client = make()
    reader = Reader(client)
    if what == "registry":
        client.registry.close()
    elif what == "handle":
        client.shut()
    else:
        reader.listener.stop()
    reader.ended.result(5)
    eventually(lambda: database.backends() == [], message="all is closed")


def test_an_outage_is_paced_and_a_close_ends_it(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    events: CapturedEvents,
) -> None:
    """However many listen, their handle connects with the pauses of one pool, and stops at once."""
    with both_sides(registry_dir, database, proxy) as clients:

        def failed(number: int) -> bool:
            statuses = [client.handle.status() for client in clients]
            return all(status.connect_failures["refused"] >= number for status in statuses)

        readers = [Reader(client) for client in clients for _ in range(3)]
        proxy.set("refuse")
        proxy.kill()
        began = time.monotonic()
        eventually(lambda: failed(4), 20, "four have failed")
        # The pauses before them are 0.1, 0.2 and 0.4 seconds, up to a fifth shorter.
        assert time.monotonic() - began > 0.8 * 0.7 - 0.1
        assert {one.handle.status().last_failure_reason for one in clients} == {"refused"}
        assert len(events.named("connect.failed")) == 2
        clients[0].registry.close()
        with takes(2):
            for reader in readers:
                reader.ended.result(10)


def test_who_enters_waits_for_others_no_longer_than_its_timeout(
    make: Make, proxy: ChaosProxy
) -> None:
    """However many enter at once while the server is silent: they connect one after the other."""
    client = make(through=proxy)
    proxy.set("blackhole")

    def enter() -> Any:
        with pytest.raises(ConnectError) as caught:
            Reader(client, timeout=0.2)
        return caught.value.reason

    with ThreadPoolExecutor(4) as threads:
        entering = [threads.submit(enter) for _ in range(4)]
        with takes(0.2):
            eventually(lambda: sum(one.done() for one in entering) == 3, 10, "others gave up")
        proxy.kill()  # so that the first one does not wait for its connect_timeout
        reasons = sorted(one.result() for one in entering)
        assert reasons[1:] == ["timeout"] * 3


def test_a_stop_before_the_block_is_entered_counts(make: Make, database: TemporaryDatabase) -> None:
    """A program may end before its reader has begun."""
    client = make()
    notes: Any = client.handle.listen("news")
    notes.stop()

    async def read_async() -> list[Any]:
        async with notes:
            return [note async for note in notes]

    def read() -> list[Any]:
        with notes:
            return list(notes)

    assert (client._run(read_async()) if client.is_async else read()) == []
    database.assert_unused()


def test_a_close_reaches_a_reader_that_is_busy(make: Make, database: TemporaryDatabase) -> None:
    """The connection is closed at once, and the next look of the reader finds the end."""
    client = make()

    def close() -> None:
        client.registry.close()
        assert client.handle.status().listeners == 0
        eventually(lambda: database.backends() == [], message="all is closed")

    async def read_async() -> list[Any]:
        async with client.handle.listen("news") as notes:
            await asyncio.to_thread(close)
            return [note async for note in notes]

    def read() -> list[Any]:
        with client.handle.listen("news") as notes:
            close()
            return list(notes)

    assert (client._run(read_async()) if client.is_async else read()) == []
    with pytest.raises(HandleClosedError):
        Reader(client)


def test_a_removed_database_raises(make: Make, registry_dir: RegistryDirectory) -> None:
    """The reader gets the error that a checkout would get."""
    client = make()
    reader = Reader(client)
    registry_dir.remove("orders")
    registry_dir.write("other", "connection_settings: {host: h, dbname: d, user: u}")
    client.registry.reload()
    with pytest.raises(DatabaseRemovedError):
        reader.ended.result(10)


def test_entering_raises_within_its_timeout(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """A refused connect is tried until the timeout, a refused login raises at once."""
    client = make(through=proxy)
    proxy.set("refuse")
    with takes(0.5), pytest.raises(ConnectError) as caught:
        Reader(client, timeout=0.5)
    assert caught.value.reason == "refused"
    assert client.handle.status().last_failure_reason is None, "nothing listens any more"
    proxy.set("pass")
    database.rotate()
    with takes(1), pytest.raises(ConnectError) as caught:
        Reader(client, timeout=10)
    assert caught.value.reason == "auth"
    assert client.handle.status().listeners == 0


def test_a_new_password_in_the_files_is_found(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The password changes at the server, then in the files, while a listener is cut off."""
    client = make()
    before = database.password
    with reading(client) as reader:
        database.rotate()
        database.terminate_backends()
        text = registry_dir.file("orders").read_text()
        registry_dir.write("orders", text.replace(before, database.password))
        reader.has(GAP)
        notify(database, "tea")
        reader.has(GAP, "tea")


def test_max_connections_counts_listeners(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """A listener without room waits for it until its timeout, and its place is free afterwards."""
    registry_dir.declare("orders", database, connection_type)
    with Registry(registry_dir, metrics=None, watch=False, max_connections=1) as registry:
        client = Client(registry)
        with reading(client):
            with pytest.raises(ConnectError, match="orders/listen 1") as caught:
                Reader(client, timeout=0.1)
            assert caught.value.reason == "too_many_connections"
        with reading(client):
            pass
        client.close()


def test_wrong_uses_say_what_is_right(make: Make) -> None:
    """The other side's `with`, no channel, a channel that a server cuts, reading without entering."""
    client = make()
    notes: Any = client.handle.listen("news")
    right = "async with" if client.is_async else "with"
    with pytest.raises(WrongSideError, match=f'use `{right} registry.get."orders".*as notes'):
        if client.is_async:
            notes.__enter__()
        else:
            notes.__aenter__()
    for channels in ((), ("",), ("a\0b",), ("ä" * 32,)):
        with pytest.raises(ValueError, match="channel"):
            client.handle.listen(*channels)
    with pytest.raises(TypeError, match="a channel is a str"):
        client.handle.listen(1)
    with pytest.raises(RuntimeError, match="not entered"):
        client._run(anext(notes)) if client.is_async else next(notes)
    with reading(client) as reader:
        pass
    enter = reader.listener.__aenter__ if client.is_async else reader.listener.__enter__
    with pytest.raises(RuntimeError, match="can be entered once"):
        client.on(enter)


def test_a_pooler_that_cannot_listen_is_refused(make: Make) -> None:
    """PgBouncer would take the LISTEN, and the reader would hear nothing."""
    client = make(pooler="pgbouncer")
    with takes(1), pytest.raises(ConnectError, match="PgBouncer .* cannot LISTEN") as caught:
        Reader(client, timeout=10)
    assert caught.value.reason == "setting"


# What only one side has


async def test_a_wait_that_is_cancelled_loses_nothing(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A listener can be read with `asyncio.timeout`, again and again."""
    registry_dir.declare("orders", database, "async_pool")
    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        async with registry.get("orders").listen("news") as notes:
            got: list[str] = []
            for number in range(50):
                if number % 10 == 0:
                    await asyncio.to_thread(notify, database, str(number))
                try:
                    async with asyncio.timeout(0.002):
                        got.append((await anext(notes)).payload)
                except TimeoutError:
                    pass
            got += [note.payload async for note in notes.notifies(timeout=0.3)]
            assert got == [str(number) for number in range(0, 50, 10)]


async def test_a_cancelled_reader_leaves_nothing(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The task ends as cancelled, and its connection is closed."""
    registry_dir.declare("orders", database, "async_pool")

    async def read(registry: Registry) -> None:
        async with registry.get("orders").listen("news") as notes:
            async for _ in notes:
                pass

    async with Registry(registry_dir, metrics=None, watch=False) as registry:
        reader = asyncio.create_task(read(registry))
        await aeventually(database.backends)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await aeventually(lambda: not database.backends())


def test_a_loop_that_ends_takes_its_listeners_along(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The block was never left, and its loop is closed: the connection is closed soon."""
    registry_dir.declare("orders", database, "async_pool")
    kept: list[Any] = []

    async def enter(registry: Registry) -> None:
        kept.append(await registry.get("orders").listen("news").__aenter__())

    with Registry(registry_dir, metrics=None) as registry:
        asyncio.run(enter(registry))
        eventually(lambda: not database.backends(), message="it is closed")
        eventually(lambda: registry.get("orders").status().listeners == 0)


def test_a_dropped_listener_is_closed(make: Make, database: TemporaryDatabase) -> None:
    """A listener whose block was not left is closed when no code refers to it any more."""
    client = make()
    notes: Any = client.handle.listen("news")
    client._run(notes.__aenter__()) if client.is_async else notes.__enter__()
    assert database.backends()
    del notes
    gc.collect()
    eventually(lambda: not database.backends(), message="it is closed")
    assert client.handle.status().listeners == 0


def test_an_interrupted_wait_loses_nothing(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Ctrl-C ends the wait at once; who goes on to read gets what has come."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        with registry.get("orders").listen("news") as notes:
            with pytest.raises(KeyboardInterrupt), interrupted_after(0.2, KeyboardInterrupt):
                next(notes)
            notify(database, "tea")
            note = next(notes)
            assert not isinstance(note, Gap)
            assert note.payload == "tea"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of connects that were interrupted
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_of_a_rotation_loses_nothing_unnoticed(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Where a notification is missing there is a gap, none comes twice, and one connection is left."""
    registry_dir.declare("orders", database)
    got: list[Any] = []
    sent = itertools.count()

    def read() -> None:
        with registry.get("orders").listen("news") as notes:
            for line in itertools.count(1, EACH_LINE):
                notify(database, str(next(sent)))
                registry.get("orders", force_reload=True)
                notify(database, last := str(next(sent)))
                interruption = Interruption(line, SoftTimeLimit, __file__)
                with suppress(SoftTimeLimit), interruption:
                    while not is_last(last):
                        got.append(next(notes))
                while not is_last(last):
                    got.append(next(notes))
                at = interruption.at
                eventually(lambda: len(database.backends()) == 1, 5, f"one left: {at}")
                if not at:
                    return

    def is_last(payload: str) -> bool:
        return bool(got) and (isinstance(got[-1], Gap) or got[-1].payload == payload)

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        in_a_thread(read)
    numbers = [None if isinstance(one, Gap) else int(one.payload) for one in got]
    known = [number for number in numbers if number is not None]
    assert known == sorted(set(known))
    assert all(
        after is None or before is None or after == before + 1
        for before, after in itertools.pairwise(numbers)
    )


def test_one_thread_at_a_time_reads(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A second reader of the same listener is told to make its own."""
    registry_dir.declare("orders", database)

    def is_refused() -> bool:
        try:
            return bool(list(notes.notifies(timeout=0)))
        except RuntimeError as error:
            return "has a reader already" in str(error)

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        with registry.get("orders").listen("news") as notes:
            thread = threading.Thread(target=lambda: list(notes))
            thread.start()
            eventually(is_refused)
            notes.stop()
            thread.join()


def test_a_child_process_leaves_its_parents_listener_alone(
    make: Make, database: TemporaryDatabase
) -> None:
    """The child is told to make its own, which works; the parent goes on."""
    client = make()
    notes: Any = client.handle.listen("news")
    client._run(notes.__aenter__()) if client.is_async else notes.__enter__()

    def child() -> str:
        async def read_async() -> str:
            with pytest.raises(HandleClosedError, match="belongs to the parent"):
                await anext(notes)
            await notes.__aexit__(None, None, None)
            async with client.handle.listen("news") as own:
                await asyncio.to_thread(notify, database, "child")
                return (await anext(own)).payload

        if client.is_async:
            return asyncio.run(read_async())
        with pytest.raises(HandleClosedError, match="belongs to the parent"):
            next(notes)
        notes.__exit__(None, None, None)
        with client.handle.listen("news") as own:
            notify(database, "child")
            return str(next(own).payload)

    assert in_a_child(child) == "child"
    note = client._run(anext(notes)) if client.is_async else next(notes)
    assert note.payload == "child"
    client._run(notes.__aexit__(None, None, None)) if client.is_async else notes.__exit__(
        None, None, None
    )
