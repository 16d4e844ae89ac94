"""Instructions of a checkout, counted by valgrind: they do not depend on what else the machine does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.comparison import Result
from benchmarks.setting import Setting, setting

FEW, MANY = 100, 600

HANDLE: Final = """
from pgmonkey import Registry
registry = Registry(directory, watch=False, metrics=None, trust="off")
handle = registry.get("orders")
handle.open()
def act(times):
    for _ in range(times):
        with handle:
            pass
"""
RAW: Final = """
from psycopg_pool import ConnectionPool
pool = ConnectionPool(kwargs=arguments, min_size=1, max_size=1, open=True)
pool.wait()
def act(times):
    for _ in range(times):
        with pool.connection():
            pass
"""
OURS: Final = """
from pgmonkey import Registry
from pgmonkey.contrib.sqlalchemy import create_engine
registry = Registry(directory, watch=False, metrics=None, trust="off")
engine = create_engine(registry["orders"])
"""
THEIRS: Final = """
import sqlalchemy
arguments["username"], arguments["database"] = arguments.pop("user"), arguments.pop("dbname")
engine = sqlalchemy.create_engine(sqlalchemy.URL.create("postgresql+psycopg", **arguments))
"""
BORROW: Final = """
def act(times):
    for _ in range(times):
        with engine.connect():
            pass
"""
INSERT: Final = """
from sqlalchemy import text
from sqlalchemy.orm import Session
statement = text("INSERT INTO requests VALUES (:number)")
def act(times):
    for number in range(times):
        with Session(engine) as session, session.begin():
            session.execute(statement, {"number": number})
"""
#: Counting begins when everything is imported and was done once: valgrind makes that slow.
PROGRAM: Final = """
import json, logging, os, subprocess, sys
times, directory, arguments = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
logging.getLogger().addHandler(logging.NullHandler())
{}
act(50)
subprocess.run(["callgrind_control", "-i", "on", str(os.getpid())], check=True, capture_output=True)
act(times)
os._exit(0)
"""


def run() -> list[Result]:
    """Compare the instructions of a checkout with those of the raw pool, if valgrind is there."""
    if shutil.which("callgrind_control") is None:
        print("\nvalgrind is not there: no instructions are counted")
        return []
    with setting() as place:
        place.server.execute("CREATE TABLE requests (number int)")
        place.server.execute("GRANT ALL ON requests TO app")
        place.declare("orders", "pool")
        return [
            _compared(place, what, ours, theirs)
            for what, ours, theirs in (
                ("a checkout / psycopg_pool", HANDLE, RAW),
                ("SQLAlchemy, a borrow / QueuePool", OURS + BORROW, THEIRS + BORROW),
                (
                    "SQLAlchemy, a session with an INSERT / QueuePool",
                    OURS + INSERT,
                    THEIRS + INSERT,
                ),
            )
        ]


def _compared(place: Setting, what: str, ours: str, theirs: str) -> Result:
    one, other = _each(place, ours), _each(place, theirs)
    print(f"\nInstructions of {what}: {one:,.0f} / {other:,.0f}", flush=True)
    return Result(f"instructions of {what}", one / other, (one / other, one / other), None)


def _each(place: Setting, program: str) -> float:
    """Return the instructions of one time: the difference of many and few, divided."""
    few, many = (_count(place, program, times) for times in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _count(place: Setting, program: str, times: int) -> int:
    valgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    done = subprocess.run(
        [
            *(
                *valgrind,
                "--instr-atstart=no",
                sys.executable,
                "-c",
                PROGRAM.replace("{}", program),
            ),
            *(str(times), place.directory, json.dumps(place.arguments)),
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
