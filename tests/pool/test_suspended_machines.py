"""A machine that was suspended, and what its pools do when it wakes up."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.program import Program
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory

#: To the process, `suspend` is what a suspend of ten minutes is: it moves into a namespace where more
#: time has passed since the boot, while `time.monotonic` goes on as before. The kernel allows that
#: to a process with one thread: so the handle is async, and no file is watched.
PROGRAM = """
import asyncio, ctypes, subprocess, time
from pgmonkey import Registry

def suspend():
    later = subprocess.Popen(
        ["unshare", "--time", "--boottime", "600", "sh", "-c", "echo ready; exec sleep 20"],
        stdout=subprocess.PIPE,
    )
    later.stdout.readline()
    monotonic, since_boot = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
    namespace = os.open(f"/proc/{later.pid}/ns/time_for_children", os.O_RDONLY)
    assert ctypes.CDLL(None).setns(namespace, 0) == 0
    assert time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot > 600
    assert time.monotonic() - monotonic < 60
    later.kill()

async def main():
    registry = Registry(argv[0], metrics=None, watch=False)
    handle = registry.get("orders")
    async with handle:
        say("borrowed")
        sys.stdin.readline()
    suspend()
    async with handle.connection(timeout=5) as connection:
        await connection.execute("SELECT 1")
    evicted = handle.status().evicted
    say(*(reason for reason in evicted if evicted[reason]))
    await handle.close()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has time namespaces")
@pytest.mark.parametrize(
    "lost, max_lifetime, reason", [(True, "1h", "check"), (False, "5min", "lifetime")]
)
def test_ages_count_the_time_of_a_suspend(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    canary: Canary,
    lost: bool,
    max_lifetime: str,
    reason: str,
) -> None:
    """A connection that came back just before a suspend is not fresh after it, but long idle.

    The network forgot it meanwhile, so it is asked for a sign of life and replaced; or it is older
    than `max_lifetime`.
    """
    unshare = () if os.geteuid() == 0 else ("unshare", "-r")
    tried = [*unshare, "unshare", "--time", "--boottime", "600", "true"]
    if subprocess.run(tried, capture_output=True, check=False).returncode != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("time namespaces are needed for this test")
        pytest.skip("no time namespaces here")
    registry_dir.declare(
        "orders",
        database,
        "async_pool",
        connection={"host": proxy.host, "port": proxy.port, "autocommit": True},
        async_pool_settings={"max_size": 1, "max_lifetime": max_lifetime},
    )

    with Program(PROGRAM, registry_dir, prefix=unshare, canary=canary) as program:
        program.wait_for("borrowed", 40)
        if lost:
            proxy.set("lost")
            proxy.set("pass")
        program.tell()
        program.wait_for(reason)
        assert program.process.wait(10) == 0
