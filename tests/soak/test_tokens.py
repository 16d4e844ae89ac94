"""Tokens that expire every two seconds, under load for SOAK_TOKEN_SECONDS."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Final

import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client
from tests.pool.tokens import Mint, under_churn

SECONDS: Final = float(os.environ.get("SOAK_TOKEN_SECONDS", "5"))
LIFETIME: Final = 2.0


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("side", SIDES)
def test_a_token_source_under_load(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> None:
    """No error, at most one call for each lifetime, and no connection replaced because of a token."""
    sizes = {"min_size": 2, "max_size": 8}
    registry_dir.declare(
        "orders",
        database,
        side,
        connection={"password": {"from_resolver": "mint", "key": "orders"}},
        pool_settings=sizes,
        async_pool_settings=sizes,
    )
    mint = Mint(database, LIFETIME)
    with (
        Registry(registry_dir, metrics=None, resolvers={"mint": mint}) as registry,
        closing(Client(registry)) as client,
    ):
        with under_churn(client, SECONDS) as churn:
            pass
        status = client.handle.status()
    print(f"{side}: {mint.calls} tokens, {churn.made} closed, {status.connect_attempts} connects")
    assert churn.errors == []
    assert churn.made > mint.calls
    assert mint.calls <= SECONDS / LIFETIME + 2
    assert (status.version, status.evicted.get("rotation", 0)) == (1, 0)
