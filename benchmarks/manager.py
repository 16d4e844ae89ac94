"""A repeated `get_database_connection`, against 20 microseconds and against parsing the file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from time import perf_counter

import yaml

from benchmarks.comparison import Result, compare
from benchmarks.loading import TEXT
from pgmonkey import PGConnectionManager
from tests.kit.server import PostgresServer

CALLS = 2000
BAR = 20e-6  # seconds

PLAIN = """\
connection_type: pool
connection_settings:
  host: {host}
  port: {port}
  dbname: postgres
  user: app
  password: bench-password
"""
REFERENCES = """\
connection_type: pool
connection_settings:
  host: ${{BENCH_HOST}}
  port: ${{BENCH_PORT:-{port}}}
  dbname: ${{BENCH_DBNAME:-postgres}}
  user: ${{BENCH_USER:-app}}
  password: {{from_file: password}}
"""


def run() -> list[Result]:
    """Compare the call that finds everything unchanged."""
    with PostgresServer() as server, tempfile.TemporaryDirectory() as name:
        server.create_role("app", "bench-password")
        os.environ["BENCH_HOST"] = server.host
        directory = Path(name)
        texts = {"plain": PLAIN, "references": REFERENCES, "parsed": TEXT, "password": ""}
        for file, text in texts.items():
            path = directory / (file if file == "password" else f"{file}.yaml")
            content = text.format(host=server.host, port=server.port, number=1, timeout=1)
            path.write_text(content or "bench-password\n", encoding="utf-8")
            os.utime(path, (1, 1))  # a file that was written just now is compared by its content
        with PGConnectionManager() as manager:
            return [
                *_cached(manager, directory / "plain.yaml", "a plain file"),
                *_cached(manager, directory / "references.yaml", "four variables, one secret file"),
                *_parsed(manager, directory),
            ]


def _cached(manager: PGConnectionManager, path: Path, what: str) -> list[Result]:
    call = _call(manager, path)

    def wait() -> None:
        end = perf_counter() + BAR * CALLS
        while perf_counter() < end:
            pass

    return [
        compare(
            f"cached `get_database_connection(file)`, {what} / 20 microseconds",
            call,
            wait,
            bar=1.0,
            operations=CALLS,
        )
    ]


def _parsed(manager: PGConnectionManager, directory: Path) -> list[Result]:
    parsed = directory / "parsed.yaml"

    def parse() -> None:
        for _ in range(20):
            yaml.safe_load(parsed.read_text(encoding="utf-8"))

    cached = _call(manager, directory / "plain.yaml", 20)
    return [
        compare(
            "cached `get_database_connection(file)` / what 4.0 did at every call",
            cached,
            parse,
            operations=20,
        )
    ]


def _call(manager: PGConnectionManager, path: Path, calls: int = CALLS):
    file = os.fspath(path)
    with manager.get_database_connection(file, "pool", resolve_env=True):
        pass  # it is open

    def call() -> None:
        for _ in range(calls):
            manager.get_database_connection(file, "pool", resolve_env=True)

    return call
