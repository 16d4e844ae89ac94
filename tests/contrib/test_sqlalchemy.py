"""Engines of SQLAlchemy on databases of a registry, sync and async."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from psycopg.types.json import set_json_loads
from sqlalchemy import event, exc, text
from sqlalchemy.dialects.postgresql import HSTORE, JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord

from pgmonkey import (
    DatabaseRemovedError,
    HandleClosedError,
    NestedCheckoutError,
    PGConnectionManager,
    Registry,
)
from pgmonkey.contrib.sqlalchemy import create_async_engine, create_engine
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.manager import declare
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.server import PostgresServer
from tests.pool.side import FRESH
from tests.recipes.recipe import recipe

SIDES = ("pool", "async_pool")
ONE = {"min_size": 1, "max_size": 1}


class Engine:
    """Use an engine from plain calls: directly, or on an event loop in a thread.

    Args:
        registry: Where its database is.
        options: Of the engine.
    """

    def __init__(self, registry: Registry, connection_type: Any = None, **options: Any) -> None:
        self.registry = registry
        self.handle: Any = registry.get("orders", connection_type)
        self.is_async = self.handle.connection_type.startswith("async")
        self.engine: Any
        if self.is_async:
            self.engine = create_async_engine(self.handle, **options)
            #: What events and `pool` belong to.
            self.sync: sa.Engine = self.engine.sync_engine
        else:
            self.engine = self.sync = create_engine(self.handle, **options)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        if self.is_async:
            self._thread.start()

    def await_(self, work: Any) -> Any:
        """Run a coroutine on the loop of the engine."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def run(self, work: Callable[[sa.Connection], Any], **execution_options: Any) -> Any:
        """Call something with a connection that is closed afterwards."""
        if not self.is_async:
            with self.engine.connect() as connection:
                return work(connection.execution_options(**execution_options))

        async def run() -> Any:
            async with self.engine.connect() as connection:
                await connection.execution_options(**execution_options)
                return await connection.run_sync(work)

        return self.await_(run())

    def orm(self, work: Callable[[Session], Any]) -> Any:
        """Call something with a session in a transaction, which is committed."""
        if not self.is_async:
            with Session(self.engine) as session, session.begin():
                return work(session)

        async def run() -> Any:
            async with AsyncSession(self.engine) as session, session.begin():
                return await session.run_sync(work)

        return self.await_(run())

    def scalar(self, statement: str, **execution_options: Any) -> Any:
        """Run one statement and return the first column."""
        return self.run(lambda connection: connection.scalar(text(statement)), **execution_options)

    def commit(self, statement: str) -> None:
        """Run one statement in a transaction of its own."""

        def work(connection: sa.Connection) -> None:
            connection.execute(text(statement))
            connection.commit()

        self.run(work)

    def plain(self, work: Callable[[Any], Any]) -> Any:
        """Call something with a connection of a plain block of the same handle."""

        async def run() -> Any:
            async with self.handle as connection:
                return work(connection)

        if self.is_async:
            return self.await_(run())
        with self.handle as connection:
            return work(connection)

    def dispose(self, **options: Any) -> None:
        """Dispose of the engine's connections."""
        if self.is_async:
            self.await_(self.engine.dispose(**options))
        else:
            self.engine.dispose(**options)

    def end(self) -> None:
        """Close the connections, and end the loop."""
        with suppress(HandleClosedError):
            self.dispose()
        if self.is_async:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        self.loop.close()


Make = Callable[..., Engine]


def declare_orders(
    directory: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: Any,
    *,
    connection: Any = None,
    pool: Any = None,
    **more: Any,
) -> None:
    """Write the file of the database `orders`, with up to four connections."""
    section = "pool_settings" if connection_type == "pool" else "async_pool_settings"
    settings = {section: {"min_size": 1, "max_size": 4} | (pool or {})}
    directory.declare(
        "orders", database, connection_type, connection=connection or {}, **settings, **more
    )


@pytest.fixture
def database(shared_database: TemporaryDatabase) -> TemporaryDatabase:
    """One database for all these tests; what the test before has made in it is dropped."""
    user = shared_database.user
    shared_database.execute(
        f'DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION "{user}"'
    )
    return shared_database


@pytest.fixture(params=SIDES)
def connection_type(request: pytest.FixtureRequest) -> str:
    """Each of the two sides."""
    return str(request.param)


@pytest.fixture
def make(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, connection_type: str
) -> Iterator[Make]:
    """Make an engine on a database with these settings, and with these options."""
    opened: list[Engine] = []
    registries: list[Registry] = []

    def make(
        *, connection: Any = None, pool: Any = None, reset: bool = False, **options: Any
    ) -> Engine:
        declare_orders(
            registry_dir,
            database,
            connection_type,
            connection=connection,
            pool=pool,
            reset_on_return=reset,
        )
        registries.append(Registry(registry_dir, metrics=None, watch=False))
        opened.append(Engine(registries[-1], **options))
        return opened[-1]

    yield make
    for engine in opened:
        engine.end()
    for registry in registries:
        registry.close()


@pytest.fixture
def registry(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Registry]:
    """A registry whose database `orders` is of type `pool`."""
    registry_dir.declare("orders", database)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        yield registry


@pytest.fixture
def rows(database: TemporaryDatabase) -> Callable[[], list[int]]:
    """A table `rows (id int)`; call it for what a second connection sees in it."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    return lambda: [one for (one,) in database.execute("SELECT id FROM public.rows ORDER BY id")]


def backend(connection: sa.Connection) -> int:
    return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


def rest() -> None:
    """Let connections be idle for long enough to be looked at before they are handed out."""
    returned = time.monotonic()
    eventually(lambda: time.monotonic() - returned > FRESH, 5, "they are idle")


# Core and ORM


def test_core_commits_and_rolls_back(make: Make, rows: Callable[[], list[int]]) -> None:
    """An engine drops what is not committed, and uses the connection again."""
    engine = make(pool=ONE)

    def work(connection: sa.Connection) -> int:
        connection.execute(text("INSERT INTO rows VALUES (:id)"), [{"id": 1}, {"id": 2}])
        connection.commit()
        connection.execute(text("INSERT INTO rows VALUES (3)"))
        return backend(connection)

    assert engine.run(work) == engine.run(backend)
    assert rows() == [1, 2]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[dict[str, Any]] = mapped_column(JSONB)


def test_the_orm_writes_and_reads(make: Make) -> None:
    """The ORM makes tables, writes objects with JSON, and rolls a savepoint back."""
    engine = make()

    def create(connection: sa.Connection) -> None:
        Base.metadata.create_all(connection)
        connection.commit()

    def write(session: Session) -> None:
        session.add_all(Item(name=name, notes={"hot": name == "tea"}) for name in ("tea", "cake"))
        with suppress(exc.IntegrityError), session.begin_nested():
            session.add(Item(id=1, name="again", notes={}))
            session.flush()
            session.add(Item(id=1, name="again", notes={}))
            session.flush()

    def read(session: Session) -> list[Any]:
        found = session.scalars(sa.select(Item).order_by(Item.id))
        return [(item.name, item.notes) for item in found]

    engine.run(create)
    engine.orm(write)
    assert ("tea", {"hot": True}) in engine.orm(read)
    assert ("cake", {"hot": False}) in engine.orm(read)


def test_rows_come_as_sqlalchemy_wants_them(make: Make) -> None:
    """An engine ignores the rows, cursors and autocommit of the file; plain blocks get them."""
    engine = make(
        connection={"row_factory": "dict_row", "cursor_factory": "RawCursor", "autocommit": "true"}
    )

    def work(connection: sa.Connection) -> Any:
        row = connection.execute(
            text("SELECT CAST(:answer AS int) AS answer"), {"answer": 42}
        ).one()
        return row.answer, connection.connection.dbapi_connection.autocommit  # type: ignore[union-attr]  # it is connected

    assert engine.run(work) == (42, False)
    assert engine.plain(lambda one: (one.row_factory.__name__, one.autocommit)) == (
        "dict_row",
        True,
    )


def test_rows_can_be_streamed(make: Make) -> None:
    """`stream_results` opens a cursor of the server, which ends with the transaction."""
    engine = make()

    def work(connection: sa.Connection) -> tuple[int, int]:
        options = {"stream_results": True, "yield_per": 100}
        rows = text("SELECT generate_series(1, 5000)")
        result = connection.execute(rows, execution_options=options)
        first = result.fetchmany(10)
        cursors = connection.scalar(text("SELECT count(*) FROM pg_cursors WHERE name LIKE 'c\\_%'"))
        return len(first) + len(result.fetchall()), cursors or 0

    assert engine.run(work) == (5000, 1)
    assert engine.scalar("SELECT count(*) FROM pg_cursors") == 0


def test_a_two_phase_transaction_is_rolled_back(make: Make, rows: Callable[[], list[int]]) -> None:
    """Nothing of it stays, and the connection is used again."""
    engine = make(pool=ONE)

    def work(connection: sa.Connection) -> int:
        connection.begin_twophase()
        connection.execute(text("INSERT INTO rows VALUES (1)"))
        return backend(connection)

    assert engine.run(work) == engine.run(backend)
    assert rows() == []


# Isolation levels


def test_an_isolation_level_of_the_engine_holds_for_all_connections(make: Make) -> None:
    """`reset_on_return` does not take it back, and plain blocks do not get it."""
    engine = make(isolation_level="SERIALIZABLE", pool=ONE, reset=True)
    for _ in range(2):
        assert engine.scalar("SHOW transaction_isolation") == "serializable"
    assert engine.plain(lambda connection: connection.isolation_level) is None


def test_autocommit_of_the_engine_commits_each_statement(
    make: Make, rows: Callable[[], list[int]]
) -> None:
    """A statement is committed at once."""
    engine = make(isolation_level="AUTOCOMMIT")
    engine.scalar("INSERT INTO rows VALUES (1) RETURNING id")
    assert rows() == [1]
    assert engine.plain(lambda connection: connection.autocommit) is False


def test_an_isolation_level_of_one_connection_ends_with_it(
    make: Make, rows: Callable[[], list[int]]
) -> None:
    """The next borrower of the same connection gets the default."""
    engine = make(pool=ONE)
    assert engine.scalar("SHOW transaction_isolation", isolation_level="REPEATABLE READ") == (
        "repeatable read"
    )
    engine.scalar("INSERT INTO rows VALUES (1) RETURNING id", isolation_level="AUTOCOMMIT")
    engine.scalar("INSERT INTO rows VALUES (2) RETURNING id")
    assert engine.scalar("SHOW transaction_isolation") == "read committed"
    assert rows() == [1]


def test_an_isolation_level_of_the_file_is_the_default(make: Make) -> None:
    """A connection goes back to it after it had another one. `read_only` of the file counts, too."""
    engine = make(pool=ONE, connection={"isolation_level": "serializable", "read_only": "true"})
    assert engine.scalar("SHOW transaction_isolation") == "serializable"
    assert engine.scalar("SHOW transaction_read_only") == "on"
    assert engine.scalar("SELECT 1", isolation_level="AUTOCOMMIT") == 1
    assert engine.scalar("SHOW transaction_isolation") == "serializable"


# Events and what they set up


def test_connect_events_come_once_for_each_server_connection(make: Make) -> None:
    """What they set stays with the engine's connections, and no plain block gets it."""
    engine = make(pool=ONE)
    seen: list[str] = []

    @event.listens_for(engine.sync, "connect")
    def set_up(dbapi_connection: Any, entry: Any) -> None:
        entry.info["made"] = "here"
        seen.append("connect")
        before = dbapi_connection.autocommit
        dbapi_connection.autocommit = True
        cursor = dbapi_connection.cursor()
        cursor.execute("SET search_path = pg_catalog")
        cursor.close()
        dbapi_connection.autocommit = before
        set_json_loads(lambda _: "tea", entry.driver_connection)

    for name in ("checkout", "reset", "checkin", "do_connect"):
        event.listen(engine.sync, name, lambda *_, name=name: seen.append(name))
    for _ in range(3):
        assert engine.scalar("SHOW search_path") == "pg_catalog"
    assert seen == ["connect", *["checkout", "reset", "checkin"] * 3]
    assert engine.scalar("SELECT '1'::json") == "tea"
    assert engine.run(lambda one: one.info["made"]) == "here"
    path = engine.plain(lambda connection: connection.info.backend_pid)
    assert path != engine.run(backend)


def test_an_error_of_a_connect_event_is_the_applications(make: Make) -> None:
    """It comes out as it is, its connection is closed, and no slot is lost."""
    engine = make(pool=ONE)

    def refuse(*_: Any) -> None:
        raise LookupError("no tea")

    event.listen(engine.sync, "connect", refuse)
    for _ in range(3):
        with pytest.raises(LookupError, match="no tea"):
            engine.scalar("SELECT 1")
    event.remove(engine.sync, "connect", refuse)
    assert engine.scalar("SELECT 1") == 1
    assert engine.handle.status().used == 0


def test_a_listener_of_checkout_may_refuse_a_connection(make: Make) -> None:
    """Another connection is set up in its place."""
    engine = make(pool=ONE)
    before = engine.run(backend)
    refused: list[Any] = []

    @event.listens_for(engine.sync, "checkout")
    def refuse(*_: Any) -> None:
        if not refused:
            refused.append(1)
            raise exc.DisconnectionError

    connects: list[Any] = []
    event.listen(engine.sync, "connect", lambda *_: connects.append(1))
    assert engine.run(backend) != before
    assert len(connects) == 1
    assert engine.scalar("SELECT 1") == 1
    assert engine.handle.status().used == 0


def test_json_and_hstore_are_the_engines(make: Make, database: TemporaryDatabase) -> None:
    """An engine reads JSON with its own function, and hstore as dictionaries."""
    database.execute("CREATE EXTENSION IF NOT EXISTS hstore")
    engine = make(json_deserializer=lambda _: "tea")

    def work(connection: sa.Connection) -> Any:
        return connection.execute(
            sa.select(
                sa.cast({"a": 1}, JSONB).label("json"), sa.cast({"b": "2"}, HSTORE).label("hstore")
            )
        ).one()

    for _ in range(2):
        assert tuple(engine.run(work)) == ("tea", {"b": "2"})


def test_functions_of_configure_are_called_for_engines_too(make: Make) -> None:
    """They set up what all connections are to know, such as `register_vector`."""
    engine = make()
    engine.registry.configure("orders", lambda one: set_json_loads(lambda _: "cake", one))
    assert engine.scalar("SELECT '1'::json") == "cake"


# Size


def test_an_exhausted_pool_is_sqlalchemys_timeout(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Its text is pgmonkey's: who holds what, and where in the application."""
    engine = make(pool=ONE)
    assert engine.scalar("SELECT 1") == 1
    kind = engine.handle.connection_type
    declare_orders(registry_dir, database, kind, pool=ONE | {"timeout": 0.1})
    engine.registry.reload()
    refused = pytest.raises(exc.TimeoutError, match=r"orders: .*\n?.*test_sqlalchemy\.py:\d+ in")

    def hold(_: sa.Connection) -> None:
        with refused:
            engine.scalar("SELECT 2")

    async def hold_async() -> None:
        async with engine.engine.connect():
            with refused:
                async with engine.engine.connect():
                    pass

    if engine.is_async:
        engine.await_(hold_async())
    else:
        engine.run(hold)
    declare_orders(registry_dir, database, kind, pool=ONE)
    engine.registry.reload()
    assert engine.scalar("SELECT 3") == 3


def test_status_shows_who_in_the_application_holds_a_connection(make: Make) -> None:
    """It names no line of SQLAlchemy, and `pool.status()` counts the connections."""
    engine = make()

    def look(connection: sa.Connection) -> Any:
        connection.execute(text("SELECT 1"))
        (held,) = engine.handle.status().checkouts
        return held.place, engine.sync.pool.status()

    place, status = engine.run(look)
    assert place.endswith(" in run")
    assert status == "orders: 1 in use, 0 idle, 0 waiting, max_size 4"


def test_a_server_that_is_down_is_an_operational_error(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """The error has the reason that pgmonkey has found."""
    engine = make(connection={"dbname": "no_such_database"})
    with pytest.raises(exc.OperationalError, match="no_database") as raised:
        engine.scalar("SELECT 1")
    assert isinstance(raised.value.orig, psycopg.OperationalError)


def test_a_handle_of_one_connection_has_one(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A second connection in one thread would wait for itself, so type `normal` refuses it."""
    registry_dir.declare("orders", database, "normal")
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        engine = create_engine(registry["orders"])
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            with pytest.raises(NestedCheckoutError, match="test_sqlalchemy"), engine.connect():
                pass
        engine.dispose()


# Rotations, restarts, disconnects


def test_rotated_passwords_under_load_fail_no_transaction(
    make: Make, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A connection with an old password is replaced when it comes back."""
    # A pool that grows between a new password and its reload is refused: it has all connections.
    full = {"min_size": 4}
    engine = make(pool=full)
    kind = engine.handle.connection_type
    stop = threading.Event()
    errors: list[BaseException] = []
    names: set[str] = set()

    def work(connection: sa.Connection) -> None:
        connection.execute(text("SELECT 1"))
        names.add(str(connection.scalar(text("SHOW application_name"))))
        assert connection.connection.dbapi_connection is not None

    def load() -> None:
        while not stop.wait(0.005):  # busy enough, and no heater
            try:
                engine.run(work)
            except BaseException as error:
                errors.append(error)
                return

    def has_four_of(version: str) -> bool:
        return [one["application_name"] for one in database.backends()] == [version] * 4

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(database.backends()) == 4, 10, "the pool has grown")
        for number in range(3):
            database.rotate()  # the old password does not work any more
            named = {"application_name": f"v{number}"}
            declare_orders(registry_dir, database, kind, connection=named, pool=full)
            assert engine.registry.reload().applied == ("orders",)
            eventually(lambda number=number: f"v{number}" in names, 10, "it is used")
            eventually(lambda number=number: has_four_of(f"v{number}"), 10, "all are replaced")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert engine.scalar("SHOW application_name") == "v2"
    assert len(database.backends()) == 4
    assert engine.registry.wait_drained(5)


def test_a_disconnect_costs_one_transaction(make: Make, database: TemporaryDatabase) -> None:
    """SQLAlchemy sees it and invalidates; the next transaction works at once, without pre-ping."""
    engine = make()
    engine.run(backend)

    def work(connection: sa.Connection) -> None:
        connection.execute(text("SELECT 1"))
        database.terminate_backends()
        with pytest.raises(exc.OperationalError) as raised:
            connection.execute(text("SELECT 2"))
        assert raised.value.connection_invalidated
        assert connection.invalidated
        connection.rollback()
        assert connection.scalar(text("SELECT 3")) == 3

    engine.run(work)
    database.terminate_backends()
    rest()
    for _ in range(3):
        assert engine.scalar("SELECT 4") == 4
    assert engine.handle.status().used == 0


def test_a_restarted_server_is_used_at_once(
    make: Make, server: PostgresServer, rows: Callable[[], list[int]]
) -> None:
    """It needs no pre-ping, and new connections are set up as those before."""
    engine = make(isolation_level="SERIALIZABLE")
    engine.run(backend)
    server.restart()
    rest()
    assert engine.scalar("SHOW transaction_isolation") == "serializable"
    engine.commit("INSERT INTO rows VALUES (1)")
    assert rows() == [1]


def test_an_invalidated_connection_is_closed_and_its_slot_is_free(
    make: Make, database: TemporaryDatabase
) -> None:
    """`invalidate` closes it at once, `invalidate(soft=True)` when it comes back."""
    engine = make(pool=ONE)
    seen: list[int] = []
    invalidated: list[str] = []
    for name in ("invalidate", "soft_invalidate"):
        event.listen(engine.sync, name, lambda *_, name=name: invalidated.append(name))

    def hard(connection: sa.Connection) -> None:
        seen.append(backend(connection))
        connection.invalidate()
        connection.rollback()
        seen.append(backend(connection))

    def soft(connection: sa.Connection) -> None:
        seen.append(backend(connection))
        connection.connection.invalidate(soft=True)

    engine.run(hard)
    engine.run(soft)
    seen.append(engine.run(backend))
    first, second, same, third = seen
    assert second == same
    assert len({first, second, third}) == 3
    assert invalidated == ["invalidate", "soft_invalidate"]
    assert engine.handle.status().used == 0
    assert len(database.backends()) == 1


def test_a_detached_connection_is_its_clients_until_it_closes_it(make: Make) -> None:
    """Its slot is taken until then."""
    engine = make(pool=ONE)

    def work(connection: sa.Connection) -> int:
        connection.detach()
        assert engine.handle.status().used == 1
        return backend(connection)

    detached = engine.run(work)
    assert engine.handle.status().used == 0
    assert engine.run(backend) != detached


def test_pre_ping_is_harmless(make: Make, database: TemporaryDatabase) -> None:
    """It changes nothing: a dead connection is not handed out without it, either."""
    engine = make(pool=ONE, pool_pre_ping=True)
    before = engine.run(backend)
    statements: list[str] = []
    ping = engine.sync.dialect.do_ping
    engine.sync.dialect.do_ping = lambda one: statements.append("ping") or ping(one)  # type: ignore[method-assign,func-returns-value]  # it is looked at
    assert engine.run(backend) == before
    database.terminate_backends()
    rest()
    assert engine.run(backend) != before
    assert statements == []


def test_a_dropped_connection_is_no_lost_slot(
    make: Make, database: TemporaryDatabase, events: CapturedEvents
) -> None:
    """It is closed and replaced, and the event names the function that had borrowed it."""
    engine = make(pool=ONE)

    async def drop() -> None:
        connection = engine.engine.connect()
        await connection.start()
        await connection.execute(text("SELECT 1"))

    if engine.is_async:
        engine.await_(drop())
        with pytest.warns(exc.SAWarning, match="garbage collector"):
            gc.collect()
    else:
        engine.engine.connect().execute(text("SELECT 1"))
        gc.collect()
    eventually(lambda: engine.handle.status().used == 0, 5, "it is taken back")
    assert (
        events.wait("checkout.abandoned")["place"]
        .partition(" in ")[2]
        .startswith(("drop", "test_a_dropped"))
    )
    assert engine.scalar("SELECT 1") == 1


def test_garbage_is_collected_while_locks_are_held(registry: Registry) -> None:
    """The thread that collects waits for nothing, whatever it does at the moment."""
    handle: Any = registry["orders"]
    engine = create_engine(handle)
    engine.connect().execute(text("SELECT 1"))
    copy: Any = handle.copies()[0]
    with copy._lock:
        gc.collect()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


# Life


def test_dispose_closes_idle_connections_and_the_engine_works_on(
    make: Make, database: TemporaryDatabase
) -> None:
    """One that is out is closed when it comes back. Listeners stay."""
    engine = make()
    connects: list[Any] = []
    event.listen(engine.sync, "connect", lambda *_: connects.append(1))

    def work(connection: sa.Connection) -> int:
        found = backend(connection)
        if not engine.is_async:
            engine.dispose()
        return found

    first = engine.run(work)
    engine.dispose()
    eventually(lambda: not database.backends(), 5, "they are closed")
    assert engine.run(backend) != first
    assert len(connects) == 2
    engine.dispose(close=False)
    assert engine.scalar("SELECT 1") == 1
    assert engine.handle.status().requests == 3


def test_what_an_engine_does_in_a_test_is_rolled_back(
    make: Make, rows: Callable[[], list[int]]
) -> None:
    """Its checkouts share a transaction, which outlasts `dispose`; after the block it works as before."""
    engine = make(json_deserializer=lambda _: "tea")
    count = "SELECT count(*) FROM rows"
    engine.commit("INSERT INTO rows VALUES (1)")
    for _ in range(2):
        with engine.registry.override("orders", rollback=True):
            engine.commit("INSERT INTO rows VALUES (2)")
            engine.orm(lambda session: session.execute(text("INSERT INTO rows VALUES (3)")))
            engine.run(lambda one: one.execute(text("INSERT INTO rows VALUES (4)")))  # no commit
            with pytest.raises(exc.ProgrammingError):
                engine.commit("INSERT INTO nowhere VALUES (5)")
            assert engine.scalar(count) == 3
            assert engine.scalar("SELECT '1'::json") == "tea"
            if not engine.is_async:
                with engine.engine.connect() as outer, engine.engine.connect() as inner:
                    assert backend(outer) == backend(inner)
            engine.dispose()
            assert engine.scalar(count) == 3
            assert rows() == [1]
        assert engine.scalar(count) == 1
    engine.commit("INSERT INTO rows VALUES (6)")
    assert rows() == [1, 6]
    assert engine.handle.status().used == 0


def test_an_engine_is_led_to_the_database_of_a_test(
    make: Make, database: TemporaryDatabase
) -> None:
    """`override` leads engines as it leads plain blocks, also those made before."""
    other, where = f"{database.name}_other", "SELECT current_database()"
    database.server.create_database(other, owner=database.user)
    engine = make()
    try:
        assert engine.scalar(where) == database.name
        with engine.registry.override("orders", dbname=other):
            assert engine.scalar(where) == other
        assert engine.scalar(where) == database.name
    finally:
        database.server.drop_database(other)


def test_a_handle_of_a_manager_has_engines_too(tmp_path: Path, database: TemporaryDatabase) -> None:
    """Programs from pgmonkey 4.0 may have them; clearing the cache closes them."""
    manager = PGConnectionManager()
    handle: Any = manager.get_database_connection(str(declare(tmp_path, database)), "pool")
    engine = create_engine(handle)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    manager.clear_cache()
    with pytest.raises(HandleClosedError), engine.connect():
        pass


def test_an_engine_that_is_dropped_leaves_no_connection(
    registry: Registry, database: TemporaryDatabase
) -> None:
    """No one has to dispose of it."""
    engine = create_engine(registry["orders"])
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    del engine, connection
    gc.collect()
    eventually(lambda: not database.backends(), 5, "they are closed")


def test_a_closed_registry_says_so(make: Make) -> None:
    """The engine raises what any other client gets."""
    engine = make()
    assert engine.scalar("SELECT 1") == 1
    engine.registry.close()
    with pytest.raises(HandleClosedError, match="orders"):
        engine.scalar("SELECT 1")


def test_a_removed_database_says_so_and_comes_back(
    make: Make, registry_dir: RegistryDirectory
) -> None:
    """The engine works again with the file."""
    engine = make()
    content = registry_dir.file("orders").read_text()
    registry_dir.remove("orders")
    engine.registry.reload()
    with pytest.raises(DatabaseRemovedError):
        engine.scalar("SELECT 1")
    registry_dir.write("orders", content)
    engine.registry.reload()
    assert engine.scalar("SELECT 1") == 1


def test_a_child_process_uses_the_engine_on_its_own(registry: Registry) -> None:
    """Without `dispose(close=False)`: its connections are its own, and the parent's go on."""
    engine = create_engine(registry["orders"])
    with engine.connect() as connection:
        parent = backend(connection)

    def child() -> int:
        with engine.connect() as connection:
            return backend(connection)

    assert in_a_child(child) != parent
    with engine.connect() as connection:
        assert backend(connection) == parent
    engine.dispose()


def test_an_async_engine_works_in_several_event_loops(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """It needs no `dispose` between them."""
    registry_dir.declare("orders", database, "async_pool")
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        engine = create_async_engine(registry["orders"])

        async def answer() -> int:
            async with engine.connect() as connection:
                return int(await connection.scalar(text("SELECT 1")) or 0)

        assert [asyncio.run(answer()) for _ in range(3)] == [1, 1, 1]


def test_a_connection_that_is_closed_in_another_event_loop_is_no_lost_slot(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The engine refuses to take it back there, and replaces it when the program has dropped it."""
    declare_orders(registry_dir, database, "async_pool", pool=ONE)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        engine = Engine(registry)

        async def connect() -> Any:
            return await engine.engine.connect()

        connection = engine.await_(connect())
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(connection.close())
        del connection
        gc.collect()
        eventually(lambda: engine.handle.status().used == 0, 5, "it is taken back")
        assert engine.scalar("SELECT 1") == 1
        engine.end()


# Recipes


def test_the_naive_creator_takes_a_connection_for_ever(registry: Registry) -> None:
    """SQLAlchemy's own pool keeps it in use, though no one uses it, until `dispose`."""
    handle: Any = registry["orders"]
    engine = sa.create_engine("postgresql+psycopg://", creator=handle.getconn)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert handle.status().used == 1
    engine.dispose()
    assert handle.status().used == 0


def test_the_naive_creator_with_a_null_pool_loses_no_slot(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Each connection is closed, and its slot is free at once."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 0, "max_size": 1})
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle: Any = registry["orders"]
        engine = sa.create_engine(
            "postgresql+psycopg://", poolclass=sa.NullPool, creator=handle.getconn
        )
        gc.disable()
        try:
            for _ in range(3):
                with engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
                assert handle.status().used == 0
        finally:
            gc.enable()
        assert handle.status().leaks == 0


def test_the_recipe_for_fastapi_commits_before_the_response(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is told of a row can read it."""
    from starlette.testclient import TestClient

    database.execute("CREATE TABLE public.orders (id serial, item text)")
    database.execute(f'GRANT ALL ON public.orders, public.orders_id_seq TO "{database.user}"')
    registry_dir.declare("orders", database)
    monkeypatch.chdir(registry_dir.path.parent)
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(recipe("recipes/sqlalchemy", "FastAPI"), namespace)
    with TestClient(namespace["app"]) as client:
        assert client.post("/orders", params={"item": "tea"}).json() == 1
        assert database.execute("SELECT item FROM public.orders") == [("tea",)]


def test_the_recipe_for_alembic_migrates_and_writes_sql(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Migrations use the account of the registry, and not the timeout of its file."""
    registry_dir.declare("orders", database, sync_settings={"statement_timeout": "1s"})
    directory = registry_dir.path.parent

    monkeypatch.chdir(directory)
    config = Config(directory / "alembic.ini")
    command.init(config, "migrations")
    (directory / "migrations" / "env.py").write_text(recipe("recipes/alembic", "env.py"))
    (directory / "migrations" / "versions" / "one.py").write_text(
        "from alembic import op\n"
        'revision, down_revision = "one", None\n'
        "def upgrade():\n"
        '    op.execute("CREATE TABLE cups AS SELECT current_user, "\n'
        "               \"current_setting('statement_timeout') AS timeout\")\n"
    )
    command.upgrade(config, "head", sql=True)
    assert "CREATE TABLE cups" in capsys.readouterr().out
    command.upgrade(config, "head")
    assert database.execute("SELECT * FROM public.cups") == [(database.user, "0")]


# What the pool is made of


#: What of SQLAlchemy the pool overrides or calls, though only its source describes it.
PARTS: tuple[tuple[Any, str, str], ...] = (
    (Pool, "_do_get", "self"),
    (Pool, "_do_return_conn", "record"),
    (Pool, "_invalidate", "_checkin"),
    (Pool, "__init__", "_dispatch"),
    (_ConnectionRecord, "__init__", "connect"),
    (_ConnectionRecord, "get_connection", "self"),
    (sa.util, "await_only", "awaitable"),
)


def test_sqlalchemy_has_what_the_pool_is_made_of() -> None:
    """A version of SQLAlchemy that lacks a part is found here, with the name of the part."""
    missing = [
        f"{owner.__name__}.{name}({argument})"
        for owner, name, argument in PARTS
        if argument not in signature(getattr(owner, name, object)).parameters
    ]
    assert not missing, (
        f"SQLAlchemy {sa.__version__} has no {', '.join(missing)} any more;"
        " HandlePool of pgmonkey.contrib.sqlalchemy is made of it"
    )


# What is refused


REFUSED = {
    "pool_size": "max_size",
    "max_overflow": "max_size",
    "pool_timeout": "timeout",
    "pool_recycle": "max_lifetime",
    "connect_args": "connection_settings",
    "creator": "registry.configure",
    "poolclass": "from the handle",
}


def test_what_belongs_into_the_file_is_refused(registry: Registry) -> None:
    """The error says where it belongs."""
    for option, advice in REFUSED.items():
        with pytest.raises(TypeError, match=f"in the place of {option}, use .*{advice}"):
            create_engine(registry["orders"], **{option: None})


def test_a_handle_of_the_other_side_is_refused(registry: Registry) -> None:
    """The error names the function, and how to get the other handle."""
    with pytest.raises(TypeError, match=r"use create_engine\(\)"):
        create_async_engine(registry["orders"])
    with pytest.raises(TypeError, match=r"use create_async_engine\(\)"):
        create_engine(registry.get("orders", "async_pool"))
    with pytest.raises(TypeError, match="expected a handle"):
        create_engine("postgresql+psycopg://")  # type: ignore[arg-type]  # that is the point


def test_the_url_of_an_engine_has_no_account(
    make: Make, database: TemporaryDatabase, canary: Canary
) -> None:
    """It says where the engine leads, for logs and traces."""
    engine = make()
    url = engine.sync.url
    assert (url.database, url.username, url.password) == (database.name, None, None)
    assert url.drivername == "postgresql+psycopg"
