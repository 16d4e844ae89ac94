"""What a type checker knows of the rows of a handle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
from dataclasses import dataclass
from psycopg.rows import class_row, dict_row
from pgmonkey import Database, Registry

@dataclass
class Order:
    item: str

def use(handle: Database) -> None:
    with handle.cursor(row_factory=dict_row) as cursor:
        reveal_type(cursor.fetchone())
    with handle.cursor(2, row_factory=class_row(Order), binary=True) as cursor:
        reveal_type(cursor.fetchall())
    with handle.cursor(name="named") as cursor:
        reveal_type(cursor.fetchone())
    with handle as connection:
        reveal_type(connection.execute("SELECT 1").fetchone())

async def use_async(registry: Registry) -> None:
    async with registry.get("events").cursor(row_factory=dict_row) as cursor:
        reveal_type(await cursor.fetchone())
"""
EXPECTED = [
    "dict[str, Any] | None",
    "list[program.Order]",
    "Any | None",
    "tuple[Any, ...] | None",
    "dict[str, Any] | None",
]


@pytest.mark.slow
def test_rows_have_the_type_of_the_row_factory(tmp_path: Path) -> None:
    """`mypy --strict` accepts a program, and finds the type of its rows, sync and async."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull),
            *("--cache-dir", str(tmp_path), program.name),
        ],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r'Revealed type is "(.*)"', done.stdout)
    plain = [re.sub(r"builtins\.", "", one) for one in found]
    assert plain == EXPECTED
