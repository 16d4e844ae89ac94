"""`pgmonkey pgconfig`: create, test and use a single config file, as pgmonkey 4.0 does."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pgmonkey.cli import generate_code, options
from pgmonkey.cli.output import Answer, ExitCode

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.pool._async.connection import AsyncPooledConnection
    from pgmonkey.pool._sync.connection import SyncPooledConnection

_QUESTION: Final = (
    "SELECT current_setting('server_version'), current_user, current_database(), s.version, s.cipher"
    " FROM (SELECT) AS here LEFT JOIN pg_stat_ssl AS s ON s.pid = pg_backend_pid()"
)
_SILENT: Final = logging.NullHandler()


@click.group("pgconfig")
def command() -> None:
    """Create, test and use a single config file."""


command.add_command(generate_code.command)


@command.command("create")
@options.config_file
@click.option(
    "--type", "kind", type=click.Choice(["pg"]), default="pg", help="The kind of database."
)
def create(path: Path, kind: str) -> Answer:
    """Write a new config file to fill in.

    An existing file is left as it is.
    """
    del kind  # there is one
    try:
        _create(path)
    except FileExistsError as error:
        if error.filename != str(path):
            raise  # a file is where its directory should be
        return Answer(code=ExitCode.PROBLEM, note=f"{path} exists already and was left as it is")
    test = shlex.join(["pgmonkey", "pgconfig", "test", "--connconfig", str(path)])
    return Answer(f"{path} is written, and only you can read it; fill it in and try it:\n{test}")


def _create(path: Path) -> None:
    from importlib.resources import files

    text = files("pgmonkey.cli").joinpath("templates/config.yaml").read_text("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)  # a full disk leaves no half of a file
        raise


@command.command("test")
@options.config_file
@options.connection_type
@options.resolve_env
@options.allow_sensitive_defaults
@options.env_file
def test(
    path: Path,
    connection_type: ConnectionType | None,
    resolve_env: bool,
    allow_sensitive_defaults: bool,
    env: Mapping[str, str] | None,
) -> Answer:
    """Connect as a config file says, and report the result.

    For a pool it also opens the pool, and borrows a connection. Exit code 4: the database cannot
    be reached, or refuses.
    """
    from pgmonkey.config.loader import load_file

    # A failure is this command's answer; the same as an event beside it is noise.
    logging.getLogger("pgmonkey").addHandler(_SILENT)
    config = load_file(
        path,
        resolve=resolve_env,
        allow_sensitive_defaults=allow_sensitive_defaults,
        isolate=False,
        env=env,
    )
    wanted = connection_type or config.connection_type
    given = {"resolve_env": resolve_env, "allow_sensitive_defaults": allow_sensitive_defaults}
    lines = _connect(path, wanted, given, env)
    if wanted.endswith("pool"):
        pool = config.pool(wanted)
        lines["pool"] = f"opened; {pool.min_size} to {pool.max_size} connections"
    return Answer(
        "\n".join(
            [
                f"{path}: a connection of type {wanted} works",
                *(f"  {name:<14}{text}" for name, text in lines.items()),
            ]
        )
    )


def _connect(
    path: Path, wanted: ConnectionType, given: dict[str, bool], env: Mapping[str, str] | None
) -> dict[str, str]:
    """Connect once, then through a pool if one is wanted; return what the server says."""
    import asyncio

    from pgmonkey.registry.manager import PGConnectionManager

    def sync() -> dict[str, str]:
        began = time.monotonic()
        with PGConnectionManager(env=env) as manager:
            with manager.get_database_connection(path, "normal", **given) as connection:
                seconds = time.monotonic() - began
                row = connection.execute(_QUESTION).fetchone()
                lines = _lines(connection, row, seconds)
            manager.clear_cache()  # a server may have room for one connection only
            if wanted == "pool":
                with manager.get_database_connection(path, wanted, **given) as connection:
                    connection.execute("SELECT 1")
        return lines

    async def not_sync() -> dict[str, str]:
        began = time.monotonic()
        async with PGConnectionManager(env=env) as manager:
            async with await manager.get_database_connection(path, "async", **given) as connection:
                seconds = time.monotonic() - began
                cursor = await connection.execute(_QUESTION)
                lines = _lines(connection, await cursor.fetchone(), seconds)
            await manager.clear_cache_async()
            if wanted == "async_pool":
                pool = await manager.get_database_connection(path, wanted, **given)
                async with pool as connection:
                    await connection.execute("SELECT 1")
        return lines

    return asyncio.run(not_sync()) if wanted.startswith("async") else sync()


def _lines(
    connection: SyncPooledConnection | AsyncPooledConnection, row: Any, seconds: float
) -> dict[str, str]:
    version, user, database, tls_version, cipher = row
    info = connection.info
    address = info.host if info.host.startswith("/") else f"{info.host}:{info.port}"
    tls = "none: the connection is not encrypted"
    if connection.pgconn.ssl_in_use:
        # Behind a pooler the server describes its own side, if that has TLS at all.
        tls = f"{tls_version}, {cipher}" if tls_version else "yes"
    elif info.host.startswith("/"):
        tls = "none: a local socket"
    return {
        "server": f"PostgreSQL {version} at {address}",
        "database": database,
        "user": user,
        "tls": tls,
        "connected in": f"{seconds * 1000:.1f} ms",
    }
