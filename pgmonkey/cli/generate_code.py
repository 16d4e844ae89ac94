"""`pgmonkey pgconfig generate-code`: a program that connects as a config file says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.new_files import template
from pgmonkey.cli.output import Answer, ExitCode

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType

# A program is written once, for asyncio, in `templates`; these replacements, in this order, make it
# synchronous.
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
    from pgmonkey.config.interpolation import LoadOptions
    from pgmonkey.config.legacy import load_config, load_dict
    from pgmonkey.config.loader import config_or_raise
    from pgmonkey.config.models import CONNECTION_TYPES

    declared: Any = load_config(path).get("connection_type", "normal")
    if resolve_env and connection_type is None:
        # Only the type: the secrets may be missing where a program is made.
        only = {"connection_type": declared, "connection_settings": {}}
        loaded = load_dict(only, LoadOptions(isolate=False), name=str(path))
        declared = config_or_raise(loaded, isolate=False).connection_type
    wanted = connection_type or declared
    if wanted not in CONNECTION_TYPES:
        return Answer(
            code=ExitCode.PROBLEM,
            note=f"{path}: connection_type is a reference: resolve it with --resolve-env, or name"
            " the type with --connection-type",
        )
    pooled = wanted.endswith("pool")
    if pooled and library == "psycopg":
        library = "psycopg_pool"
    program = template(f"{library}.py-tpl")
    if not wanted.startswith("async"):
        for asynchronous, synchronous in _SYNC:
            program = program.replace(asynchronous, synchronous)
    arguments = ", resolve_env=True" if resolve_env else ""
    arguments += ", allow_sensitive_defaults=True" if allow_sensitive_defaults else ""
    for place, text in {
        "{options}": arguments,
        "{reuse}": " Each block borrows a connection." if pooled else "",
        "{type}": repr(wanted),
        "{path}": repr(str(path)),  # the last one: a path may hold the others
    }.items():
        program = program.replace(place, text)
    return Answer(program.rstrip("\n"))
