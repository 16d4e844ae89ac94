"""`pgmonkey pgconfig generate-code`: a program that connects as a config file says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType

# The programs are written once, for asyncio; `_SYNC` turns them into the others.

_PGMONKEY: Final = '''\
"""Ask a database for its version, through pgmonkey and asyncio."""

import asyncio

from pgmonkey import PGConnectionManager

CONFIG = {path}


async def main() -> None:
    manager = PGConnectionManager()
    database = await manager.get_database_connection(CONFIG, {type}{options})
    # Commits when the block succeeds, rolls back when it raises.{reuse}
    async with database as conn:
        async with conn.cursor() as cur:
            await cur.execute("SELECT version()")
            print(await cur.fetchone())
    await manager.clear_cache_async()


if __name__ == "__main__":
    asyncio.run(main())
'''

_SESSION: Final = """\


async def apply_session_settings(conn: psycopg.AsyncConnection, settings: dict) -> None:
    for name, value in settings.items():
        await conn.execute("SELECT set_config(%s, %s, false)", [name, str(value)])
    await conn.commit()  # a rollback would undo them
"""

_PSYCOPG: Final = (
    '''\
"""Ask a database for its version, with psycopg alone; pgmonkey reads the file."""

import asyncio

import psycopg

from pgmonkey import load_config

CONFIG = {path}
'''
    + _SESSION
    + """

async def main() -> None:
    config = load_config(CONFIG{options})
    async with await psycopg.AsyncConnection.connect(**config["connection_settings"]) as conn:
        await apply_session_settings(conn, config.get("async_settings") or {{}})
        async with conn.cursor() as cur:
            await cur.execute("SELECT version()")
            print(await cur.fetchone())


if __name__ == "__main__":
    asyncio.run(main())
"""
)

_PSYCOPG_POOL: Final = (
    '''\
"""Ask a database for its version, with psycopg_pool alone; pgmonkey reads the file."""

import asyncio

import psycopg
from psycopg_pool import AsyncConnectionPool

from pgmonkey import load_config

CONFIG = {path}
'''
    + _SESSION
    + """

def make_pool(config: dict) -> AsyncConnectionPool:
    session = config.get("async_settings") or {{}}
    settings = {{"min_size": 1, **(config.get("async_pool_settings") or {{}})}}
    settings.setdefault("max_size", max(10, settings["min_size"]))
    check = settings.pop("check_on_checkout", config.get("check_on_checkout", False))
    return AsyncConnectionPool(
        kwargs=dict(config["connection_settings"]),
        configure=lambda conn: apply_session_settings(conn, session),
        check=AsyncConnectionPool.check_connection if check else None,
        open=False,
        **settings,
    )


async def main() -> None:
    async with make_pool(load_config(CONFIG{options})) as pool:
        async with pool.connection(timeout=10) as conn:
            async with conn.cursor() as cur:
                await cur.execute("SELECT version()")
                print(await cur.fetchone())


if __name__ == "__main__":
    asyncio.run(main())
"""
)

_PROGRAMS: Final = {
    "pgmonkey": {"async": _PGMONKEY, "async_pool": _PGMONKEY},
    "psycopg": {"async": _PSYCOPG, "async_pool": _PSYCOPG_POOL},
}

#: In this order.
_SYNC: Final = (
    ("import asyncio\n\n", ""),
    (" and asyncio", ""),
    ("asyncio.run(main())", "main()"),
    ("    await manager.clear_cache_async()\n", ""),  # the end of the program closes it
    ("await psycopg.AsyncConnection.connect", "psycopg.connect"),
    ("await ", ""),
    ("async def", "def"),
    ("async with", "with"),
    ('"async_settings"', '"sync_settings"'),
    ('"async_pool_settings"', '"pool_settings"'),
    ("AsyncConnection", "Connection"),
)


@click.command("generate-code")
@options.config_file
@options.connection_type
@click.option(
    "--library",
    type=click.Choice(["pgmonkey", "psycopg"]),
    default="pgmonkey",
    help="The library that the program uses.",
)
@options.resolve_env
@options.allow_sensitive_defaults
def command(
    path: Path,
    connection_type: ConnectionType | None,
    library: str,
    resolve_env: bool,
    allow_sensitive_defaults: bool,
) -> Answer:
    """Print a program that connects as a config file says.

    The program holds no secret, only the path of the file.
    """
    from pgmonkey.config.legacy import config_from_dict, load_config
    from pgmonkey.config.models import CONNECTION_TYPES

    declared: Any = load_config(path).get("connection_type", "normal")
    if resolve_env and connection_type is None:
        # Only the type: the secrets may be missing where a program is made.
        declared = config_from_dict(
            {"connection_type": declared, "connection_settings": {}},
            resolve_env=True,
            name=str(path),
        ).connection_type
    wanted = connection_type or declared
    if wanted not in CONNECTION_TYPES:
        return Answer(
            code=ExitCode.PROBLEM,
            note=f"{path}: connection_type is a reference: resolve it with --resolve-env, or name"
            " the type with --connection-type",
        )
    pooled = wanted.endswith("pool")
    program = _PROGRAMS[library]["async_pool" if pooled else "async"]
    if not wanted.startswith("async"):
        for asynchronous, synchronous in _SYNC:
            program = program.replace(asynchronous, synchronous)
    arguments = ", resolve_env=True" if resolve_env else ""
    arguments += ", allow_sensitive_defaults=True" if allow_sensitive_defaults else ""
    reuse = " Each block borrows a connection." if pooled else ""
    text = program.format(path=repr(str(path)), type=repr(wanted), options=arguments, reuse=reuse)
    return Answer(text.rstrip("\n"))
