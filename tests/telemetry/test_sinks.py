"""Logs that cannot be written, in applications and in the service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.kit import Canary, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.command import command, environment
from tests.kit.ports import free_port
from tests.kit.process import end
from tests.kit.program import Program
from tests.kit.secret_volume import SecretVolume

SINKS = {
    "print": "structlog.configure(processors=[json], logger_factory=structlog.PrintLoggerFactory(out))",
    "write": "structlog.configure(processors=[json], logger_factory=structlog.WriteLoggerFactory(out))",
    "bytes": (
        "structlog.configure(processors=[structlog.processors.JSONRenderer("
        "serializer=lambda event, **_: json_text(event).encode())],"
        " logger_factory=structlog.BytesLoggerFactory(open(out.fileno(), 'wb', closefd=False)))"
    ),
    "structlog over logging": (
        "logging.basicConfig(stream=out, level='INFO');"
        "structlog.configure(processors=[structlog.stdlib.filter_by_level, json],"
        " logger_factory=structlog.stdlib.LoggerFactory(),"
        " wrapper_class=structlog.stdlib.BoundLogger)"
    ),
    "logging": "logging.basicConfig(stream=out, level='INFO')",
    "a file of logging": "logging.basicConfig(filename=f'/proc/self/fd/{out.fileno()}', level='INFO')",
    "a processor that fails": ("structlog.configure(processors=[lambda *_: 1 / 0])"),
}
PROGRAM = """
import json as codec, logging, structlog
from pathlib import Path
from pgmonkey import Registry
from pgmonkey.telemetry import events

out = sys.stdout
json = structlog.processors.JSONRenderer()
json_text = codec.dumps
path = Path(argv[0], "orders.yaml")
good = path.read_text()
for name, configure in codec.loads(argv[1]).items():
    exec(configure)
    path.write_text(good)
    with Registry(argv[0], metrics=None, watch=False) as registry:
        with registry.get("orders") as connection:
            connection.execute("SELECT 1")
        path.write_text(good + "description: another\\n")
        assert registry.reload().applied == ("orders",)
        registry.get("orders", force_reload=True)
        path.write_text("[")
        assert set(registry.reload().rejected) == {"orders"}
        with registry.get("orders") as connection:
            connection.execute("SELECT 1")
    say(name)
    if name == "print":
        assert events.dropped() > 0  # what structlog itself could not write is counted
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
os._exit(0)  # Python itself complains about an output that cannot be flushed
"""


@pytest.mark.parametrize("output", ["full disk", "closed pipe"])
def test_an_application_goes_on(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, output: str
) -> None:
    """Checkouts, reloads and rejections work with every kind of log that cannot be written."""
    registry_dir.declare("orders", database)
    target = unwritable(output)
    try:
        with Program(
            PROGRAM, registry_dir, json.dumps(SINKS),
            canary=canary, stdout=target, stderr=target, options=("-u",),
        ) as program:  # fmt: skip
            assert program.code(40) == 0
            assert program.said == list(SINKS)
    finally:
        os.close(target)


@pytest.mark.parametrize("output, log_format", [("full disk", "json"), ("closed pipe", "console")])
def test_the_service_goes_on(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    output: str,
    log_format: str,
) -> None:
    """Without a log that it can write to, the service answers, applies a rotation and ends in order."""
    registry_dir.declare("orders", database, volume=volume)
    port = free_port()
    target = unwritable(output)
    process = subprocess.Popen(
        command(
            "serve", registry_dir, "--listen", f"127.0.0.1:{port}", "--grace", "0",
            "--log-format", log_format,
        ),
        stdin=subprocess.DEVNULL, stdout=target, stderr=target, env=environment(),
    )  # fmt: skip
    os.close(target)
    try:

        def applied() -> bool:
            try:
                with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    text = answer.read().decode()
            except OSError:
                assert process.poll() is None
                return False
            return f'pgmonkey_config_version{{database="orders"}} {wanted}' in text

        wanted = 1.0
        eventually(applied, 20, "it answers")
        database.rotate()
        volume.write({"username": database.user, "password": database.password})
        wanted = 2.0
        eventually(applied, 20, "the rotation is applied")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        end(process, signal.SIGKILL)


def unwritable(output: str) -> int:
    """Return a descriptor to which nothing can be written."""
    if output == "full disk":
        return os.open(Path("/dev/full"), os.O_WRONLY)
    reading, writing = os.pipe()
    os.close(reading)
    return writing
