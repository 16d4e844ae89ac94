"""The recipe of docs/checkouts.md for row-level security: a setting for one block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory

TENANTS = [f"tenant-{number}" for number in range(10)]
ROWS = "SELECT tenant FROM invoices"
SETTING = "SELECT set_config('app.tenant', %s, true)"


@pytest.fixture(params=["pool", "async_pool"])
def registry(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, request: pytest.FixtureRequest
) -> Iterator[Registry]:
    """A registry whose database has an invoice of each tenant, and four connections at most."""
    with database.connect(autocommit=True, options="-c search_path=public") as owner:
        database.execute(f'GRANT ALL ON SCHEMA public TO "{database.user}"')
        for statement in (
            "CREATE TABLE invoices (tenant text)",
            "ALTER TABLE invoices ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE invoices FORCE ROW LEVEL SECURITY",
            "CREATE POLICY of_tenant ON invoices USING (tenant = current_setting('app.tenant', true))",
        ):
            owner.execute(statement)
    for tenant in TENANTS:
        database.execute("INSERT INTO public.invoices VALUES (%s)", tenant)
    section = f"{'async_' if request.param == 'async_pool' else ''}pool_settings"
    registry_dir.declare("orders", database, request.param, **{section: {"max_size": 4}})
    with Registry(registry_dir, metrics=None) as registry:
        yield registry


@contextmanager
def as_tenant(registry: Registry, tenant: str) -> Iterator[Any]:
    with registry.get("orders").transaction() as conn:
        conn.execute(SETTING, [tenant])
        yield conn


@asynccontextmanager
async def as_tenant_async(registry: Registry, tenant: str) -> AsyncIterator[Any]:
    async with registry.get("orders").transaction() as conn:
        await conn.execute(SETTING, [tenant])
        yield conn


def test_no_block_sees_rows_of_another_tenant(registry: Registry) -> None:
    """Many tenants share four connections; a block that names none sees no row; no commit in between."""

    def rows(tenant: str) -> Any:
        with as_tenant(registry, tenant) as conn:
            return conn.execute(ROWS).fetchall()

    async def rows_async(tenant: str) -> Any:
        async with as_tenant_async(registry, tenant) as conn:
            cursor = await conn.execute(ROWS)
            return await cursor.fetchall()

    async def use() -> None:
        found = await asyncio.gather(*map(rows_async, TENANTS * 5))
        assert found == [[(tenant,)] for tenant in TENANTS * 5]
        async with registry.get("orders") as conn:
            cursor = await conn.execute(ROWS)
            assert await cursor.fetchall() == []
        with pytest.raises(psycopg.ProgrammingError):
            async with as_tenant_async(registry, TENANTS[0]) as conn:
                await conn.commit()
        await registry.get("orders").close()

    if registry.get("orders").connection_type == "async_pool":
        asyncio.run(use())
        return
    with ThreadPoolExecutor(10) as threads:
        found = list(threads.map(rows, TENANTS * 5))
    assert found == [[(tenant,)] for tenant in TENANTS * 5]
    with registry.get("orders") as conn:
        assert conn.execute(ROWS).fetchall() == []
    with pytest.raises(psycopg.ProgrammingError), as_tenant(registry, TENANTS[0]) as conn:
        conn.commit()
