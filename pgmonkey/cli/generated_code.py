"""Programs that connect as a config file says: what `pgmonkey pgconfig generate-code` prints."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal

from pgmonkey.config.legacy import config_from_dict, load_config
from pgmonkey.errors import PgmonkeyError

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType

Library = Literal["pgmonkey", "psycopg"]

_PGMONKEY_SYNC: Final = '''\
"""Ask a database for its version, through pgmonkey."""

from pgmonkey import PGConnectionManager

CONFIG = {path}


def main() -> None:
    manager = PGConnectionManager()
    database = manager.get_database_connection(CONFIG, {type}{options})
    # Commits when the block succeeds, rolls back when it raises.{reuse}
    with database as conn:
        with conn.cursor() as cur:
            cur.execute("SELECT version()")
            print(cur.fetchone())


if __name__ == "__main__":
    main()
'''

_PGMONKEY_ASYNC: Final = '''\
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

_SESSION_SYNC: Final = """\
def apply_session_settings(conn: psycopg.Connection, settings: dict) -> None:
    for name, value in settings.items():
        conn.execute("SELECT set_config(%s, %s, false)", [name, str(value)])
    conn.commit()  # a rollback would undo them
"""

_SESSION_ASYNC: Final = """\
async def apply_session_settings(conn: psycopg.AsyncConnection, settings: dict) -> None:
    for name, value in settings.items():
        await conn.execute("SELECT set_config(%s, %s, false)", [name, str(value)])
    await conn.commit()  # a rollback would undo them
"""

_PSYCOPG_NORMAL: Final = (
    '''\
"""Ask a database for its version, with psycopg alone; pgmonkey reads the file."""

import psycopg

from pgmonkey import load_config

CONFIG = {path}


'''
    + _SESSION_SYNC
    + """

def main() -> None:
    config = load_config(CONFIG{options})
    with psycopg.connect(**config["connection_settings"]) as conn:
        apply_session_settings(conn, config.get("sync_settings") or {{}})
        with conn.cursor() as cur:
            cur.execute("SELECT version()")
            print(cur.fetchone())


if __name__ == "__main__":
    main()
"""
)

_PSYCOPG_ASYNC: Final = (
    '''\
"""Ask a database for its version, with psycopg alone; pgmonkey reads the file."""

import asyncio

import psycopg

from pgmonkey import load_config

CONFIG = {path}


'''
    + _SESSION_ASYNC
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

import psycopg
from psycopg_pool import ConnectionPool

from pgmonkey import load_config

CONFIG = {path}


'''
    + _SESSION_SYNC
    + """

def make_pool(config: dict) -> ConnectionPool:
    session = config.get("sync_settings") or {{}}
    settings = {{"min_size": 1, **(config.get("pool_settings") or {{}})}}
    settings.setdefault("max_size", max(10, settings["min_size"]))
    check = settings.pop("check_on_checkout", config.get("check_on_checkout", False))
    return ConnectionPool(
        kwargs=dict(config["connection_settings"]),
        configure=lambda conn: apply_session_settings(conn, session),
        check=ConnectionPool.check_connection if check else None,
        open=False,
        **settings,
    )


def main() -> None:
    with make_pool(load_config(CONFIG{options})) as pool:
        with pool.connection(timeout=10) as conn:
            with conn.cursor() as cur:
                cur.execute("SELECT version()")
                print(cur.fetchone())


if __name__ == "__main__":
    main()
"""
)

_PSYCOPG_ASYNC_POOL: Final = (
    '''\
"""Ask a database for its version, with psycopg_pool alone; pgmonkey reads the file."""

import asyncio

import psycopg
from psycopg_pool import AsyncConnectionPool

from pgmonkey import load_config

CONFIG = {path}


'''
    + _SESSION_ASYNC
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

_PROGRAMS: Final[dict[tuple[str, str], str]] = {
    ("pgmonkey", "normal"): _PGMONKEY_SYNC,
    ("pgmonkey", "pool"): _PGMONKEY_SYNC,
    ("pgmonkey", "async"): _PGMONKEY_ASYNC,
    ("pgmonkey", "async_pool"): _PGMONKEY_ASYNC,
    ("psycopg", "normal"): _PSYCOPG_NORMAL,
    ("psycopg", "pool"): _PSYCOPG_POOL,
    ("psycopg", "async"): _PSYCOPG_ASYNC,
    ("psycopg", "async_pool"): _PSYCOPG_ASYNC_POOL,
}


def generate(
    path: str | os.PathLike[str],
    connection_type: ConnectionType | None = None,
    library: Library = "pgmonkey",
    *,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
) -> str:
    """Return a program that connects as a config file says. It names the file and no value of it.

    Args:
        path: The config file, as the program shall name it.
        connection_type: Another type than the file says.
        library: What the program is built on.
        resolve_env: Let the program resolve the references in the file.
        allow_sensitive_defaults: Let the program accept `${NAME:-default}` for passwords.

    Raises:
        ConfigError: The file cannot be read as a config.
        EnvInterpolationError: The type is a reference that cannot be resolved here.

    Example:
        >>> "PGConnectionManager()" in generate("orders.yaml", "pool")
        True
    """
    declared: Any = load_config(path).get("connection_type", "normal")
    if resolve_env and connection_type is None:
        # It alone: where a program is made, the secrets need not be.
        declared = config_from_dict(
            {"connection_type": declared, "connection_settings": {}},
            resolve_env=True,
            name=str(path),
        ).connection_type
    wanted = connection_type or declared
    try:
        program = _PROGRAMS[library, wanted]
    except KeyError:
        raise PgmonkeyError(
            f"{path}: connection_type is a reference: resolve it with --resolve-env, or say with"
            " --connection-type what it will be"
        ) from None
    options = ", resolve_env=True" if resolve_env else ""
    options += ", allow_sensitive_defaults=True" if allow_sensitive_defaults else ""
    reuse = " Each block borrows a connection." if wanted.endswith("pool") else ""
    return program.format(
        path=repr(os.fspath(path)), type=repr(wanted), options=options, reuse=reuse
    )
