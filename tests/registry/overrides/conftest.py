"""Two databases for the tests of overrides, and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.kit import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.server import PostgresServer


@pytest.fixture(scope="module")
def module_other(session_server: PostgresServer, canary: Canary) -> Iterator[TemporaryDatabase]:
    """Another database on the server, of another owner, for all tests."""
    other = TemporaryDatabase.create(session_server, canary)
    yield other
    other.drop()


@pytest.fixture
def database(shared_database: TemporaryDatabase) -> TemporaryDatabase:
    """One database for all these tests."""
    return shared_database


@pytest.fixture
def other(server: PostgresServer, module_other: TemporaryDatabase) -> Iterator[TemporaryDatabase]:
    """The other database; no session may be left in it after a test."""
    yield module_other
    module_other.assert_unused()


@pytest.fixture
def rows(database: TemporaryDatabase) -> Callable[[], list[int]]:
    """An empty table `rows (id int primary key)`; call it for what a second connection sees in it."""
    database.execute("DROP TABLE IF EXISTS public.rows")
    database.execute("CREATE TABLE public.rows (id int PRIMARY KEY)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    return lambda: [one for (one,) in database.execute("SELECT id FROM public.rows ORDER BY id")]
