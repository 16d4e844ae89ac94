"""What a person reads on a console, and what a program reads in JSON."""

from __future__ import annotations

import json
import re

import pytest

from tests.kit import Canary, RegistryDirectory
from tests.kit.program import Program

pytestmark = pytest.mark.serverless

PROGRAM = """
from pathlib import Path
from pgmonkey import Registry
from pgmonkey.telemetry.events import emit
from pgmonkey.telemetry.logging import configure_logs

configure_logs(argv[1], "warning")
path = Path(argv[0], "orders.yaml")
good = path.read_text()
with Registry(argv[0], metrics=None, watch=False) as registry:
    for more in "pool_settings: {max_sise: 3, timeuot: 5}", "\\n".join(f"key{n}: 1" for n in range(8)):
        path.write_text(good + more)
        registry.reload()
emit("checkout.leaked", database="orders", stack="first.py:1\\nsecond.py:2")
emit("config.rejected", database="orders", problems=["orders.yaml: \\x1b[31mno\\r  [connect.refused]"])
"""


def run(registry_dir: RegistryDirectory, canary: Canary, log_format: str) -> str:
    """Let files be rejected, and return what was written, without the directory."""
    settings = {"host": "127.0.0.1", "dbname": "d", "user": "u", "password": canary.secret()}
    registry_dir.write("orders", {"connection_settings": settings})
    with Program(PROGRAM, registry_dir, log_format, canary=canary) as program:
        assert program.code(40) == 0, program.text
        return program.text.replace(str(registry_dir), "registry.d")


def test_a_rejected_file_is_short_on_a_console(
    registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """Each problem and its hint have lines of their own; file and line are there once."""
    text = re.sub(r"^\d\d:\d\d:\d\d ", "", run(registry_dir, canary, "console"), flags=re.MULTILINE)
    known, keys = "unknown key", "pool_settings"
    assert text.splitlines() == [
        "[warning] config.rejected        database=orders",
        f'  registry.d/orders.yaml:6:17: {keys}.max_sise: {known} "max_sise"  [config.unknown_key]',
        '    hint: did you mean "max_size"?',
        f'  registry.d/orders.yaml:6:30: {keys}.timeuot: {known} "timeuot"  [config.unknown_key]',
        '    hint: did you mean "timeout"?',
        "[warning] config.rejected        database=orders",
        *(
            line
            for n in range(5)
            for line in (
                f'  registry.d/orders.yaml:{6 + n}:1: key{n}: {known} "key{n}"  [config.unknown_key]',
                "    hint: the reference lists every key, and so does pgmonkey schema",
            )
        ),
        "  and 3 more: see pgmonkey check",
        "[warning] checkout.leaked        database=orders",
        "first.py:1",
        "second.py:2",
        "[warning] config.rejected        database=orders",
        r"  orders.yaml: \x1b[31mno\r  [connect.refused]",
    ]


def test_a_rejected_file_has_typed_fields_in_json(
    registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """File, line, key and code of the first problem, and the list of all."""
    lines = [json.loads(line) for line in run(registry_dir, canary, "json").splitlines()]
    rejected = lines[0]
    assert {name: rejected[name] for name in ("event", "database", "file", "line", "key", "code")} == {
        "event": "config.rejected",
        "database": "orders",
        "file": "registry.d/orders.yaml",
        "line": 6,
        "key": "pool_settings.max_sise",
        "code": "config.unknown_key",
    }  # fmt: skip
    assert [len(line.get("problems", ())) for line in lines] == [2, 8, 0, 1]
