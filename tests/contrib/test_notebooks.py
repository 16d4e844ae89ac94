"""A registry in a notebook, which runs IPython: its event loop turns between two cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgmonkey import Registry
from tests.kit import Canary, TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.recipes.recipe import run


def test_the_status_is_a_table(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Each database is a row with its state, its pool and what is wrong; HTML of others stays text."""
    registry_dir.declare("orders", database, pool_settings={"max_size": 3})
    registry_dir.declare("down", database, connection={"dbname": "<b>nothing</b>"})
    registry_dir.write("wrong", f"connection_settings: {{pasword: {canary.secret()}}}")
    with Registry(registry_dir, strict=False) as registry:
        with registry.get("orders"):
            registry.probe("down")
            html = registry.status()._repr_html_()

    canary.check(html)
    rows = [row.split("<td>")[1:] for row in html.split("<tr>")[2:]]
    down, orders, wrong = [[cell.partition("</td>")[0] for cell in row] for row in rows]
    assert down[:2] == ["down", "down"]
    assert "&lt;b&gt;nothing" in down[-1]
    assert orders[:6] == ["orders", "ready", "pool", "1 of 3", "", "1"]
    assert orders[-1] == ""
    assert wrong[:2] == ["wrong", "failed"]
    assert "wrong.yaml:1:1" in wrong[-1]
    assert str(registry_dir) in html


IPYTHON = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in json.loads(open("cells.json").read()):
    done = shell.run_cell(cell, silent=False)
    done.raise_error()
shell.run_cell("await registry.aclose()").raise_error()
print(shell.display_formatter.format(shell.user_ns["status"])[0]["text/html"][:7])
"""


@pytest.mark.slow
def test_cells_use_both_sides(
    tmp_path: Path, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Sync blocks and, with `await` at the top level, async blocks work from cell to cell."""
    registry_dir.declare("orders", database)
    ask = (
        "async with registry.get('orders', 'async_pool') as conn:\n"
        "    print(await (await conn.execute('{}')).fetchone())"
    )
    cells = [
        f"from pgmonkey import Registry\nregistry = Registry({str(registry_dir)!r})",
        "with registry.get('orders') as conn:\n    print(conn.execute('SELECT 1').fetchone())",
        ask.format("SELECT 2"),
        ask.format("SELECT 3"),
        "status = registry.status()",
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))

    ended = run(IPYTHON, tmp_path, environ={"IPYTHONDIR": str(tmp_path)}, arguments=())

    assert (ended.code, ended.errors) == (0, "")
    assert ended.output == ["(1,)", "(2,)", "(3,)", "<table>"]
