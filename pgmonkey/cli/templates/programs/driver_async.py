"""Ask a database for its version, with psycopg and asyncio alone; pgmonkey reads the file."""

import asyncio
from typing import Any, Final

import psycopg

from pgmonkey import load_config

CONFIG: Final = "config.yaml"
RESOLVE_ENV: Final = False
ALLOW_SENSITIVE_DEFAULTS: Final = False


async def apply_session_settings(
    conn: psycopg.AsyncConnection[Any], settings: dict[str, Any]
) -> None:
    for name, value in settings.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        await conn.execute("SELECT set_config(%s, %s, false)", [name, text])
    await conn.commit()  # a rollback would undo them


async def main() -> None:
    config = load_config(
        CONFIG, resolve_env=RESOLVE_ENV, allow_sensitive_defaults=ALLOW_SENSITIVE_DEFAULTS
    )
    async with await psycopg.AsyncConnection.connect(**config["connection_settings"]) as conn:
        await apply_session_settings(conn, config.get("async_settings") or {})
        cur = await conn.execute("SELECT version()")
        print(await cur.fetchone())


if __name__ == "__main__":
    asyncio.run(main())
