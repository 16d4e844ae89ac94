"""The files of the multi-process mode say what the collector says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.kit import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.program import Program
from tests.kit.registry_dir import RegistryDirectory

PRELUDE = """
import time
import prometheus_client
from prometheus_client.multiprocess import MultiProcessCollector
from pgmonkey import Registry
from pgmonkey.telemetry import metrics

here = prometheus_client.CollectorRegistry()
files = prometheus_client.CollectorRegistry()
MultiProcessCollector(files)

def samples(registry):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if "longest" not in sample.name
    }

def requests():
    return samples(files)["pgmonkey_pool_requests_total", (("database", "orders"), ("type", "pool"))]

registry = Registry(argv[0], metrics=here)
handle = registry.get("orders")
"""


def test_the_files_hold_what_a_scrape_of_the_process_shows(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> None:
    """After swaps, and written again and again, every sample is the same."""
    program = """
for number in range(3):
    with handle, handle:
        pass
    registry.get("orders", force_reload=True)
    registry.reload()
    metrics.write_files()
assert registry.wait_drained(5)
for _ in range(500):  # the last connection that is replaced may come between two looks
    metrics.write_files()
    of_process, of_files = samples(here), samples(files)
    if of_process == of_files:
        break
    time.sleep(0.01)
assert of_process == of_files, set(of_process.items()) ^ set(of_files.items())
assert any("_bucket" in name for name, _ in of_files)
say("equal")
registry.close()
closed = samples(files)
for (name, labels), value in of_files.items():
    if name in ("pgmonkey_pool_connections", "pgmonkey_cache_size"):
        continue  # gauges, by now those of the last tick or 0
    if name.endswith(("_total", "_count", "_sum", "_bucket")):
        assert closed[name, labels] >= value, name
metrics.write_files()
assert all(
    value == 0 for (name, _), value in samples(files).items() if name == "pgmonkey_pool_connections"
)
say("closed")
"""
    run(program, registry_dir, database, canary, tmp_path)


def test_a_forked_child_counts_from_zero_into_files_of_its_own(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> None:
    """Nothing that the parent has counted is counted once more by its child."""
    program = """
for _ in range(5):
    with handle:
        pass
if (child := os.fork()) == 0:
    for _ in range(3):
        with handle:
            pass
    metrics.write_files()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
metrics.write_files()
assert requests() == 8, requests()
with handle:
    pass
registry.close()
assert requests() == 9, requests()
say("equal")
say("closed")
"""
    run(program, registry_dir, database, canary, tmp_path)


def test_the_state_of_a_database_is_that_of_its_worst_worker(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> None:
    """One worker uses a database and another does not: it is one state, and is counted once."""
    program = """
def states():
    return {
        (name, state): value
        for (sample, labels), value in samples(files).items()
        if sample == "pgmonkey_database_state"
        for name, state in [(dict(labels)["database"], dict(labels)["state"])]
    }

def shown():
    assert {name for name, _ in states()} == {"orders", "ledger"}
    assert len(states()) == 10
    return {name: state for (name, state), value in states().items() if value}

with handle:
    metrics.write_files()
assert shown() == {"orders": "ready", "ledger": "idle"}, states()
if (child := os.fork()) == 0:
    with registry.get("orders"):  # opened again, and then not in use in this process
        pass
    registry.get("orders").close()
    metrics.write_files()
    assert shown() == {"orders": "ready", "ledger": "idle"}, states()
    registry.probe("ledger")
    metrics.write_files()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert shown() == {"orders": "ready", "ledger": "down"}, states()
metrics.write_files()
assert shown() == {"orders": "ready", "ledger": "down"}, states()
assert samples(files)["pgmonkey_registry_databases", ()] == 2
prometheus_client.multiprocess.mark_process_dead(child)
assert shown() == {"orders": "ready", "ledger": "idle"}, states()
handle.close()
registry.close()
metrics.write_files()
assert not any(states().values())
say("equal")
say("closed")
"""
    registry_dir.declare("ledger", database, "normal", connection={"port": 1})
    logged = r"event='connect.failed' database='ledger' reason='refused' .*\n"  # by the probe
    run(program, registry_dir, database, canary, tmp_path, logged)


def run(
    code: str,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
    tmp_path: Path,
    logged: str = "",
) -> None:
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 2})
    files = tmp_path / "files"
    files.mkdir()
    with Program(
        PRELUDE + code,
        registry_dir,
        canary=canary,
        # Python 3.12 warns of every fork in a process with threads, whatever the threads are.
        options=("-W", "ignore:This process:DeprecationWarning"),
        env={"PROMETHEUS_MULTIPROC_DIR": str(files)},
    ) as program:
        program.wait_for("closed")
        assert program.code() == 0
        assert re.fullmatch(logged, program.text)
