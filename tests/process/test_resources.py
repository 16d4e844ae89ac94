"""Resources that run out: descriptors, threads. The service goes on, and recovers by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory

DESCRIPTORS = """
import resource
from pathlib import Path
from pgmonkey import Registry
numbers = __import__("prometheus_client").CollectorRegistry()
path = Path(argv[0], "orders.yaml")
with Registry(argv[0], metrics=numbers, watch=False) as registry:
    handle = registry.get("orders")
    def works():
        with handle.connection(timeout=5) as connection:
            return connection.execute("SELECT 1").fetchone()
    works()
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    while True:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    say("open connections:", works())
    report = registry.reload()
    say("files:", sorted({one.code for ones in report.rejected.values() for one in ones}))
    say("still:", works(), registry.status().last_reload_successful)
    os.close(held.pop())
    try:
        registry.get("orders", force_reload=True)
    except Exception as error:
        say("connect:", type(error).__name__)
    say("still:", works())
    while held:
        os.close(held.pop())
    say("healed:", dict(registry.reload().rejected))
    registry.get("orders", force_reload=True)
    say("rotated:", works(), registry.status().last_reload_successful,
        numbers.get_sample_value("pgmonkey_pool_connect_failures_total",
                                 {"database": "orders", "type": "pool", "reason": "other"}))
"""


def test_without_descriptors_open_connections_serve_and_reloads_are_rejected_until_there_are_some(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Too many open files: the directory cannot be read, which is no deletion; then it heals."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 2})
    with Program(DESCRIPTORS, registry_dir, canary=canary) as program:
        assert program.code() == 0, program.text
        said = program.said
    assert said[0] == "open connections: (1,)"
    assert said[1].startswith("files: [")
    assert said[1] != "files: []"
    assert said[2] == "still: (1,) False"
    assert said[3] == "connect: ReloadRejectedError"
    assert said[4] == "still: (1,)"
    assert said[5] == "healed: {}"
    assert said[6].startswith("rotated: (1,) True")


THREADS = """
import threading
from pgmonkey import Registry
real = threading.Thread.start
denied = 0
def start(self):
    global denied
    if denying and (self.name.startswith("pgmonkey") or "Thread" in self.name or "pool" in self.name):
        denied += 1
        raise RuntimeError("can't start new thread")
    real(self)
threading.Thread.start = start
denying = False
with Registry(argv[0], metrics=None, watch=False) as registry:
    handle = registry.get("orders")
    def works():
        with handle.connection(timeout=5) as connection:
            return connection.execute("SELECT 1").fetchone()
    if argv[1] == "open":
        works()
    denying = True
    if argv[1] == "open":
        try:
            registry.get("orders", force_reload=True)
        except Exception as error:
            say("reload:", type(error).__name__)
        say("still:", works())
    else:
        try:
            works()
        except Exception as error:
            say("first:", type(error).__name__)
    denying = False
    say("healed:", works(), denied > 0 or argv[1] == "open")
    registry.get("orders", force_reload=True)
    say("rotated:", works(), registry.wait_drained(5))
"""


@pytest.mark.parametrize("when", ["open", "first"])
def test_without_threads_nothing_is_lost_and_the_next_try_works(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, when: str
) -> None:
    """An open pool serves and is reloaded; one that cannot start its threads raises, and opens later."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 2})
    with Program(THREADS, registry_dir, when, canary=canary) as program:
        assert program.code() == 0, program.text
        said = program.said
    assert said[-1] == "rotated: (1,) True"
    assert said[-2].startswith("healed: (1,)")
    if when == "open":
        assert said[0] == "still: (1,)", "a reload of an open pool needs no thread"
    else:
        assert said[0] == "first: RuntimeError"
    eventually(lambda: database.backends() == [], 5, "no connection is left over")


NO_WATCHER = """
import threading
from pgmonkey import PgmonkeyError, Registry
def start(self):
    raise RuntimeError("can't start new thread")
real, threading.Thread.start = threading.Thread.start, start
try:
    registry = Registry(argv[0], metrics=None)
except PgmonkeyError as error:
    say("refused", "thread" in str(error))
    threading.Thread.start = real
    registry = Registry(argv[0], metrics=None)
else:
    say("made", len(registry))
    threading.Thread.start = real
with registry:
    with registry.get("orders") as connection:
        say("used", connection.execute("SELECT 1").fetchone())
"""


def test_a_registry_that_gets_no_thread_works_without_or_says_so(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """No thread can be started: a registry is still made, or a PgmonkeyError has the reason."""
    registry_dir.declare("orders", database)
    with Program(NO_WATCHER, registry_dir, canary=canary) as program:
        assert program.code() == 0, program.text
        assert program.said[0] in ("made 1", "refused True")
        assert program.said[1] == "used (1,)"


UNKNOWN_USER = """
from pgmonkey import Registry
os.setgroups([]); os.setgid(54321); os.setuid(54321)
try:
    __import__("pwd").getpwuid(os.getuid())
except KeyError:
    say("no such user")
with Registry(argv[0], metrics=None) as registry:
    with registry.get("orders") as connection:
        say("user", connection.info.user == argv[1])
    with open(argv[0] + "/reports.yaml", "w") as file:
        file.write("connection_settings: {host: localhost, dbname: orders}\\n")
    report = registry.reload()
    say("rejected", *(one.key for one in report.rejected["reports"]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes an unknown user")
def test_a_user_without_an_entry_connects_because_everything_is_named(
    public_dir: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """OpenShift's random user ids: libpq would look itself up, so a database must name its user."""
    registry_dir = RegistryDirectory(public_dir / "registry.d")
    registry_dir.declare("orders", database)
    registry_dir.path.chmod(0o777)
    registry_dir.file("orders").chmod(0o644)
    with Program(UNKNOWN_USER, registry_dir, database.user, canary=canary) as program:
        assert program.code() == 0, program.text
        assert program.said[:2] == ["no such user", "user True"]
        assert program.said[2].startswith("rejected connection_settings")


ENVIRONMENT = """
from pgmonkey import Registry
with Registry(argv[0], metrics=None, watch=False) as registry:
    with registry.get("orders") as connection:
        info = connection.info
        say("orders", info.host == argv[1], info.user == argv[2], info.dbname == argv[3])
    try:
        with registry.get("reports"):
            pass
    except Exception as error:
        say("reports", type(error).__name__, error.reason)
"""


def test_the_variables_of_libpq_neither_fill_nor_override_anything(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> None:
    """A password in PGPASSWORD or ~/.pgpass does not mend a database that names none."""
    registry_dir.declare("orders", database)
    registry_dir.declare("reports", database, connection={"password": None})
    passfile = tmp_path / ".pgpass"
    passfile.write_text(f"*:*:*:*:{database.password}\n")
    passfile.chmod(0o600)
    hostile = {
        "PGHOST": "nowhere.invalid",
        "PGPORT": "1",
        "PGUSER": "somebody",
        "PGDATABASE": "nothing",
        "PGPASSWORD": database.password,
        "PGPASSFILE": str(passfile),
        "PGSSLMODE": "verify-full",
        "PGOPTIONS": "-c search_path=nowhere",
        "PGAPPNAME": "hostile",
        "HOME": str(tmp_path),
    }
    arguments = (registry_dir, database.host, database.user, database.name)
    with Program(ENVIRONMENT, *arguments, canary=canary, env=hostile) as program:
        assert program.code() == 0, program.text
        assert program.said == ["orders True True True", "reports ConnectError auth"]
