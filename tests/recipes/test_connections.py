"""The recipes of docs/from-4.0/connections.md run as written, and end by themselves."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.kit import Canary, TemporaryDatabase, eventually
from tests.kit.manager import declare
from tests.recipes.recipe import ENDS_WITHIN, leave_traces, recipe, run, traces

WORK = {
    "Normal (Synchronous) Connection": ["version"],
    "Pooled (Synchronous) Connection": ["users", "now"],
    "Async Connection": ["version"],
    "Async Pooled Connection": ["orders", "now"],
}
HEADINGS = tuple(WORK)
# What the template of 4.0 writes; with it the async pool was still filling when a program ended.
SIZES = {"min_size": 5, "max_size": 20}
# From there on it is the end of the program that takes time, not its start.
_SAYING_WHEN_IT_FAILS = """\
import sys

def failed(*error):
    sys.__excepthook__(*error)
    print("failed")

sys.excepthook = failed
"""


@pytest.fixture
def directory(tmp_path: Path, database: TemporaryDatabase) -> Path:
    """A directory with `config.yaml`, whose database keeps a trace of every query."""
    leave_traces(database)
    declare(tmp_path, database, pool_settings=SIZES, async_pool_settings=SIZES)
    return tmp_path


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_program_runs_commits_and_ends(
    directory: Path, database: TemporaryDatabase, canary: Canary, heading: str
) -> None:
    """Each recipe prints its rows, commits its blocks, and ends with code 0, without a warning."""
    ended = run(recipe("from-4.0/connections", heading), directory)

    canary.check(ended.errors, "standard error")
    assert ended.errors == ""
    assert ended.code == 0
    assert len(ended.output) == len(WORK[heading])
    assert ended.lingered < ENDS_WITHIN
    assert traces(database) == WORK[heading]


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_program_that_raises_in_its_block_rolls_back_and_ends(
    directory: Path, database: TemporaryDatabase, canary: Canary, heading: str
) -> None:
    """An exception in the first block undoes it, is the only thing shown, and ends the program."""
    text = recipe("from-4.0/connections", heading)
    first = next(line for line in text.splitlines() if "print(" in line)
    indent = first[: len(first) - len(first.lstrip())]
    raising = text.replace(first, f"{first}\n{indent}raise LookupError('stop')", 1)

    ended = run(raising, directory)

    canary.check(ended.errors, "standard error")
    assert ended.code == 1
    assert ended.errors.rstrip().endswith("LookupError: stop")
    assert ended.errors.count("Traceback") == 1
    assert "Warning" not in ended.errors
    assert len(ended.output) == 1
    assert ended.lingered < ENDS_WITHIN
    assert traces(database) == []


CACHE = """
manager.get_database_connection('config.yaml', 'pool')
with pool as conn:
    conn.execute('SELECT count(*) FROM users;')
print(manager.cache_info['size'], *manager.cache_info['connection_types'].values())
before = conn.info.backend_pid
assert manager.get_database_connection('config.yaml', 'pool', force_reload=True) is pool
with pool as conn:
    assert conn.info.backend_pid != before
manager.clear_cache()
print(manager.cache_info)
with PGConnectionManager() as manager:
    other = manager.get_database_connection('config.yaml', 'pool')
    assert other is not pool
    with other as conn:
        print(*conn.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = user").fetchone())
print('left')
"""


def test_cache_management_api(directory: Path, database: TemporaryDatabase) -> None:
    """`cache_info`, `force_reload`, `clear_cache`: one handle, fresh connections, none left."""
    text = recipe("from-4.0/connections", "Pooled (Synchronous) Connection")
    declare(directory, database, pool_settings={"min_size": 1, "max_size": 4})

    ended = run(text[: text.index("# Each 'with'")] + CACHE, directory)

    assert (ended.code, ended.errors) == (0, "")
    assert ended.output == ["1 pool", "{'size': 0, 'connection_types': {}}", "1", "left"]
    assert traces(database) == ["users"]
    assert ended.lingered < ENDS_WITHIN


def left_to_exit() -> str:
    text = recipe("from-4.0/connections", "Async Pooled Connection")
    clean_up = "    # Clean up when done (or let atexit handle it)\n    await manager.clear_cache_async()\n"
    assert clean_up in text
    return text.replace(clean_up, "")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize("outcome", ["ends", "raises", "gives up at once"])
def test_the_clean_up_of_an_async_pool_can_be_left_to_exit(
    directory: Path, database: TemporaryDatabase, outcome: str, attempt: int
) -> None:
    """A program whose async pool is still filling ends by itself, also when it raises."""
    text = left_to_exit()
    if outcome == "raises":
        text = text.replace("    assert same_pool is pool\n", "    raise LookupError('stop')\n")
    elif outcome == "gives up at once":
        head = text.index("    # Each 'async with'")
        text = text[:head] + "    print('opened')\n\n" + text[text.index("if __name__") :]

    ended = run(text, directory)

    assert ended.code == (1 if outcome == "raises" else 0), ended.errors
    assert ended.errors.count("Traceback") == ended.code
    assert "Warning" not in ended.errors
    assert ended.lingered < ENDS_WITHIN
    assert traces(database) == (
        [] if outcome == "gives up at once" else WORK["Async Pooled Connection"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_a_sync_pool_that_is_still_filling_ends_with_its_program(
    directory: Path, attempt: int
) -> None:
    """A program that asks for a pool and ends at once does so quietly."""
    text = recipe("from-4.0/connections", "Pooled (Synchronous) Connection")
    ended = run(text[: text.index("# Each 'with'")] + "print('opened')\n", directory)

    assert (ended.code, ended.output, ended.errors) == (0, ["opened"], "")
    assert ended.lingered < ENDS_WITHIN


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_server_that_is_not_there_ends_the_program_with_its_reason(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary, heading: str
) -> None:
    """A program that cannot connect says why and ends, without a pool that prints at shutdown."""
    declare(
        tmp_path,
        database,
        connection={"password": "not-the-password"},
        pool_settings=SIZES,
        async_pool_settings=SIZES,
    )

    ended = run(_SAYING_WHEN_IT_FAILS + recipe("from-4.0/connections", heading), tmp_path)

    canary.check(ended.errors, "standard error")
    assert ended.code == 1
    assert ended.output == ["failed"]
    assert "password authentication failed" in ended.errors
    assert "Warning" not in ended.errors
    assert ended.lingered < ENDS_WITHIN


@pytest.mark.parametrize("heading", HEADINGS)
def test_ctrl_c_ends_the_program_and_rolls_back(
    directory: Path, database: TemporaryDatabase, heading: str
) -> None:
    """An interrupt in the middle of a query undoes the block and ends the program at once."""
    text = recipe("from-4.0/connections", heading)
    begin = text.index("cur.execute('")
    end = text.index("\n", begin)
    query = text[begin:end].replace("SELECT", "SELECT pg_sleep(30),")
    text = text[:begin] + query + text[end:]
    sent = []

    def interrupt(process: subprocess.Popen[str]) -> None:
        eventually(lambda: any("pg_sleep" in one["query"] for one in database.backends()), 20)
        process.send_signal(signal.SIGINT)
        sent.append(time.monotonic())

    ended = run(text, directory, meanwhile=interrupt)

    assert time.monotonic() - sent[0] < 3.0
    assert ended.code == -signal.SIGINT
    assert ended.errors.rstrip().endswith("KeyboardInterrupt")
    assert "Warning" not in ended.errors
    assert "never awaited" not in ended.errors
    assert traces(database) == []


@pytest.mark.parametrize("connection_type", ["normal", "pool", "async", "async_pool"])
def test_a_handle_that_nobody_uses_ends_with_its_program(
    directory: Path, connection_type: str
) -> None:
    """A program that connects, never borrows and ends shows no warning of a forgotten connection."""
    text = f"""
import asyncio
from pgmonkey import PGConnectionManager

manager = PGConnectionManager()

async def main():
    return await manager.get_database_connection('config.yaml', {connection_type!r})

if {connection_type!r}.startswith('async'):
    handle = asyncio.run(main())
else:
    handle = manager.get_database_connection('config.yaml', {connection_type!r})
print('opened')
"""
    ended = run(text, directory)

    assert (ended.code, ended.errors, ended.output) == (0, "", ["opened"])
    assert ended.lingered < ENDS_WITHIN
