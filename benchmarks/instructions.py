"""Instructions of a checkout, counted by valgrind: they do not depend on what else the machine does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.comparison import Result
from benchmarks.setting import Setting, setting

FEW, MANY = 500, 3000
PROGRAM = """
import sys
way, times, *arguments = sys.argv[1:]
if way == "pgmonkey":
    from pgmonkey import Registry
    registry = Registry(arguments[0], watch=False, metrics=None, trust="off")
    handle = registry.get("orders")
    handle.open()
    def act():
        for _ in range(int(times)):
            with handle:
                pass
else:
    from psycopg_pool import ConnectionPool
    host, port, password = arguments
    pool = ConnectionPool(
        kwargs={"host": host, "port": port, "dbname": "postgres", "user": "app", "password": password},
        min_size=1, max_size=1, open=True,
    )
    pool.wait()
    def act():
        for _ in range(int(times)):
            with pool.connection():
                pass
act()
(registry if way == "pgmonkey" else pool).close()
"""


def run() -> list[Result]:
    """Compare the instructions of a checkout with those of the raw pool, if valgrind is there."""
    if shutil.which("valgrind") is None:
        print("\nvalgrind is not there: no instructions are counted")
        return []
    with setting() as place:
        place.declare("orders", "pool")
        ours, raw = _each(place, "pgmonkey"), _each(place, "psycopg_pool")
    print(f"\nInstructions of a checkout: {ours:,.0f}; of psycopg_pool's: {raw:,.0f}")
    ratio = ours / raw
    return [Result("instructions of a checkout / psycopg_pool", ratio, (ratio, ratio), None)]


def _each(place: Setting, way: str) -> float:
    """Return the instructions of one checkout: the difference of many and few, divided."""
    few, many = (_count(place, way, times) for times in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _count(place: Setting, way: str, times: int) -> int:
    server = place.server
    arguments = (
        [place.directory]
        if way == "pgmonkey"
        else [server.host, str(server.port), place.arguments["password"]]
    )
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            sys.executable,
            "-c",
            PROGRAM,
            way,
            str(times),
            *arguments,
        ],
        env=os.environ
        | {"PYTHONPATH": os.fspath(Path(__file__).parents[1]), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found.group(1))
