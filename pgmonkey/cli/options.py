"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

import click

if TYPE_CHECKING:
    from pgmonkey.service.client import ServiceClient

PATH: Final = click.Path(path_type=Path)

directory_option: Final = click.option(
    "--dir",
    "option",
    metavar="DIR",
    type=PATH,
    help="The directory of the registry.  [default: $PGMONKEY_REGISTRY, else registry.d]",
)


def directory(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its `directory`, from DIR or --dir."""

    @click.argument("argument", metavar="[DIR]", required=False, type=PATH)
    @directory_option
    @functools.wraps(command)
    def with_directory(argument: Path | None, option: Path | None, **values: Any) -> Any:
        return command(directory=chosen(argument, option), **values)

    return with_directory


def directory_beside_names(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its `directory`, from --dir alone: its arguments are something else."""

    @directory_option
    @functools.wraps(command)
    def with_directory(option: Path | None, **values: Any) -> Any:
        return command(directory=chosen(None, option), **values)

    return with_directory


def chosen(argument: Path | None, option: Path | None) -> Path:
    """Return the directory of the registry."""
    if argument is not None and option is not None:
        raise click.UsageError("DIR and --dir are the same: give one of them")
    return argument or option or Path(os.environ.get("PGMONKEY_REGISTRY") or "registry.d")


def declared(context: click.Context, _: click.Parameter, beginning: str) -> list[str]:
    """Complete the name of a database: those of the files, which are not opened."""
    given = context.params
    directory = given.get("argument") or given.get("option")
    try:
        files = list(chosen(None, directory).iterdir())
    except OSError:
        return []
    names = {file.stem for file in files if file.suffix in (".yaml", ".yml")}
    taken = given.get("names") or ()
    return sorted(
        name
        for name in names
        if name.startswith(beginning) and not name.startswith(("_", ".")) and name not in taken
    )


name: Final = click.argument("name", shell_complete=declared)
names: Final = click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=declared
)

output: Final = click.option(
    *("-o", "--output"),
    type=click.Choice(["table", "json"]),
    default="table",
    help="The format of the answer.",
)
output_of_text: Final = click.option(
    *("-o", "--output"),
    type=click.Choice(["text", "json"]),
    default="text",
    help="The format of the answer.",
)


def duration(*names: str, least: float = 0.0, **attributes: Any) -> Callable[..., Any]:
    """Return an option that is a time, written as in a file; the command gets its seconds."""

    def seconds(_context: click.Context, _: click.Parameter, text: str | None) -> float | None:
        from pgmonkey.config.durations import DurationError, parse_duration

        if text is None:
            return None
        try:
            found = parse_duration(text)
        except DurationError as error:
            raise click.BadParameter(str(error)) from None
        if found < least:
            raise click.BadParameter(f"the least is {least:g} s")
        return found

    return click.option(*names, metavar="DURATION", callback=seconds, **attributes)


def fleet(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its `fleet`, from three options."""
    count = click.IntRange(min=1)

    @click.option("--replicas", metavar="N", type=count, default=1, help="How many replicas run.")
    @click.option(
        "--workers", metavar="N", type=count, default=1, help="How many processes each of them has."
    )
    @click.option(
        "--loops", metavar="N", type=count, default=1, help="How many event loops each process has."
    )
    @functools.wraps(command)
    def with_fleet(replicas: int, workers: int, loops: int, **values: Any) -> Any:
        from pgmonkey.config.budget import Fleet

        return command(fleet=Fleet(replicas, workers, loops), **values)

    return with_fleet


# How references are resolved


class References(TypedDict):
    """What `references` gives a command, for `DirectoryLoader` and `Registry`."""

    allow_sensitive_defaults: bool
    env: Mapping[str, str] | None


allow_sensitive_defaults: Final = click.option(
    "--allow-sensitive-defaults",
    is_flag=True,
    help="Accept ${NAME:-default} for passwords and other secrets.",
)


def _env(context: click.Context, _: click.Parameter, path: Path | None) -> Mapping[str, str] | None:
    path = path or context.find_root().params.get("env_file")
    if path is None or context.resilient_parsing:  # a shell asks for completions
        return None
    from collections import ChainMap

    from pgmonkey.config.env_file import Variables, read_env_file

    # As Docker Compose and python-dotenv do it: what is set where the program starts counts first.
    return Variables(ChainMap(os.environ, dict(read_env_file(path))))


_ENV_FILE: Final = "Take variables that are not set from this .env file; for development."
env_file: Final = click.option(
    *("--env-file", "env"),
    metavar="FILE",
    type=PATH,
    callback=_env,
    help=f"{_ENV_FILE}  [default: that of pgmonkey --env-file]",
)


def references(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its `references`, from the two options above."""

    @allow_sensitive_defaults
    @env_file
    @functools.wraps(command)
    def with_references(
        allow_sensitive_defaults: bool, env: Mapping[str, str] | None, **values: Any
    ) -> Any:
        found = References(allow_sensitive_defaults=allow_sensitive_defaults, env=env)
        return command(references=found, **values)

    return with_references


#: The same before the command: commands that read no variables take no notice.
env_file_of_all: Final = click.option(
    "--env-file",
    metavar="FILE",
    type=PATH,
    envvar="PGMONKEY_ENV_FILE",
    show_envvar=True,
    help=_ENV_FILE,
)
trust: Final = functools.partial(
    click.option,
    "--trust",
    type=click.Choice(["strict", "warn", "off"]),
    help="strict: refuse files that other accounts can change.",
)
log_format: Final = functools.partial(
    click.option,
    "--log-format",
    type=click.Choice(["auto", "json", "console"]),
    help="auto: console on a terminal, else json.",
)
log_level: Final = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="The lowest level that is logged.",
)

# Of `pgconfig`

config_file: Final = click.option(
    *("--connconfig", "--filepath", "path"),
    metavar="FILE",
    type=PATH,
    required=True,
    help="The config file.",
)
connection_type: Final = click.option(
    "--connection-type",
    type=click.Choice(["normal", "pool", "async", "async_pool"]),
    help="Another connection type than that of the file.",
)
resolve_env: Final = click.option(
    "--resolve-env", is_flag=True, help="Resolve ${NAME}, from_env and from_file in the file."
)

# Of the commands that ask a service


def _client(context: click.Context, _: click.Parameter, url: str) -> ServiceClient | None:
    if context.resilient_parsing:  # a shell asks for completions
        return None
    from pgmonkey.service.client import ServiceClient

    try:
        return ServiceClient(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


service: Final = click.option(
    *("--url", "client"),
    default="http://127.0.0.1:9749",
    envvar="PGMONKEY_URL",
    show_envvar=True,
    callback=_client,
    help="The address of the service, with its path if it has one.",
)
