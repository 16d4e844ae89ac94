"""Starting: the import of the package and the help of the command line."""

from __future__ import annotations

import compileall
import subprocess
import sys
from pathlib import Path

import pgmonkey
from benchmarks.comparison import Result, compare

CORE = "import psycopg, psycopg_pool, yaml, watchfiles, structlog, prometheus_client, pydantic"


def run() -> list[Result]:
    """Compare whole processes."""
    # As pip does when it installs the package; a checkout may have no bytecode, or old one.
    assert pgmonkey.__file__
    compileall.compile_dir(Path(pgmonkey.__file__).parent, quiet=1)

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

    return [
        compare(
            "`from pgmonkey import Registry` / import of its core dependencies",
            lambda: python("-c", "from pgmonkey import Registry"),
            lambda: python("-c", CORE),
            bar=1.1,
            rounds=31,
        ),
        compare(
            "`pgmonkey --help` / an empty interpreter",
            lambda: python("-m", "pgmonkey", "--help"),
            lambda: python("-c", "pass"),
            bar=8,
            rounds=31,
        ),
    ]
