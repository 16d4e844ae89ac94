"""Programs whose threads are greenlets: gevent works, what cannot work says so in one sentence."""

from __future__ import annotations

import pytest

from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory

GEVENT = """
from gevent import monkey
monkey.patch_all()
import time
import gevent
import psycopg
import pgmonkey
registry = pgmonkey.Registry(argv[0], metrics=None)
handle = registry.get("orders")

def ask(statement="SELECT 1"):
    with handle as connection:
        return connection.execute(statement).fetchone()[0]

def backend():
    return ask("SELECT pg_backend_pid()")
"""

#: Seconds: on a machine that does much else, the imports alone take half a minute.
PATIENCE = 50

LATE = [
    "gevent has replaced threads after pgmonkey was imported",
    "  hint: call gevent.monkey.patch_all() before anything else is imported",
]


@pytest.fixture
def directory(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> RegistryDirectory:
    registry_dir.declare(
        "orders", database, "pool", pool_settings={"min_size": 1, "max_size": 4, "timeout": 5}
    )
    return registry_dir


@pytest.mark.slow
def test_greenlets_run_while_others_wait_for_the_server(
    directory: RegistryDirectory, canary: Canary
) -> None:
    """With gevent, one greenlet's query, or its wait for a connection, stops no other one."""
    code = GEVENT + (
        "began = time.monotonic()\n"
        "greenlets = [gevent.spawn(ask, 'SELECT 1 FROM pg_sleep(1)') for _ in range(8)]\n"
        "say('answers', sum(greenlet.get() for greenlet in greenlets))\n"
        "say('together', time.monotonic() - began < 6.0)\n"
        "registry.close()\n"
        "say('closed')\n"
    )
    with Program(code, directory, canary=canary) as program:
        program.wait_for("answers 8", PATIENCE)
        program.wait_for("together True", PATIENCE)
        program.wait_for("closed", PATIENCE)
        assert program.process.wait(10) == 0


@pytest.mark.slow
def test_dead_idle_connections_are_found_with_gevent(
    directory: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """No block gets a connection that the server has closed, although gevent's poll says less.

    What the server sent before, here the reason of the end, hides the end from the first look.
    """
    code = GEVENT + (
        "for number in range(20):\n"
        "    greenlets = [gevent.spawn(ask, 'SELECT 1 FROM pg_sleep(0.01)') for _ in range(4)]\n"
        "    gevent.joinall(greenlets, raise_error=True)\n"
        "    gevent.sleep(0.12)  # later they are looked at before they are handed out\n"
        "    say('idle', number)\n"
        "    sys.stdin.readline()\n"
        "    gevent.joinall([gevent.spawn(ask) for _ in range(4)], raise_error=True)\n"
        "say('dead', handle.status().evicted['dead'] >= 20)\n"
    )
    with Program(code, directory, canary=canary) as program:
        for number in range(20):
            program.wait_for(f"idle {number}", PATIENCE)
            database.terminate_backends()
            program.tell()
        program.wait_for("dead True", PATIENCE)


def test_files_are_watched_with_gevent(
    directory: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """A new password is used without a failed query. The files are polled, for greenlets to run."""
    code = GEVENT + (
        "before = backend()\n"
        "say('before')\n"
        "while backend() == before or registry.status().databases[0].version == 1:\n"
        "    gevent.sleep(0.01)\n"
        "say('rotated', registry.status().polling)\n"
    )
    with Program(code, directory, canary=canary) as program:
        program.wait_for("before", PATIENCE)
        database.rotate()
        directory.declare("orders", database, "pool")
        program.wait_for("rotated True", PATIENCE)
        assert program.process.wait(10) == 0


@pytest.mark.slow
def test_a_killed_greenlet_loses_no_connection(
    directory: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """A kill, or gevent's timeout, in a query or in the wait for a connection costs no slot."""
    code = GEVENT + (
        "for number in range(10):\n"
        "    long = [gevent.spawn(ask, 'SELECT pg_sleep(3)') for _ in range(6)]\n"
        "    gevent.sleep(0.01 * (number % 5))\n"
        "    gevent.killall(long)\n"
        "    with gevent.Timeout(0.001, False):\n"
        "        ask('SELECT pg_sleep(3)')\n"
        "    long = [gevent.spawn(ask, 'SELECT 1 FROM pg_sleep(0.01)') for _ in range(4)]\n"
        "    gevent.joinall(long, raise_error=True)\n"
        "say('all were served')\n"
    )
    with Program(code, directory, canary=canary) as program:
        program.wait_for("all were served", PATIENCE)
        assert program.process.wait(10) == 0
    database.terminate_backends()  # the server does not hear that no client waits for an answer


def test_a_late_patch_is_refused(directory: RegistryDirectory, canary: Canary) -> None:
    """What was imported before the patch keeps real locks, so the registry says what to do."""
    code = (
        "import pgmonkey.registry.registry\n"
        "from gevent import monkey\n"
        "monkey.patch_all()\n"
        "manager = pgmonkey.PGConnectionManager()\n"
        "for use in (\n"
        "    lambda: pgmonkey.Registry(argv[0]),\n"
        "    lambda: manager.get_database_connection(argv[0] + '/orders.yaml', 'normal'),\n"
        "):\n"
        "    try:\n"
        "        use()\n"
        "    except pgmonkey.PgmonkeyError as error:\n"
        "        say(error)\n"
    )
    with Program(code, directory, canary=canary) as program:
        assert program.process.wait(PATIENCE) == 0
        assert program.said == [*LATE, *LATE]


def test_a_patch_after_a_fork_is_refused(directory: RegistryDirectory, canary: Canary) -> None:
    """So do the workers of gunicorn with `--preload`: the first checkout raises, it does not hang."""
    code = (
        "import pgmonkey\n"
        "registry = pgmonkey.Registry(argv[0])\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        "else:\n"
        "    from gevent import monkey\n"
        "    monkey.patch_all()\n"
        "    try:\n"
        "        registry.get('orders').open()\n"
        "    except pgmonkey.PgmonkeyError as error:\n"
        "        say(error)\n"
        "    os._exit(0)\n"
    )
    with Program(code, directory, canary=canary) as program:
        assert program.process.wait(PATIENCE) == 0
        assert program.said == LATE


def test_a_process_without_poll_is_refused(directory: RegistryDirectory, canary: Canary) -> None:
    """That is what eventlet leaves; psycopg would stop all of its green threads."""
    code = (
        "import select\n"
        "del select.poll\n"
        "import pgmonkey\n"
        "manager = pgmonkey.PGConnectionManager()\n"
        "for use in (\n"
        "    lambda: pgmonkey.Registry(argv[0]),\n"
        "    lambda: manager.get_database_connection(argv[0] + '/orders.yaml', 'normal'),\n"
        "):\n"
        "    try:\n"
        "        use()\n"
        "    except pgmonkey.PgmonkeyError as error:\n"
        "        say(error)\n"
    )
    with Program(code, directory, canary=canary) as program:
        assert program.process.wait(PATIENCE) == 0
        sentence = [
            "this process has no select.poll, as after eventlet.monkey_patch()",
            "  hint: psycopg does not work with eventlet; use threads, asyncio or gevent",
        ]
        assert program.said == [*sentence, *sentence]


def test_windows_is_refused(canary: Canary) -> None:
    """The import says in one sentence that pgmonkey does not run there."""
    code = (
        "sys.platform = 'win32'\n"
        "try:\n"
        "    import pgmonkey\n"
        "except ImportError as error:\n"
        "    say(error)\n"
    )
    with Program(code, canary=canary) as program:
        assert program.process.wait(PATIENCE) == 0
        (line,) = program.said
        assert line.startswith("pgmonkey does not run on Windows: ")
