"""`pgmonkey pgconfig generate-code`: a program that connects as a config file says.

The programs are in `templates/programs`, and run as they are; what a caller chooses is in their constants.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.new_files import template
from pgmonkey.cli.output import Answer, ExitCode
from pgmonkey.cli.registry_files import of_files_alone

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.errors import Problem

_PROGRAMS: Final = {"pgmonkey": "registry", "pgmonkey-4.0": "manager", "psycopg": "driver"}


@click.command("generate-code")
@options.config_file
@options.connection_type
@click.option(
    "--library",
    type=click.Choice([*_PROGRAMS]),
    default="pgmonkey",
    help="What the program uses: Registry, the API of pgmonkey 4.0, or the driver alone.",
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

    The program holds no secret, only the path of the file. With --library pgmonkey it uses a
    registry, which always resolves references.
    """
    from pgmonkey.config.directory import NAME
    from pgmonkey.config.legacy import load_config
    from pgmonkey.config.models import NOT_TO_CONNECT

    content = load_config(path)
    wanted = connection_type or _declared(
        content, path, resolve=resolve_env or library == "pgmonkey"
    )
    if wanted is None:
        return Answer(
            code=ExitCode.PROBLEM,
            note=f"{path}: connection_type is a reference: resolve it with --resolve-env, or name"
            " the type with --connection-type",
        )
    if library == "pgmonkey":
        if not (NAME.fullmatch(path.stem) and path.suffix in (".yaml", ".yml")):
            return Answer(
                code=ExitCode.PROBLEM,
                note=f"{path}: in a registry a file is called NAME.yaml, and its name matches"
                f" {NAME.pattern}: rename it, or use --library pgmonkey-4.0",
            )
        if problems := _of_registry(path, allow_sensitive_defaults=allow_sensitive_defaults):
            lines = "\n".join(map(str, problems))
            return Answer(
                code=ExitCode.PROBLEM,
                note=f"{lines}\na registry does not take this file: mend it, or use"
                " --library pgmonkey-4.0",
            )
    connection = content.get("connection_settings") or ()
    names = [key for key in sorted(NOT_TO_CONNECT) if key in connection]
    if library == "psycopg" and names:
        return Answer(
            code=ExitCode.PROBLEM,
            note=f"{path}: psycopg.connect does not take {', '.join(names)}: remove them, or use"
            " --library pgmonkey",
        )
    pooled = "_pool" if library == "psycopg" and wanted.endswith("pool") else ""
    waits = "_async" if wanted.startswith("async") else ""
    program = template(f"programs/{_PROGRAMS[library]}{pooled}{waits}.py")
    constants = {
        "REGISTRY": str(path.parent),
        "DATABASE": path.stem,
        "CONFIG": str(path),
        "CONNECTION_TYPE": wanted,
        "RESOLVE_ENV": resolve_env,
        "ALLOW_SENSITIVE_DEFAULTS": allow_sensitive_defaults,
    }

    def given(found: re.Match[str]) -> str:
        return f"{found['name']}: Final = {constants[found['name']]!r}"

    program = re.sub(
        r"^(?P<name>[A-Z_]+): Final = (\w+|\".*?\")", given, program, flags=re.MULTILINE
    )
    return Answer(program.rstrip("\n"))


def _of_registry(path: Path, *, allow_sensitive_defaults: bool) -> tuple[Problem, ...]:
    """Return what a registry would not take; secrets may be missing where a program is made."""
    from pgmonkey.config.directory import DirectoryLoader

    loader = DirectoryLoader(
        path.parent,
        names=[path.stem],
        environ={},
        allow_sensitive_defaults=allow_sensitive_defaults,
    )
    return of_files_alone(loader.scan().all_problems())


def _declared(content: dict[str, Any], path: Path, *, resolve: bool) -> ConnectionType | None:
    """Return the type that a file declares; `None` if that is a reference."""
    from pgmonkey.config.interpolation import LoadOptions
    from pgmonkey.config.legacy import load_dict
    from pgmonkey.config.loader import config_or_raise
    from pgmonkey.config.models import CONNECTION_TYPES

    declared: Any = content.get("connection_type", "normal")
    if resolve:
        # Only the type: the secrets may be missing where a program is made.
        only = {"connection_type": declared, "connection_settings": {}}
        loaded = load_dict(only, LoadOptions(isolate=False), name=str(path))
        return config_or_raise(loaded, isolate=False).connection_type
    return next((kind for kind in CONNECTION_TYPES if kind == declared), None)
