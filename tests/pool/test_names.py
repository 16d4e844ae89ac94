"""Host names that no server resolves: the deadline of a connect holds for its lookup too."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kit import Canary
from tests.kit.components import need
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory

# User, mounts and network of its own: there the resolver is told to ask a name server that
# takes every question and answers none.
NAMESPACE = ("unshare", "--map-root-user", "--mount", "--net")

SILENT = """
import asyncio, fcntl, socket, struct, subprocess, threading, time

with socket.socket() as control:  # the loopback interface, up
    fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.53", 53))
subprocess.run(["mount", "--bind", argv[1], "/etc/resolv.conf"], check=True)

from pgmonkey import Registry

def report(error):
    say(type(error).__name__, error.reason, "%.1f" % (time.monotonic() - began))
    print(error, flush=True)

async def ask(handle):
    try:
        async with handle:
            pass
    except Exception as error:
        report(error)

with Registry(argv[0], metrics=None, watch=False) as registry:
    handle = registry.get("orders")
    for _ in range(3):
        began = time.monotonic()
        if handle.connection_type.startswith("async"):
            asyncio.run(ask(handle))
        else:
            try:
                with handle:
                    pass
            except Exception as error:
                report(error)
        say("ended", "%.1f" % (time.monotonic() - began))
    say("threads", sum(one.name.startswith("pgmonkey-lookup") for one in threading.enumerate()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("connection_type", ["normal", "pool", "async", "async_pool"])
def test_a_name_server_that_is_silent_costs_no_more_than_connect_timeout(
    registry_dir: RegistryDirectory, canary: Canary, tmp_path: Path, connection_type: str
) -> None:
    """The error says `dns` and comes in time, each time, though the resolver waits for long."""
    possible = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    need(possible.returncode == 0, "user namespaces")
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.53\noptions timeout:30 attempts:1\n")
    registry_dir.write(
        "orders",
        {
            "connection_type": connection_type,
            "timeout": 3,
            "connection_settings": {
                "host": "db.internal",
                "dbname": "orders",
                "user": "orders",
                "password": canary.secret(),
                "connect_timeout": 2,
            },
        },
    )
    with Program(SILENT, registry_dir, resolver, canary=canary, prefix=NAMESPACE) as program:
        assert program.code(40) == 0, program.text
        said = [line.split() for line in program.said]
        assert "failed to resolve host 'db.internal': no answer within 2 s" in program.text

    errors, ended = said[0:6:2], said[1:6:2]
    single = connection_type in ("normal", "async")
    for kind, reason, seconds in errors:
        assert kind == ("ConnectError" if single else "CheckoutTimeout")
        assert reason == "dns"
        assert float(seconds) >= (2.0 if single else 2.9)
        assert float(seconds) <= 8
    assert all(float(seconds) <= 8 for _, seconds in ended), "no loop waits for the resolver"
    assert said[6] == ["threads", "1"], "all ask the same resolver's thread"
