"""Applications whose loggers are async: structlog's AsyncBoundLogger, and classes of their own."""

from __future__ import annotations

import json

import pytest

from tests.kit import Canary, RegistryDirectory
from tests.kit.program import Program

pytestmark = pytest.mark.serverless

PRELUDE = """
import asyncio, contextlib, json, logging, threading, time, warnings
from pathlib import Path
import prometheus_client, structlog
from pgmonkey import ConnectError, Registry
from pgmonkey.telemetry import events

class Own:
    def __init__(self, logger, processors, context):
        self.logger, self.processors, self._context = logger, processors, context
    def bind(self, **values):
        return Own(self.logger, self.processors, {**self._context, **values})
    unbind = try_unbind = new = bind
    async def info(self, event, **values):
        raise AssertionError("the sync methods of structlog are called instead")
    warning = info

written = []
def keep(logger, method, event):
    written.append(dict(event, method=method, thread=threading.current_thread().name))
    return event

def configure(wrapper, *processors, **more):
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *processors, keep,
                    structlog.processors.JSONRenderer()],
        wrapper_class=wrapper, **more)

def lost(registry):
    return registry.get_sample_value("pgmonkey_events_dropped_total")

bad = "connection_settings: ["
path = Path(argv[0], "orders.yaml")
good = path.read_text()
"""


def run(
    code: str, registry_dir: RegistryDirectory, canary: Canary, *arguments: str
) -> tuple[list[str], str]:
    """Run a program to its end, and return what it said and what it wrote."""
    registry_dir.write(
        "orders",
        {"connection_settings": {"host": "127.0.0.1", "port": 1, "dbname": "d", "user": "u"}},
    )
    with Program(
        PRELUDE + code, registry_dir, *arguments, canary=canary, options=("-W", "error")
    ) as program:
        assert program.code(40) == 0, program.text
        return program.said, program.text


def test_every_event_arrives_in_its_order(registry_dir: RegistryDirectory, canary: Canary) -> None:
    """From threads without a loop, from a running loop, and from a forked child; nothing warns."""
    program = """
logging.basicConfig(format="%(message)s", level="INFO", stream=sys.stdout)

def use(registry):
    path.write_text(bad)
    assert set(registry.reload().rejected) == {"orders"}
    path.write_text(good)
    registry.reload()

def in_a_thread():
    with Registry(argv[0], metrics=None, watch=False) as registry:
        use(registry)
        with contextlib.suppress(ConnectError), registry.get("orders"):
            pass

async def in_a_loop():
    async with Registry(argv[0], metrics=None, watch=False) as registry:
        use(registry)
        structlog.contextvars.bind_contextvars(number=7)
        with contextlib.suppress(ConnectError):
            async with registry.get("orders", "async"):
                pass

for wrapper, factory in (
    (structlog.stdlib.BoundLogger, structlog.stdlib.LoggerFactory()),  # both have async methods
    (structlog.make_filtering_bound_logger(20), structlog.PrintLoggerFactory()),  # beside sync ones
    (structlog.stdlib.AsyncBoundLogger, structlog.stdlib.LoggerFactory()),  # the rest comes later
    (structlog.stdlib.AsyncBoundLogger, structlog.PrintLoggerFactory()),
    (Own, structlog.PrintLoggerFactory()),
):
    configure(wrapper, logger_factory=factory)
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    asyncio.run(in_a_loop())
while len(written) < 40:
    time.sleep(0.001)
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside a thread
configure(structlog.stdlib.AsyncBoundLogger, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
if (child := os.fork()) == 0:
    Registry(argv[0], metrics=None, watch=False).close()
    sys.exit()
os.waitpid(child, 0)
say(len(events.recent()), events.dropped())
"""
    said, text = run(program, registry_dir, canary)
    lines = [json.loads(line) for line in text.splitlines()]
    first, last = "registry.loaded", "registry.closed"
    once = [first, "config.rejected", "connect.failed", last]
    assert [line["event"] for line in lines] == [*once * 10, first, last]
    assert said == ["40 0"]
    numbers = [line.get("number") for line in lines]
    assert numbers == [*[None] * 6, 7, 7] * 5 + [None] * 2


def test_a_slow_log_does_not_block_a_loop(registry_dir: RegistryDirectory, canary: Canary) -> None:
    """While nothing can be written the loop turns; at most 1,000 events wait, and others are counted."""
    program = """
reached, go_on = threading.Event(), threading.Event()
def slow(logger, method, event):
    reached.set()
    assert go_on.wait(30)
    return event
configure(structlog.stdlib.AsyncBoundLogger, slow)

async def main():
    mine = prometheus_client.CollectorRegistry()
    async with Registry(argv[0], metrics=mine, watch=False) as registry:
        while not reached.is_set():
            await asyncio.sleep(0.01)
        assert not written
        for number in range(1010):
            events.emit("watch.restored", directory=str(number))
        assert lost(mine) == 11, lost(mine)
        go_on.set()
        while len(written) < 1000:
            await asyncio.sleep(0.01)
asyncio.run(main())
while written[-1]["event"] != "registry.closed":
    threading.Event().wait(0.01)
assert [event["directory"] for event in written[1:-1]] == list(map(str, range(999)))
say("done")
"""
    said, _ = run(program, registry_dir, canary)
    assert said == ["done"]


def test_an_event_that_cannot_be_written_is_counted(
    registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """A processor that fails, and loggers whose own methods are async: nothing raises, nothing warns."""
    program = """
async def main():
    for number, name in enumerate(["processor", "logger"], 1):
        if name == "processor":
            configure(structlog.stdlib.AsyncBoundLogger, lambda *_: 1 / 0)
        else:
            class Logger:
                async def info(self, text):
                    pass
                warning = info
            configure(structlog.make_filtering_bound_logger(20),
                      logger_factory=lambda *_: Logger())
        mine = prometheus_client.CollectorRegistry()
        async with Registry(argv[0], metrics=mine, watch=False):
            while lost(mine) < 2 * number - 1:
                await asyncio.sleep(0.01)
        while events.dropped() < 2 * number:
            await asyncio.sleep(0.01)
        say(name)
asyncio.run(main())
"""
    said, text = run(program, registry_dir, canary)
    assert said == ["processor", "logger"]
    assert text == ""


def test_an_event_at_the_end_of_the_interpreter_is_written(
    registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """A registry that is closed by `atexit` says so, also when no thread can be started any more."""
    program = """
import atexit
configure(structlog.stdlib.AsyncBoundLogger, logger_factory=structlog.PrintLoggerFactory())
registry = Registry(argv[0], metrics=None, watch=False)
atexit.register(registry.close)
"""
    _, text = run(program, registry_dir, canary)
    assert [json.loads(line)["event"] for line in text.splitlines()] == [
        "registry.loaded",
        "registry.closed",
    ]
