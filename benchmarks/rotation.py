"""A rotation under load: failed queries and peak connections, for this project and four others."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import rotation_bars
from benchmarks.comparison import Result
from benchmarks.old_version import environment
from benchmarks.rotation_client import SIZE, THREADS
from benchmarks.rotation_peak import Peak
from tests.kit.server import PostgresServer

ROTATIONS = 20
#: Seconds of undisturbed load between two rotations.
PAUSE = 0.2

NAMES = {
    "ours": "pgmonkey, `reload()`",
    "naive": "psycopg_pool: open another, swap, close",
    "drain": "psycopg_pool: `drain()`, arguments from a callable",
    "dispose": "SQLAlchemy: `engine.dispose()`, a `creator`",
    "force_reload": "pgmonkey 4.0: `force_reload=True`",
}

FILE = """\
connection_type: pool
connection_settings:
  host: {host}
  port: '{port}'
  dbname: postgres
  user: app
  password: {password}
pool_settings: {{min_size: 1, max_size: {size}}}
"""


def run() -> list[Result]:
    """Rotate under load with each of them, print the table, keep the figures; and measure the bars."""
    figures: dict[str, Any] = {}
    with PostgresServer() as server:
        server.create_role("app", "first")
        for name in NAMES:
            figures[name] = _measure(server, name)
        bars = rotation_bars.run(server)
    lines = [
        "| way | queries | failed | peak connections |",
        "| --- | --- | --- | --- |",
    ]
    lines += [_row(name, figure) for name, figure in figures.items()]
    print(
        f"\n{ROTATIONS} rotations, {THREADS} threads, pools of {SIZE}:"
        " the old password is revoked before each\n"
    )
    print("\n".join(lines), end="\n\n")
    kept = Path("build", "rotation.json")
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return bars


def _row(name: str, figure: dict[str, Any] | None) -> str:
    if figure is None:
        return f"| {NAMES[name]} | not to be had here | | |"
    failed = sum(figure["errors"].values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(figure["errors"].items()))
    return (
        f"| {NAMES[name]} | {figure['done'] + failed} |"
        f" {failed}{f' ({kinds})' if kinds else ''} | {figure['peak']} |"
    )


def _measure(server: PostgresServer, name: str) -> dict[str, Any] | None:
    python = sys.executable if name != "force_reload" else environment()
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "registry.d").mkdir()
        arguments = {"host": server.host, "port": server.port, "dbname": "postgres", "user": "app"}

        def write(password: str) -> None:
            server.set_password("app", password)
            text = FILE.format(host=server.host, port=server.port, password=password, size=SIZE)
            for path, content in (
                (directory / "password", password),
                (directory / "orders-4.0.yaml", text),
                (directory / "registry.d" / "orders.yaml", text),
            ):
                new = path.with_suffix(".new")
                new.write_text(content)
                new.replace(path)

        write(secrets.token_hex(8))
        client = Path(__file__).with_name("rotation_client.py")
        ours = {"PYTHONPATH": str(Path(__file__).parents[1])} if name != "force_reload" else {}
        process = subprocess.Popen(
            [python, client, name, directory, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=directory,
            env={**os.environ, **ours},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with Peak(server, "app") as peak:
                process.stdout.readline()
                for _ in range(ROTATIONS):
                    time.sleep(PAUSE)
                    write(secrets.token_hex(8))
                    process.stdin.write("\n")
                    process.stdin.flush()
                    process.stdout.readline()
                time.sleep(PAUSE)
                process.stdin.close()
                figure: dict[str, Any] = json.loads(process.stdout.readline())
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        return figure | {"peak": peak.highest}
