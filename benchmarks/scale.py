"""Scale: from 10 to 5,000 declared databases, 1,000 open ones, 200 opened at once."""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import prometheus_client
import psycopg

from benchmarks import loading
from benchmarks.comparison import Result, number
from benchmarks.setting import Setting, setting
from pgmonkey import Registry

DECLARED = (10, 100, 1000, 5000)
IDLE = 1000
OPEN = 1000
AT_ONCE = 200
RENAMES = 15
#: Seconds in which a process does nothing: the files are looked at once in them.
NOTHING = 31
PROGRAM = f"""
import sys, time
from pgmonkey import Registry
with Registry(sys.argv[1], trust="off"):
    time.sleep(3)
    began = time.process_time()
    time.sleep({NOTHING})
    print(time.process_time() - began)
"""


def run() -> list[Result]:
    """Measure what each database costs, declared and open."""
    results = [*_declared(), _idle()]
    with setting() as place:
        results += _renamed(place)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    with setting(max_connections=str(OPEN + 50)) as place:
        results += _opened(place)
    with setting(max_connections=str(AT_ONCE + 50)) as place:
        results += _at_once(place)
    return results


def _declared() -> list[Result]:
    results: list[Result] = []
    print("\nDeclared databases, none of them open\n")
    print("| databases | load, each | memory, each | threads | scrape, each | one changed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count in DECLARED:
        with TemporaryDirectory() as name:
            directory = Path(name)
            for one in range(count):
                loading.write(directory, one)
            exporter = prometheus_client.CollectorRegistry()
            began = perf_counter()
            with Registry(directory, watch=False, metrics=exporter, trust="off") as registry:
                load = perf_counter() - began
                threads = threading.active_count()
                scrape = min(_scrape(exporter) for _ in range(3))
                changes = []
                for timeout in range(5):
                    loading.write(directory, 7, timeout=timeout + 1)
                    began = perf_counter()
                    assert registry.reload().applied == ("db-7",)
                    changes.append(perf_counter() - began)
            memory = _memory(directory)
        print(
            f"| {count:,} | {load / count * 1e3:.2f} ms | {memory / count / 1024:.1f} KiB"
            f" | {threads - 1} | {scrape / count * 1e6:.0f} us | {min(changes) * 1e3:.1f} ms |"
        )
        if count == 1000:
            results += [
                number("a declared, unused database", memory / count / 1024, "KiB", bar=8),
                number("its threads", threads - 1, "threads", bar=0),
                number(
                    "from a changed file to its being in force, 1 of 1,000",
                    [one * 1e3 for one in changes],
                    "ms",
                    bar=50,
                ),
            ]
    return results


def _idle() -> Result:
    with TemporaryDirectory() as name:
        for one in range(IDLE):
            loading.write(Path(name), one)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name], stdout=subprocess.PIPE, text=True, check=True
        )
    share = float(done.stdout) / NOTHING * 100
    return number(f"CPU of a process that does nothing, {IDLE:,} databases", share, "%", bar=0.2)


def _renamed(place: Setting) -> list[Result]:
    """Measure from the rename of a file until a checkout gets a connection that was made with it."""
    for one in range(IDLE - 1):
        loading.write(place.directory, one)
    place.declare("orders", "pool")
    milliseconds, connects = [], []
    with Registry(place.directory, metrics=None, trust="off") as registry:
        handle = registry.get("orders")
        handle.open()
        for one in range(RENAMES):
            connects.append(_connect(place))
            time.sleep(0.3)
            place.declare("orders", "pool", more=f"  application_name: version-{one}")
            began = perf_counter()
            while _name(handle) != f"version-{one}":
                time.sleep(0.001)
            milliseconds.append((perf_counter() - began) * 1e3)
    probe = statistics.median(connects) * 1e3
    return [
        number(
            f"from rename to rotation, 1 of {IDLE:,}, less the probe's connect of {probe:.0f} ms",
            [one - probe for one in milliseconds],
            "ms",
            bar=50,
        )
    ]


def _connect(place: Setting) -> float:
    began = perf_counter()
    psycopg.connect(**place.arguments).close()
    return perf_counter() - began


def _name(handle: Any) -> str | None:
    with handle as connection:
        name: str | None = connection.info.parameter_status("application_name")
        return name


def _memory(directory: Path) -> int:
    """Return the bytes of Python objects that a registry of this directory keeps."""
    with Registry(directory, watch=False, metrics=None, trust="off"):
        pass  # what is made once, and stays, is made
    gc.collect()
    tracemalloc.start()
    with Registry(directory, watch=False, metrics=None, trust="off"):
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return kept


def _scrape(exporter: prometheus_client.CollectorRegistry) -> float:
    began = perf_counter()
    prometheus_client.generate_latest(exporter)
    return perf_counter() - began


def _declare(place: Setting, count: int) -> list[str]:
    names = [f"db-{one:04}" for one in range(count)]
    for name in names:
        place.declare(name, "pool", size=2)
    return names


def _opened(place: Setting) -> list[Result]:
    names = _declare(place, OPEN)
    with Registry(place.directory, watch=False, metrics=None, trust="off") as registry:
        threads, resident = threading.active_count(), _resident()
        began = perf_counter()
        for name in names:
            registry.get(name).open()
        seconds = perf_counter() - began
        more = (threading.active_count() - threads) / OPEN
        memory = (_resident() - resident) / OPEN
        began, work = perf_counter(), time.process_time()
        time.sleep(2)
        idle = (time.process_time() - work) / (perf_counter() - began)
    print(
        f"\n{OPEN:,} open pools of one connection: opened in {seconds:.1f} s, one after the other;"
        f" {memory / 1024:.0f} KiB and {more:.2f} threads each; idle they use {idle:.1%} of a CPU"
    )
    return [
        number("threads of an open sync pool", more, "threads", bar=2),
        number("memory of an open sync pool with one connection", memory / 1024, "KiB"),
    ]


def _at_once(place: Setting) -> list[Result]:
    names = _declare(place, AT_ONCE)
    stop, slowest = threading.Event(), [0.0]

    def others() -> None:
        with place.server.connect() as connection:
            connection.autocommit = True
            while not stop.wait(0.001):
                began = perf_counter()
                connection.execute("SELECT 1")
                slowest[0] = max(slowest[0], perf_counter() - began)

    with Registry(place.directory, watch=False, metrics=None, trust="off") as registry:
        other = threading.Thread(target=others)
        other.start()
        began = perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as executor:
            list(executor.map(lambda name: registry.get(name).open(), names))
        seconds = perf_counter() - began
        stop.set()
        other.join()
    print(
        f"\n{AT_ONCE} databases opened at once: {seconds:.2f} s in all;"
        f" the longest `SELECT 1` of another session meanwhile: {slowest[0] * 1e3:.0f} ms"
    )
    return [
        number(f"opening {AT_ONCE} databases at once", seconds, "s"),
        number("the longest `SELECT 1` of another session meanwhile", slowest[0] * 1e3, "ms"),
    ]


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
