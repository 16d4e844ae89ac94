"""Networks that swallow everything: what they leave behind does not outlast them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.program import Program
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import Make, refuses, takes

CONNECT_TIMEOUT = 2
#: Seconds from the end of a silence to the first client that is served, besides `connect_timeout`.
RECOVERY = 2.0


@pytest.mark.slow
@pytest.mark.parametrize("idle", [1, 3])
def test_an_idle_connection_that_a_silent_network_forgot_stops_no_client(
    make: Make, proxy: ChaosProxy, idle: int
) -> None:
    """A connect fails while connections are idle that will never answer: the pool recovers.

    Nothing of the pool waits without a deadline for an answer on one of them, so that checkouts
    are served soon after new connections work again.
    """
    client = make(
        through=proxy,
        check_on_checkout=True,
        # Without autocommit the return of a connection would ask the silent server.
        connection={"connect_timeout": CONNECT_TIMEOUT, "autocommit": True},
    )
    with client.holding(idle):
        proxy.set("lost")
        refuses(client, 0.5)
    # No client asks while the pool gives up, so no checkout looks at the idle connections.
    eventually(
        lambda: client.handle.status().connect_failures["timeout"] >= 2, 15, "connects have failed"
    )
    proxy.set("pass")

    with takes(CONNECT_TIMEOUT + RECOVERY):
        assert client.ask(timeout=20) == 1
    with takes(CONNECT_TIMEOUT + RECOVERY), client.holding(4, timeout=20) as backends:
        assert len(set(backends)) == 4


def limits_of_silence(connection: Any) -> dict[str, int]:
    """Return the options of a connection's socket that end a silence, in seconds."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as found:
        options = {
            "keepalives": found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            "idle": found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            "interval": found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            "count": found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        }
        if sys.platform == "linux":
            milliseconds = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            options["unacknowledged"] = milliseconds // 1000
    return options


needs_options = pytest.mark.skipif(
    not hasattr(socket, "TCP_KEEPIDLE"), reason="this system names the options otherwise"
)


@needs_options
@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {"keepalives": 1, "idle": 30, "interval": 10, "count": 3, "unacknowledged": 30}),
        (
            {"keepalives_idle": 7, "keepalives_interval": "2s", "tcp_user_timeout": "9s"},
            {"keepalives": 1, "idle": 7, "interval": 2, "count": 3, "unacknowledged": 9},
        ),
    ],
)
def test_the_kernel_ends_a_silence_also_without_a_setting(
    make: Make, given: dict[str, Any], expected: dict[str, int]
) -> None:
    """Every connection over TCP has keepalives and a timeout, and what the file says wins."""
    client = make(connection=given)

    options = client.run(limits_of_silence)

    assert options == {key: expected[key] for key in options}


#: Runs in a network of its own, where all that is sent is lost while its loopback is down, and no
#: side hears of that. What listens there stands for the server: it passes all to its Unix socket.
PROGRAM = """
import asyncio, socket, subprocess, threading, time
import psycopg
from pgmonkey import Registry

def network(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

def forward(here, there):
    while data := here.recv(65536):
        there.sendall(data)

def serve():
    while True:
        client, _ = listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(argv[1])
        for pair in ((client, server), (server, client)):
            threading.Thread(target=forward, args=pair, daemon=True).start()

def ask(statement, cut):
    with handle as connection:
        connection.execute("SELECT 1")
        cut()
        connection.execute(statement)

async def ask_async(statement, cut):
    async with handle as connection:
        await connection.execute("SELECT 1")
        cut()
        await connection.execute(statement)

threading.excepthook = lambda _: None  # a relay ends with its connection
network("up")
listener = socket.create_server(("127.0.0.1", 5432))
threading.Thread(target=serve, daemon=True).start()
registry = Registry(argv[0], metrics=None)
handle = registry.get("orders")
if handle.connection_type == "async_pool":
    runner = asyncio.Runner()
    ask = lambda *arguments: runner.run(ask_async(*arguments))
for statement, cut in (
    ("SELECT 1", lambda: network("down")),
    ("SELECT pg_sleep(30)", threading.Timer(0.5, network, ["down"]).start),
):
    began = time.monotonic()
    try:
        ask(statement, cut)
    except psycopg.OperationalError:
        seconds = time.monotonic() - began
        say(statement, "ended" if seconds < 6 else f"took {seconds}")
    network("up")
    ask("SELECT 1", lambda: None)
    say("a checkout works again after", statement)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has networks of a process")
def test_a_statement_on_a_silent_network_ends(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    connection_type: str,
    canary: Canary,
) -> None:
    """It fails, whether the network swallows the statement or the answer, and the pool goes on.

    `tcp_user_timeout` ends the first, keepalives end the second; here they take two seconds. Every
    packet is lost, the acknowledgements too.
    """
    unshare = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "-rn")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("network namespaces are needed for this test")
        pytest.skip("no network namespaces here")
    registry_dir.declare(
        "orders",
        database,
        connection_type,
        connection={
            "host": "127.0.0.1",
            "port": 5432,
            "tcp_user_timeout": "2s",
            "keepalives_idle": 1,
            "keepalives_interval": 1,
        },
    )
    unix = database.server.socket_directory / f".s.PGSQL.{database.port}"

    with Program(PROGRAM, registry_dir, unix, prefix=unshare, canary=canary) as program:
        for statement in ("SELECT 1", "SELECT pg_sleep(30)"):
            program.wait_for(f"{statement} ended", 40)
            program.wait_for(f"a checkout works again after {statement}")
    # The server did not hear either that no client waits for the second one.
    database.terminate_backends()
