"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from pgmonkey.service.client import ServiceClient

#: The type of an argument that is a path.
PATH: Final = click.Path(path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def directory(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its `directory`: DIR or --dir, else $PGMONKEY_REGISTRY, else registry.d."""

    @click.argument("argument", metavar="[DIR]", required=False, type=PATH)
    @directory_option
    @functools.wraps(command)
    def with_directory(argument: Path | None, option: Path | None, **values: Any) -> Any:
        return command(directory=chosen(argument, option), **values)

    return with_directory


def chosen(argument: Path | None, option: Path | None) -> Path:
    """Return the directory of the registry.

    Args:
        argument: What was given as DIR.
        option: What was given with --dir.
    """
    if argument is not None and option is not None:
        raise click.UsageError("DIR and --dir are the same: give one of them")
    return argument or option or Path(os.environ.get("PGMONKEY_REGISTRY") or "registry.d")


directory_option: Final = click.option(
    "--dir",
    "option",
    metavar="DIR",
    type=PATH,
    help="The directory of the registry; DIR is the same."
    "  [default: $PGMONKEY_REGISTRY, else registry.d]",
)


def choice(*names: str, words: tuple[str, ...], default: str | None, text: str) -> Decorator:
    """Return an option that takes one of a few words.

    Args:
        names: Of the option.
        words: What it takes.
        default: If it is not given.
        text: The help.
    """
    return click.option(
        *names,
        type=click.Choice(words),
        default=default,
        show_default=default is not None,
        help=text,
    )


output: Final = choice(
    *("-o", "--output"), words=("table", "json"), default="table", text="The format of the answer."
)


def trust(default: str) -> Decorator:
    """Return the option --trust."""
    return choice(
        "--trust",
        words=("strict", "warn", "off"),
        default=default,
        text="strict: refuse files that other accounts can change.",
    )


def logs(default: str) -> Decorator:
    """Return the options --log-format and --log-level as one."""
    style = choice(
        "--log-format",
        words=("auto", "json", "console"),
        default=default,
        text="auto: console on a terminal, else json.",
    )
    level = choice(
        "--log-level",
        words=("debug", "info", "warning", "error"),
        default="info",
        text="The lowest level that is written.",
    )
    return lambda command: style(level(command))


allow_sensitive_defaults: Final = click.option(
    "--allow-sensitive-defaults",
    is_flag=True,
    help="Accept ${NAME:-default} for passwords and other secrets.",
)


def _client(context: click.Context, _parameter: click.Parameter, url: str) -> ServiceClient | None:
    if context.resilient_parsing:
        return None
    from pgmonkey.service.client import ServiceClient

    try:
        return ServiceClient(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


service: Final = click.option(
    "--url",
    "client",
    default="http://127.0.0.1:9749",
    envvar="PGMONKEY_URL",
    show_default=True,
    show_envvar=True,
    callback=_client,
    help="The address of the service, with its path if it has one.",
)


config_file: Final = click.option(
    "--connconfig",
    "--filepath",
    "path",
    metavar="FILE",
    type=PATH,
    required=True,
    help="The config file.",
)
connection_type: Final = choice(
    "--connection-type",
    words=("normal", "pool", "async", "async_pool"),
    default=None,
    text="Another connection type than the file says.",
)
resolve_env: Final = click.option(
    "--resolve-env",
    is_flag=True,
    help="Resolve ${NAME}, from_env and from_file in the file.",
)
