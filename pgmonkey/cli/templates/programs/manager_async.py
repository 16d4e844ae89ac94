"""Ask a database for its version, with the API of pgmonkey 4.0 and asyncio."""

import asyncio
from typing import Final

from pgmonkey import PGConnectionManager

CONFIG: Final = "config.yaml"
CONNECTION_TYPE: Final = "async_pool"
RESOLVE_ENV: Final = False
ALLOW_SENSITIVE_DEFAULTS: Final = False


async def main() -> None:
    manager = PGConnectionManager()
    database = await manager.get_database_connection(
        CONFIG,
        CONNECTION_TYPE,
        resolve_env=RESOLVE_ENV,
        allow_sensitive_defaults=ALLOW_SENSITIVE_DEFAULTS,
    )
    # A block borrows a connection; commits when it succeeds, rolls back when it raises.
    async with database as conn, conn.cursor() as cur:
        await cur.execute("SELECT version()")
        print(await cur.fetchone())
    await manager.clear_cache_async()


if __name__ == "__main__":
    asyncio.run(main())
