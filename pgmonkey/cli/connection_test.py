"""Try one config file against its server, and report what answered."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.config.loader import load_file
from pgmonkey.pool.connection import AsyncPooledConnection, PooledConnection
from pgmonkey.pool.dialer import Dialer
from pgmonkey.pool.limits import Budget, Gate
from pgmonkey.pool.target import Applied
from pgmonkey.pool.usage import Usage
from pgmonkey.registry.cache import make_handle

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig

_QUESTION: Final = (
    "SELECT current_setting('server_version'), current_user, current_database(), s.version, s.cipher"
    " FROM (SELECT) AS here LEFT JOIN pg_stat_ssl AS s ON s.pid = pg_backend_pid()"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold what a server said about a connection.

    Args:
        address: Host and port, or the socket.
        version: The server's version.
        user: The role.
        database: The database.
        tls: Version and cipher, or that there is none.
        seconds: How long connecting took.
        pool: What was done with a pool, or `None`.
    """

    address: str
    version: str
    user: str
    database: str
    tls: str
    seconds: float
    pool: str | None = None


def try_config(
    path: str | os.PathLike[str],
    connection_type: ConnectionType | None = None,
    *,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
) -> str:
    """Connect as a config file says, and return a report for a person.

    Pools are really opened, and a connection is borrowed from them.

    Args:
        path: The config file.
        connection_type: Another type than the file says.
        resolve_env: Resolve the references in the file.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and the like.

    Raises:
        ConfigError, EnvInterpolationError: The file cannot be used.
        ConnectError, CheckoutTimeout: The server cannot be reached, or refuses.
    """
    config = load_file(
        path,
        resolve=resolve_env,
        allow_sensitive_defaults=allow_sensitive_defaults,
        isolate=False,
    )
    wanted = connection_type or config.connection_type
    if wanted in ("async", "async_pool"):
        answer = asyncio.run(_try_async(config, wanted))
    else:
        answer = _try_sync(config, wanted)
    lines = {
        "server": f"PostgreSQL {answer.version} at {answer.address}",
        "database": answer.database,
        "user": answer.user,
        "tls": answer.tls,
        "connected in": f"{answer.seconds * 1000:.1f} ms",
        "pool": answer.pool,
    }
    return "\n".join(
        [
            f"{path}: a connection of type {wanted} works",
            *(f"  {name:<14}{text}" for name, text in lines.items() if text is not None),
        ]
    )


def _try_sync(config: DatabaseConfig, connection_type: ConnectionType) -> Answer:
    began = time.monotonic()
    connection = Dialer(config, connection_type, Gate(1, Usage())).dial(None)
    seconds = time.monotonic() - began
    with connection:
        answer = _answer(connection, connection.execute(_QUESTION).fetchone(), seconds)
    if connection_type != "pool":
        return answer
    handle = make_handle(Applied(config), connection_type, Budget())
    try:
        with handle as borrowed:
            borrowed.execute("SELECT 1")
    finally:
        handle.close()
    return _with_pool(answer, config, connection_type)


async def _try_async(config: DatabaseConfig, connection_type: ConnectionType) -> Answer:
    began = time.monotonic()
    connection = await Dialer(config, connection_type, Gate(1, Usage())).dial_async(None)
    seconds = time.monotonic() - began
    async with connection:
        cursor = await connection.execute(_QUESTION)
        answer = _answer(connection, await cursor.fetchone(), seconds)
    if connection_type != "async_pool":
        return answer
    handle = make_handle(Applied(config), connection_type, Budget())
    try:
        async with handle as borrowed:
            await borrowed.execute("SELECT 1")
    finally:
        await handle.close()
    return _with_pool(answer, config, connection_type)


def _answer(
    connection: PooledConnection | AsyncPooledConnection, row: Any, seconds: float
) -> Answer:
    version, user, database, tls_version, cipher = row
    info = connection.info
    address = info.host if info.host.startswith("/") else f"{info.host}:{info.port}"
    tls = "none: the connection is not encrypted"
    if connection.pgconn.ssl_in_use:
        # Through a pooler the server tells of its own side, if of any: then we only know that.
        tls = f"{tls_version}, {cipher}" if tls_version else "yes"
    elif info.host.startswith("/"):
        tls = "none: a local socket"
    return Answer(address, version, user, database, tls, seconds)


def _with_pool(answer: Answer, config: DatabaseConfig, connection_type: ConnectionType) -> Answer:
    settings = config.pool(connection_type)
    return Answer(
        answer.address,
        answer.version,
        answer.user,
        answer.database,
        answer.tls,
        answer.seconds,
        f"opened; {settings.min_size} to {settings.max_size} connections",
    )
