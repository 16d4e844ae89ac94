"""Loading 1,000 files, and reading them again when one has changed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.comparison import Result, compare
from pgmonkey.config.directory import DirectoryLoader

FILES = 1000

TEXT = """\
connection_type: pool
description: database number {number}
connection_settings:
  host: db-{number}.internal
  port: '5432'
  dbname: db_{number}
  user: app
  password: secret-{number}
  sslmode: prefer
  connect_timeout: '10'
  application_name: bench
  keepalives: '1'
  keepalives_idle: '60'
pool_settings:
  min_size: 2
  max_size: 10
  timeout: 5
  max_idle: 300
  max_lifetime: 3600
  check_on_checkout: false
sync_settings:
  statement_timeout: '{timeout}'
"""


def write(directory: Path, number: int, timeout: int = 30000) -> None:
    """Write one database's file."""
    path = directory / f"db-{number}.yaml"
    path.write_text(TEXT.format(number=number, timeout=timeout), encoding="utf-8")


def run() -> list[Result]:
    """Compare a cold load with a bare parse, and a rescan with a cold load."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number in range(FILES):
            write(directory, number)

        def bare_parse() -> None:
            for path in directory.iterdir():
                yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)

        def cold_load() -> None:
            scan = DirectoryLoader(directory).scan()
            assert len(scan.configs) == FILES, scan.problems

        warm = DirectoryLoader(directory)
        warm.scan()
        changes = iter(range(1, 1_000_000))

        def one_changed() -> None:
            write(directory, 7, timeout=next(changes))
            assert len(warm.scan().configs) == FILES

        def nothing_changed() -> None:
            assert len(warm.scan().configs) == FILES

        def check_process() -> None:
            subprocess.run([sys.executable, "-m", "pgmonkey", "check", directory], check=True)

        return [
            compare(
                f"pgmonkey check of {FILES:,} files, the whole process / one second",
                check_process,
                lambda: time.sleep(1),
                bar=1.0,
                rounds=5,
            ),
            compare(
                f"load and validate {FILES:,} files / bare CSafeLoader parse of them",
                cold_load,
                bare_parse,
                bar=1.3,
                rounds=7,
            ),
            compare(
                f"reload, 1 of {FILES:,} files changed / cold load",
                one_changed,
                cold_load,
                bar=0.08,
                rounds=7,
            ),
            compare(
                f"rescan, none of {FILES:,} files changed / cold load",
                nothing_changed,
                cold_load,
                rounds=7,
            ),
        ]
