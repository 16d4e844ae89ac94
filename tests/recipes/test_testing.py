"""The recipe of docs/recipes/testing.md: a suite of tests that share one database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.snippets import ROOT
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.recipes.recipe import recipe

HEADING = "Every test is rolled back"
#: Each of these tests finds one row, writes two that only one test at a time could have, and fails
#: or breaks in the middle in some of the usual ways.
TESTS = """
import threading

import psycopg
import pytest

from shop import items, order, orders


@pytest.mark.parametrize("number", range(25))
def test_of_an_application(number):
    assert items() == ["there"]
    order("tea")
    thread = threading.Thread(target=order, args=["cake"])
    thread.start()
    thread.join()
    with pytest.raises(psycopg.errors.UniqueViolation):
        order("tea")
    with pytest.raises(KeyError), orders as conn:
        conn.execute("DELETE FROM orders")
        conn.commit() if number % 2 else conn.rollback()
        conn.execute("INSERT INTO orders (item) VALUES ('milk')")
        raise KeyError
    expected = ["there", "tea", "cake"]
    assert items() == ([] if number % 2 else expected)
"""
ASYNC_TESTS = """
import asyncio

import pytest

from shop import registry


async def use():
    orders = registry.get("orders", "async_pool")
    await orders.open()

    async def order(number):
        async with orders as conn:
            await conn.execute("INSERT INTO orders (item) VALUES (%s)", [f"tea {number}"])

    await asyncio.gather(*map(order, range(4)))
    async with orders.cursor() as cursor:
        await cursor.execute("SELECT count(*) FROM orders")
        assert await cursor.fetchone() == (5,)
    await orders.close()


@pytest.mark.parametrize("number", range(25))
def test_of_an_async_application(number):
    asyncio.run(use())
"""


def test_fifty_tests_that_share_a_database_leave_nothing(
    tmp_path: Path, registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Half of them sync, half of them async: no row, no session, and no error is left."""
    database.execute("CREATE TABLE public.orders (id serial, item text UNIQUE)")
    database.execute("INSERT INTO public.orders (item) VALUES ('there')")
    for what in ("TABLE orders", "SEQUENCE orders_id_seq"):
        database.execute(f'GRANT ALL ON {what} TO "{database.user}"')
    registry_dir.declare("orders", database)
    files = {
        "conftest.py": recipe("testing", HEADING),
        "shop.py": recipe("testing", HEADING, number=1),
        "test_shop.py": recipe("testing", HEADING, number=2),
        "test_sync.py": TESTS,
        "test_async.py": ASYNC_TESTS,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={"PATH": os.defpath, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    canary.check(done.stdout + done.stderr)
    assert "51 passed" in done.stdout, done.stdout + done.stderr
    assert "warning" not in done.stdout
    database.assert_unused()
    assert database.execute("SELECT item FROM orders") == [("there",)]
