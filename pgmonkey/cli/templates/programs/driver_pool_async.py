"""Ask a database for its version, with psycopg_pool and asyncio alone; pgmonkey reads the file."""

import asyncio
from typing import Any, Final

import psycopg
from psycopg_pool import AsyncConnectionPool

from pgmonkey import load_config

CONFIG: Final = "config.yaml"
RESOLVE_ENV: Final = False
ALLOW_SENSITIVE_DEFAULTS: Final = False


def make_pool(config: dict[str, Any]) -> AsyncConnectionPool:
    session = config.get("async_settings") or {}
    settings = {"min_size": 1, **(config.get("async_pool_settings") or {})}
    settings.setdefault("max_size", max(10, settings["min_size"]))
    check = settings.pop("check_on_checkout", config.get("check_on_checkout", False))
    kwargs = {**config["connection_settings"], **(settings.pop("kwargs", None) or {})}

    async def apply_session_settings(conn: psycopg.AsyncConnection[Any]) -> None:
        for name, value in session.items():
            text = ", ".join(value) if isinstance(value, list) else str(value)
            await conn.execute("SELECT set_config(%s, %s, false)", [name, text])
        await conn.commit()  # a rollback would undo them

    return AsyncConnectionPool(
        kwargs=kwargs,
        configure=apply_session_settings,
        check=AsyncConnectionPool.check_connection if check else None,
        open=False,
        **settings,
    )


async def main() -> None:
    config = load_config(
        CONFIG, resolve_env=RESOLVE_ENV, allow_sensitive_defaults=ALLOW_SENSITIVE_DEFAULTS
    )
    async with make_pool(config) as pool, pool.connection(timeout=10) as conn:
        cur = await conn.execute("SELECT version()")
        print(await cur.fetchone())


if __name__ == "__main__":
    asyncio.run(main())
