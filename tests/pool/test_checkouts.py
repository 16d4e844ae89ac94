"""Checkouts of sync handles."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from pgmonkey import (
    CheckoutTimeout,
    ConnectError,
    NestedCheckoutError,
    Registry,
    TooManyWaiting,
    WrongSideError,
)
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import FRESH


@pytest.fixture
def registry(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Registry]:
    """A registry with a pool of four, a single connection, and a table to write to."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    sizes = {"min_size": 1, "max_size": 4}
    registry_dir.declare("orders", database, "pool", pool_settings=sizes)
    registry_dir.declare("single", database, "normal", timeout="2s")
    registry_dir.declare("events", database, "async_pool", async_pool_settings=sizes)
    with Registry(registry_dir, metrics=None) as registry:
        yield registry


def rows(database: TemporaryDatabase) -> list[int]:
    return sorted(row[0] for row in database.execute("SELECT id FROM public.rows"))


def backend(connection: psycopg.Connection[Any]) -> int:
    return connection.info.backend_pid


def test_get_returns_one_object_and_connects_to_nothing(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """`get` gives the same handle each time and opens no connection and no thread."""
    threads = threading.active_count()
    handle = registry.get("orders")

    assert handle is registry.get("orders")
    assert handle is registry["orders"]
    assert registry.get("orders", "normal") is not handle
    assert registry.get("orders", "normal") is registry.get("orders", "normal")
    assert threads == threading.active_count()
    assert database.backends() == []


@pytest.mark.parametrize("name", ["orders", "single"])
def test_a_block_yields_psycopgs_own_connection_and_commits(
    registry: Registry, database: TemporaryDatabase, name: str
) -> None:
    """What `with` gives is a psycopg.Connection, idle; a block that succeeds is committed."""
    with registry.get(name) as connection:
        assert isinstance(connection, psycopg.Connection)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        connection.execute("INSERT INTO rows VALUES (1)")

    assert rows(database) == [1]


@pytest.mark.parametrize("name", ["orders", "single"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_block_that_raises_is_rolled_back_and_its_exception_arrives(
    registry: Registry, database: TemporaryDatabase, name: str, error: type[BaseException]
) -> None:
    """Whatever leaves the block rolls back its work and reaches the caller; the handle goes on."""
    handle = registry.get(name)
    with pytest.raises(error), handle as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        raise error

    with handle as connection:
        connection.execute("INSERT INTO rows VALUES (2)")
    assert rows(database) == [2]


def test_the_exception_of_the_block_wins_over_that_of_a_failed_rollback(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """When the server is gone at rollback, the caller still sees what went wrong in the block."""
    with pytest.raises(ValueError, match="mine"), registry.get("orders") as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        database.terminate_backends()
        raise ValueError("mine")

    with registry.get("orders") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_connection_that_broke_unnoticed_does_not_pass_for_a_commit(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """A block that swallows the loss of its connection still hears that nothing was committed."""
    with pytest.raises(psycopg.OperationalError), registry.get("orders") as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        database.terminate_backends()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")

    assert rows(database) == []


def test_a_connection_that_the_block_closes_is_replaced(registry: Registry) -> None:
    """A block may close its connection: that is no error, and the next one gets another."""
    for name in ("orders", "single"):
        with registry.get(name) as connection:
            connection.execute("SELECT 1")
            connection.close()
        with registry.get(name) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_nested_blocks_are_checkouts_of_their_own(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """The inner block of one thread has another connection, and neither disturbs the other."""
    handle = registry.get("orders")
    with handle as outer:
        outer.execute("INSERT INTO rows VALUES (1)")
        with pytest.raises(ValueError, match="inner"), handle as inner:
            assert backend(inner) != backend(outer)
            inner.execute("INSERT INTO rows VALUES (2)")
            raise ValueError("inner")
        outer.execute("INSERT INTO rows VALUES (3)")

    assert rows(database) == [1, 3]


def test_nesting_a_single_connection_is_refused_at_once(registry: Registry) -> None:
    """A `normal` handle inside its own block raises and says where the outer one was borrowed."""
    handle = registry.get("single")
    with handle as outer:
        with pytest.raises(NestedCheckoutError, match="test_checkouts.py"), handle:
            pass
        assert outer.execute("SELECT 1").fetchone() == (1,)


def test_threads_take_turns_on_a_single_connection(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """Eight threads on a `normal` handle wait for each other; all commit, on one backend."""
    handle = registry.get("single")
    backends: set[int] = set()

    def work(number: int) -> None:
        with handle.connection(timeout=20) as connection:
            backends.add(backend(connection))
            connection.execute("INSERT INTO rows VALUES (%s)", [number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert rows(database) == list(range(8))
    assert len(backends) == 1


def test_suspended_generators_may_leave_in_any_order(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """Blocks that end out of order, as suspended generators do, each end their own checkout."""
    handle = registry.get("orders")

    @contextmanager
    def borrowed(number: int) -> Iterator[None]:
        with handle as connection:
            connection.execute("INSERT INTO rows VALUES (%s)", [number])
            yield

    first, second, third = borrowed(1), borrowed(2), borrowed(3)
    for one in (first, second, third):
        one.__enter__()
    first.__exit__(None, None, None)
    assert rows(database) == [1]
    third.__exit__(None, None, None)
    assert rows(database) == [1, 3]
    swallowed = second.__exit__(ValueError, ValueError("second"), None)
    assert not swallowed

    assert rows(database) == [1, 3]


def test_a_checkout_may_end_in_another_thread(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """A block entered in one thread and left in another commits and returns its connection."""
    handle = registry.get("orders")

    def dependency() -> Iterator[psycopg.Connection[Any]]:
        with handle as connection:
            yield connection

    def in_a_thread(act: Any) -> Any:
        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.append(act()))
        thread.start()
        thread.join()
        return result[0]

    generator = dependency()
    connection = in_a_thread(lambda: next(generator))
    in_a_thread(lambda: connection.execute("INSERT INTO rows VALUES (1)"))
    in_a_thread(lambda: next(generator, "ended"))

    assert rows(database) == [1]
    assert handle.status().used == 0


def test_an_exit_stack_ends_each_of_its_checkouts(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """`ExitStack`, which looks the two halves up on the class, gets distinct checkouts."""
    handle = registry.get("orders")
    with ExitStack() as stack:
        first = stack.enter_context(handle)
        second = stack.enter_context(handle)
        assert backend(first) != backend(second)
        first.execute("INSERT INTO rows VALUES (1)")
        second.execute("INSERT INTO rows VALUES (2)")

    assert rows(database) == [1, 2]
    assert handle.status().used == 0


def test_enter_and_exit_called_by_hand_belong_together(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """`__enter__` and `__exit__` called as methods work, also around a `with` of the same handle."""
    handle = registry.get("orders")
    connection = handle.__enter__()
    connection.execute("INSERT INTO rows VALUES (1)")
    with handle as other:
        other.execute("INSERT INTO rows VALUES (2)")
    handle.__exit__(None, None, None)

    assert rows(database) == [1, 2]
    assert handle.status().used == 0
    with pytest.raises(RuntimeError, match="not entered"):
        handle.__exit__(None, None, None)


def test_transaction_and_cursor_are_checkouts_too(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """`transaction()` opens one, with savepoints inside; `cursor()` yields a cursor; both commit."""
    handle = registry.get("orders")
    with handle.transaction() as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        with pytest.raises(ValueError, match="inner"), connection.transaction():
            connection.execute("INSERT INTO rows VALUES (2)")
            raise ValueError("inner")
    with handle.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        cursor.execute("INSERT INTO rows VALUES (3) RETURNING id")
        assert cursor.fetchone() == {"id": 3}
    with handle.transaction(force_rollback=True) as connection:
        connection.execute("INSERT INTO rows VALUES (4)")

    assert rows(database) == [1, 3]


def test_the_wrong_side_is_refused_and_told_the_right_one(registry: Registry) -> None:
    """`with` on an async handle raises at once and shows the block to write."""
    for use in (
        lambda: registry.get("events").__enter__(),
        lambda: registry.get("events").connection().__enter__(),
    ):
        with pytest.raises(WrongSideError, match="async with registry.get"):
            use()


def test_a_busy_pool_ends_in_a_timeout_that_says_who_holds_it(registry: Registry) -> None:
    """The error of a checkout that timed out has the pool's numbers and the oldest holder."""
    handle = registry.get("orders")
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(handle)
        with pytest.raises(CheckoutTimeout) as caught, handle.connection(timeout=0.2):
            pass

    message = str(caught.value)
    assert "orders: no connection within 0.2" in message
    assert "in use 4" in message
    assert "max_size 4" in message
    assert "borrowed at" in message
    assert caught.value.reason is None
    assert handle.status().errors["timeout"] == 1
    assert handle.status().waiting == 0
    with handle as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_client_that_comes_as_the_first_connection_is_there_makes_no_other_one(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """It looked a moment too early: it is served, and sees no error of a connect of its own."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 2})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("orders")
        handle.open()
        database.rotate()  # what is open serves on, and another connect would be refused
        handle.start()
        handle.open(timeout=5)
        assert handle.status().connect_attempts == 1
        with handle.connection(timeout=5) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_max_waiting_refuses_the_client_that_is_one_too_many(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """With `max_waiting: 1`, the second client that would wait gets an error at once."""
    registry_dir.declare(
        "orders", database, pool_settings={"min_size": 1, "max_size": 1, "max_waiting": 1}
    )
    with Registry(registry_dir, metrics=None) as registry:
        handle = registry.get("orders")
        waited: list[str] = []

        def wait() -> None:
            with handle.connection(timeout=20) as connection:
                waited.append(connection.info.dbname)

        with handle:
            thread = threading.Thread(target=wait)
            thread.start()
            eventually(lambda: handle.status().waiting == 1, 5, "one client waits")
            with pytest.raises(TooManyWaiting, match="max_waiting 1"), handle:
                pass
        thread.join()

        assert waited == [database.name]
        assert handle.status().errors["too_many"] == 1


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_a_wrong_password_is_the_first_error_and_comes_at_once(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> None:
    """What waiting does not mend is raised by the first checkout, with the server's reason."""
    registry_dir.declare(
        "orders", database, connection_type, connection={"password": "not-the-password"}, timeout=30
    )
    with Registry(registry_dir, metrics=None) as registry:
        for _ in range(2):
            with pytest.raises(ConnectError, match="password authentication failed") as caught:
                with registry.get("orders").connection(timeout=30):
                    pass
            assert caught.value.reason == "auth"
            assert isinstance(caught.value, psycopg.OperationalError)

        status = registry.get("orders").status()
        assert status.connect_attempts == 1, "a refused login is not repeated within a second"


def test_dead_idle_connections_cost_no_error(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """Connections that the server closed while they were idle are dropped at checkout, unseen."""
    handle = registry.get("orders")
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(handle)
    assert handle.status().idle == 4
    returned = time.monotonic()
    eventually(lambda: time.monotonic() - returned > FRESH, 5, "they are old enough for a look")
    database.terminate_backends()

    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(handle.connection(timeout=5))
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert sum(handle.status().evicted.values()) >= 1


def test_close_opens_again_and_a_closed_registry_does_not(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """`handle.close()` frees the connections until the next checkout; a closed registry ends it."""
    handle = registry.get("orders")
    with handle:
        pass
    handle.close()
    eventually(lambda: database.backends() == [], 5, "no connection is left")
    with handle as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    registry.close()

    with pytest.raises(Exception, match="was closed") as caught, handle:
        pass
    assert type(caught.value).__name__ == "HandleClosedError"


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_close_ends_what_is_being_opened(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    connection_type: str,
) -> None:
    """A connection that was on its way when the handle was closed is not kept when it arrives."""
    registry_dir.declare("slow", database, connection_type, connection={"port": proxy.port})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry.get("slow")
        proxy.set("blackhole")
        handle.start()
        eventually(lambda: proxy.accepted == 1, 5, "it connects")
        handle.close()
        proxy.set("pass")
        eventually(lambda: proxy.connections == 0, 20, "what was begun is over")

        assert not handle.is_open()
        assert database.backends() == []
        with handle as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_other_order_of_looking_up_the_two_halves_works_too(
    registry: Registry, database: TemporaryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.14 looks `__exit__` up before `__enter__`: the blocks are the same."""
    monkeypatch.setattr("pgmonkey.pool.checkout._EXIT_FIRST", True)
    handle = registry.get("orders")
    outer_exit, outer_enter = handle.__exit__, handle.__enter__
    outer_enter().execute("INSERT INTO rows VALUES (1)")
    inner_exit, inner_enter = handle.__exit__, handle.__enter__
    inner_enter().execute("INSERT INTO rows VALUES (2)")
    by_hand = handle.__enter__()
    by_hand.execute("INSERT INTO rows VALUES (3)")
    outer_exit(None, None, None)
    assert rows(database) == [1]
    inner_exit(ValueError, ValueError("inner"), None)
    handle.__exit__(None, None, None)
    with ExitStack() as stack:
        stack.enter_context(handle).execute("INSERT INTO rows VALUES (4)")

    assert rows(database) == [1, 3, 4]
    assert handle.status().used == 0
    with pytest.raises(RuntimeError, match="not entered"):
        handle.__exit__(None, None, None)


def test_leaving_a_block_twice_by_hand_ends_no_other_block(registry: Registry) -> None:
    """The second time is an error, and the connection of the next block stays its own."""
    handle: Any = registry.get("orders")
    enter, leave = handle.__enter__, handle.__exit__
    enter()
    leave(None, None, None)
    with handle as connection:
        with pytest.raises(AttributeError):
            leave(None, None, None)
        status = handle.status()
        assert status.used + status.retired == 1
        assert connection.execute("SELECT 1").fetchone() == (1,)
