"""The end of a process, wherever it is hit: the old or the new state, nothing left behind."""

from __future__ import annotations

import signal
import time

import pytest

from pgmonkey import Registry
from tests.kit import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory
from tests.registry.steps import POINTS, Point

RELOADING = """
import signal, threading
from pgmonkey import Registry
from tests.registry.steps import acting
mode = argv[2]
if mode == "handler":
    def leave(*_): raise SystemExit(7)
    signal.signal(signal.SIGTERM, leave)
with Registry(argv[0], metrics=None, watch=False) as registry:
    with registry.get("orders") as connection:
        connection.execute("SELECT 1")
    def stand_still():
        say("there")
        threading.Event().wait(30)
    say("ready")
    sys.stdin.readline()
    with acting(registry.get("orders"), argv[1], stand_still):
        registry.reload()
"""


@pytest.mark.parametrize(
    "mode, point",
    [
        *[(mode, point) for mode in ("SIGTERM", "handler") for point in POINTS],
        ("SIGKILL", "adopted"),
    ],
)
def test_a_process_that_is_ended_in_the_middle_of_a_reload_leaves_nothing_behind(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
    point: Point,
    mode: str,
) -> None:
    """No session stays at the server, no file is half written, and the next process starts well."""
    registry_dir.declare("orders", database)
    with Program(RELOADING, registry_dir, point, mode, canary=canary) as program:
        program.wait_for("ready")
        registry_dir.declare("orders", database, connection={"application_name": "later"})
        files = {path.name: path.read_bytes() for path in registry_dir.path.iterdir()}
        program.tell()
        program.wait_for("there")
        began = time.monotonic()
        program.process.send_signal(signal.SIGKILL if mode == "SIGKILL" else signal.SIGTERM)
        expected = {"SIGTERM": -signal.SIGTERM, "SIGKILL": -signal.SIGKILL, "handler": 7}[mode]
        assert program.code() == expected
        assert time.monotonic() - began < 5
        assert program.text == "", "it ends quietly"
    eventually(lambda: database.backends() == [], 5, "the server has no session of it")
    assert {path.name: path.read_bytes() for path in registry_dir.path.iterdir()} == files
    with Registry(registry_dir, metrics=None) as registry, registry.get("orders") as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("later",)


CHECKOUT = """
import signal, threading
from pgmonkey import Registry
if argv[1] == "handler":
    def leave(*_): raise SystemExit(7)
    signal.signal(signal.SIGTERM, leave)
registry = Registry(argv[0], metrics=None)
with registry.get("orders") as connection:
    connection.execute("INSERT INTO rows VALUES (1)")
    say("ready")
    if argv[2] == "query":
        connection.execute("SELECT pg_sleep(30)")
    elif argv[2] == "waiting":
        with registry.get("orders").connection(timeout=30):
            pass
    else:
        threading.Event().wait(30)
"""


@pytest.mark.parametrize(
    "mode, where",
    [
        ("SIGTERM", "query"),
        ("SIGTERM", "waiting"),
        ("handler", "query"),
        ("handler", "block"),
        ("handler", "waiting"),
        ("SIGINT", "query"),
        ("SIGINT", "waiting"),
        ("SIGKILL", "query"),
    ],
)
def test_a_process_that_is_ended_inside_a_checkout_commits_nothing_and_leaves_no_session(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
    where: str,
    mode: str,
) -> None:
    """An open transaction is rolled back, whichever way the process ends."""
    database.execute("CREATE TABLE public.rows (id int)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    registry_dir.declare(
        "orders",
        database,
        pool_settings={"min_size": 1, "max_size": 1},
        # Without it, a server notices a client that has gone only when its query has ended.
        sync_settings={"client_connection_check_interval": "100ms"},
    )
    with Program(CHECKOUT, registry_dir, mode, where, canary=canary) as program:
        program.wait_for("ready")
        if where == "query":
            eventually(
                lambda: any("pg_sleep" in one["query"] for one in database.backends()), 5, "it runs"
            )
        number = {"SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT}.get(mode, signal.SIGTERM)
        program.process.send_signal(number)
        expected = {"handler": 7}.get(mode, -number)
        assert program.code() == expected
        assert "Exception ignored" not in program.text
        lines = program.text.splitlines()
        if mode == "SIGINT":
            assert lines[-1] == "KeyboardInterrupt"  # Python's own traceback
        else:
            assert lines == []
    eventually(lambda: database.backends() == [], 5, "the server has no session of it")
    assert database.execute("SELECT * FROM public.rows") == []


UNCLOSED = """
import asyncio, threading
from pgmonkey import Registry
registry = Registry(argv[0], metrics=None)
kind = argv[1]
if kind in ("sync", "thread", "forgotten"):
    with registry.get("orders") as connection:
        connection.execute("SELECT 1")
if kind == "thread":
    entered = threading.Event()
    def work():
        with registry.get("orders"):
            entered.set()
            threading.Event().wait(60)
    threading.Thread(target=work, daemon=True).start()
    entered.wait()
if kind == "forgotten":
    checkout = registry.get("orders").connection()
    checkout.__enter__()
if kind in ("async", "task"):
    async def main():
        async with registry.get("events") as connection:
            await connection.execute("SELECT 1")
        if kind == "task":
            async def work():
                async with registry.get("events"):
                    await asyncio.Event().wait()
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
    asyncio.run(main())
say("end")
"""


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["unused", "sync", "thread", "forgotten", "async", "task"])
def test_a_program_that_never_closes_its_registry_ends_by_itself_and_quietly(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, kind: str
) -> None:
    """There is nothing to call at the end; warnings as errors change nothing."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 2, "max_size": 4})
    registry_dir.declare(
        "events", database, "async_pool", async_pool_settings={"min_size": 2, "max_size": 4}
    )
    with Program(UNCLOSED, registry_dir, kind, canary=canary, options=("-W", "error")) as program:
        program.wait_for("end")
        began = time.monotonic()
        assert program.code() == 0
        # A second is the promise; the interpreter's own end is in it, on a machine that is busy.
        assert time.monotonic() - began < 3
        assert program.text == ""
    eventually(lambda: database.backends() == [], 5, "the server has no session of it")
