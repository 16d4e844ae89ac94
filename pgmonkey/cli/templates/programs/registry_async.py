"""Ask a database for its version, through a registry and asyncio."""

import asyncio
from typing import Final

from pgmonkey import Registry

REGISTRY: Final = "registry.d"  # a directory of files, one for each database
DATABASE: Final = "events"  # the name of its file, without .yaml
CONNECTION_TYPE: Final = "async_pool"
ALLOW_SENSITIVE_DEFAULTS: Final = False


async def main() -> None:
    # One registry serves a whole application. It follows its files: handles stay valid.
    registry = Registry(
        REGISTRY, names=[DATABASE], allow_sensitive_defaults=ALLOW_SENSITIVE_DEFAULTS
    )
    async with registry:
        database = registry.get(DATABASE, CONNECTION_TYPE)
        # A block borrows a connection; commits when it succeeds, rolls back when it raises.
        async with database as conn:
            cur = await conn.execute("SELECT version()")
            print(await cur.fetchone())


if __name__ == "__main__":
    asyncio.run(main())
