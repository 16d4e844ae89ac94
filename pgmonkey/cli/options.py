"""The options and arguments that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class OutputChoice(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"


class LogFormatChoice(StrEnum):
    """How events are written."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevelChoice(StrEnum):
    """The lowest level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class TrustChoice(StrEnum):
    """What becomes of files that other accounts can change."""

    STRICT = "strict"
    WARN = "warn"
    OFF = "off"


Directory = Annotated[
    Path,
    typer.Argument(
        metavar="[DIR]",
        envvar="PGMONKEY_REGISTRY",
        help="The registry's directory.",
    ),
]
LogFormat = Annotated[
    LogFormatChoice,
    typer.Option("--log-format", help="auto: console on a terminal, else json."),
]
LogLevel = Annotated[LogLevelChoice, typer.Option("--log-level", help="The lowest level written.")]
AllowSensitiveDefaults = Annotated[
    bool,
    typer.Option(
        "--allow-sensitive-defaults", help="Accept ${NAME:-default} for passwords and the like."
    ),
]
Trust = Annotated[
    TrustChoice,
    typer.Option("--trust", help="strict: refuse files that other accounts can change."),
]

Name = Annotated[str, typer.Argument(metavar="NAME", help="The database.", show_default=False)]
NamedDirectory = Annotated[
    Path,
    typer.Option(
        "--dir", metavar="DIR", envvar="PGMONKEY_REGISTRY", help="The registry's directory."
    ),
]
Output = Annotated[OutputChoice, typer.Option("-o", "--output", help="How to write the answer.")]
