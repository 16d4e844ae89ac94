"""`pgmonkey pgconfig`: create, test and use a single config file, as pgmonkey 4.0 does."""

from __future__ import annotations

import logging
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pgmonkey.cli import generate_code, options
from pgmonkey.cli.new_files import template, write_new
from pgmonkey.cli.output import Answer, ExitCode, described, milliseconds
from pgmonkey.cli.servers import ABOUT_SERVER, Server

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType

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
    path.parent.mkdir(parents=True, exist_ok=True)
    if not write_new(path, template("config.yaml"), 0o600):
        return Answer(code=ExitCode.PROBLEM, note=f"{path} exists already and was left as it is")
    test = shlex.join(["pgmonkey", "pgconfig", "test", "--connconfig", str(path)])
    return Answer(f"{path} is written, and only you can read it; fill it in and try it:\n{test}")


@command.command("test")
@options.config_file
@options.connection_type
@options.resolve_env
@options.references
def test(
    path: Path,
    connection_type: ConnectionType | None,
    resolve_env: bool,
    references: options.References,
) -> Answer:
    """Connect as a config file says, and report the result.

    For a pool it also opens the pool, and borrows a connection. Exit code 4: the database cannot
    be reached, or refuses.
    """
    from pgmonkey.config.loader import load_file

    # A failure is this command's answer; the same as an event beside it is noise.
    logging.getLogger("pgmonkey").addHandler(_SILENT)
    config = load_file(path, resolve=resolve_env, isolate=False, **references)
    wanted = connection_type or config.connection_type
    lines = _connect(path, wanted, references, resolve=resolve_env)
    if wanted.endswith("pool"):
        pool = config.pool(wanted)
        lines["pool"] = f"opened; {pool.min_size} to {pool.max_size} connections"
    return Answer(described(f"{path}: a connection of type {wanted} works", lines))


def _connect(
    path: Path, wanted: ConnectionType, references: options.References, *, resolve: bool
) -> dict[str, str]:
    """Connect once, then through a pool if one is wanted; return what the server says."""
    import asyncio

    from psycopg.rows import tuple_row

    from pgmonkey.registry.manager import PGConnectionManager

    env, defaults = references["env"], references["allow_sensitive_defaults"]
    given = {"resolve_env": resolve, "allow_sensitive_defaults": defaults}

    def sync() -> dict[str, str]:
        began = time.monotonic()
        with PGConnectionManager(env=env) as manager:
            with manager.get_database_connection(path, "normal", **given) as connection:
                seconds = time.monotonic() - began
                with connection.cursor(row_factory=tuple_row) as cursor:
                    row = cursor.execute(ABOUT_SERVER).fetchone()
                lines = _lines(Server.behind(connection, row), seconds)
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
                async with connection.cursor(row_factory=tuple_row) as cursor:
                    await cursor.execute(ABOUT_SERVER)
                    row = await cursor.fetchone()
                lines = _lines(Server.behind(connection, row), seconds)
            await manager.clear_cache_async()
            if wanted == "async_pool":
                pool = await manager.get_database_connection(path, wanted, **given)
                async with pool as connection:
                    await connection.execute("SELECT 1")
        return lines

    return asyncio.run(not_sync()) if wanted.startswith("async") else sync()


def _lines(server: Server, seconds: float) -> dict[str, str]:
    return {**server.lines(), "connected in": milliseconds(seconds)}
