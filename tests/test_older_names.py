"""What programs of 4.0 import from inside of pgmonkey, and find on its connections."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import pgmonkey
from pgmonkey import Database, PGConnectionManager
from tests.kit import TemporaryDatabase
from tests.kit.eventually import eventually

MOVED = {
    "pgmonkey.common.utils.redaction": "redact_config",
    "pgmonkey.common.utils.configutils": "load_config",
    "pgmonkey.common.utils.envutils": "EnvInterpolationError",
    "pgmonkey.managers.pgconnection_manager": "PGConnectionManager",
}
GONE = {
    "pgmonkey.common.exceptions": ("ConfigFileCreatedError", "nothing raises it"),
    "pgmonkey.common.utils.configutils": ("normalize_config", "load_config does it"),
    "pgmonkey.common.utils.envutils": ("resolve_env_vars", "with resolve_env=True"),
    "pgmonkey.managers.pgimport_manager": ("PGImportManager", "run pgmonkey pgimport"),
    "pgmonkey.managers.pgexport_manager": ("PGExportManager", "run pgmonkey pgexport"),
    "pgmonkey.managers.pgconfig_manager": ("PGConfigManager", "run pgmonkey pgconfig"),
    "pgmonkey.managers.pgcodegen_manager": ("PGCodegenManager", "generate-code"),
    "pgmonkey.managers.pg_server_config_manager": ("PGServerConfigManager", "pgserverconfig"),
}


@pytest.mark.parametrize("module", MOVED)
def test_a_name_that_moved(module: str) -> None:
    """The name is that of `pgmonkey`, and the warning names the line that imports it."""
    name = MOVED[module]
    program = f"from {module} import {name}\nimport pgmonkey\nassert {name} is pgmonkey.{name}\n"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    warning = f"<string>:1: DeprecationWarning: import {name} from pgmonkey, not from {module}\n"
    assert done.stderr.startswith(warning)
    assert done.stderr.count("Warning") == 1


def test_a_module_that_moved_is_an_attribute_of_its_parents() -> None:
    """A program reaches the module by its dotted name after `import pgmonkey.common...`."""
    importlib.import_module("pgmonkey.common.utils.redaction")
    inside: Any = pgmonkey
    with pytest.warns(DeprecationWarning, match="import redact_config from pgmonkey"):
        assert inside.common.utils.redaction.redact_config is pgmonkey.redact_config


@pytest.mark.parametrize("module", GONE)
def test_a_name_that_is_gone(module: str) -> None:
    """The error of the import says what to use."""
    name, says = GONE[module]
    with pytest.raises(ImportError, match=says):
        exec(f"from {module} import {name}")


def test_what_was_never_there() -> None:
    """A module or a name that 4.0 did not have raises the usual error."""
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pgmonkey.common.utils.nothing")
    module = importlib.import_module("pgmonkey.common.utils.redaction")
    assert not hasattr(module, "nothing")


#: Imports modules of 4.0 in four threads at once, as if each time were the first.
_AT_ONCE = """
import importlib, sys, threading
import pgmonkey
sys.setswitchinterval(1e-6)
def load(name):
    barrier.wait()
    try:
        importlib.import_module(name)
    except ImportError as error:
        errors.append(error)
errors = []
for _ in range(150):
    for name in [name for name in sys.modules if name.startswith(("pgmonkey.common", "pgmonkey.man"))]:
        del sys.modules[name]
    barrier = threading.Barrier(4)
    names = ("pgmonkey.managers.pgconnection_manager", "pgmonkey.common.utils.redaction")
    threads = [threading.Thread(target=load, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(errors)
"""


def test_threads_may_import_older_names_at_once() -> None:
    """No thread gets a package that another one is still making."""
    done = subprocess.run(
        [sys.executable, "-c", _AT_ONCE], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_nobody_pays_for_it() -> None:
    """`import pgmonkey` loads no module of older names."""
    program = "import sys\nfrom pgmonkey import *\nprint('pgmonkey.common' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# ---- connections

ON_A_HANDLE = ["commit", "rollback", "config", "pool", "test_connection"]
IN_A_BLOCK = ["config", "connection_type", "disconnect", "pool", "test_connection"]


@pytest.fixture
def manager() -> Iterator[PGConnectionManager]:
    """A manager whose handles are closed after the test."""
    with PGConnectionManager() as manager:
        yield manager


def settings(database: TemporaryDatabase, connection_type: str) -> dict[str, Any]:
    """Return a config of a database, as a dictionary."""
    return {"connection_type": connection_type, "connection_settings": database.parameters()}


def said_of(owner: Any, name: str) -> str:
    """Return what the error says; to `hasattr` it is not there."""
    assert not hasattr(owner, name)
    with pytest.raises(AttributeError) as caught:
        getattr(owner, name)
    return str(caught.value)


@pytest.mark.parametrize("connection_type", ["normal", "pool"])
def test_attributes_of_a_connection_of_4_0(
    manager: PGConnectionManager, database: TemporaryDatabase, connection_type: str
) -> None:
    """Each attribute works, or its error says in one sentence what to write."""
    handle: Database = manager.get_database_connection_from_dict(
        settings(database, connection_type)
    )
    for name in ON_A_HANDLE:
        assert f"a handle has no {name}; " in said_of(handle, name)
    assert handle.connection_type == connection_type
    with handle.cursor() as cur:
        assert cur.execute("SELECT 1").fetchone() == (1,)
    with handle as conn:
        for name in IN_A_BLOCK:
            assert said_of(conn, name).startswith(f"a connection has no {name}; ")
        assert conn.connection is conn
        conn.execute("SELECT 1")
        conn.commit()
        conn.rollback()
        with conn.transaction(), conn.cursor() as cur:
            cur.execute("SELECT 1")
    with pytest.warns(DeprecationWarning, match="close"):
        handle.disconnect()  # type: ignore[attr-defined]  # the older name
    eventually(lambda: database.backends() == [], 5)


@pytest.mark.parametrize("connection_type", ["async", "async_pool"])
async def test_attributes_of_an_async_connection_of_4_0(
    database: TemporaryDatabase, connection_type: str
) -> None:
    """Each attribute of an async one works, or its error says what to write."""
    async with PGConnectionManager() as manager:
        config = settings(database, connection_type)
        handle: Any = await manager.get_database_connection_from_dict(config)
        for name in ON_A_HANDLE:
            assert f"a handle has no {name}; " in said_of(handle, name)
        async with handle.cursor() as cur:
            await cur.execute("SELECT 1")
        async with handle as conn:
            for name in IN_A_BLOCK:
                assert said_of(conn, name).startswith(f"a connection has no {name}; ")
            assert conn.connection is conn
            await conn.commit()
            await conn.rollback()
        with pytest.warns(DeprecationWarning, match="close"):
            await handle.disconnect()
