"""`pgmonkey init`: the file of a new database, and the directory of its secrets."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.new_files import template, write_new
from pgmonkey.cli.output import Answer, ExitCode

_SECRETS: Final = ("username", "password")
#: What YAML reads as it is written, whatever is around it.
_PLAIN: Final = re.compile(r"(?!null$)[A-Za-z0-9_./][A-Za-z0-9_./+-]*")
_SECTION: Final = re.compile(r"(\w+): *#")
_LEAF: Final = re.compile(r"( *)(\w+): *[^# ]")


@click.command("init")
@click.argument("name")
@options.directory
@click.option(
    "--secrets",
    metavar="DIR",
    type=options.PATH,
    help="The directory of its secret files.  [default: secrets/NAME beside the registry]",
)
def command(name: str, directory: Path, secrets: Path | None) -> Answer:
    """Write the file of a new database, to fill in.

    It also makes empty files for the user and the password, which only their owner can read.
    Existing files stay as they are. Exit code 1: the database has a file already.
    """
    from pgmonkey.config.directory import NAME

    if not NAME.fullmatch(name):
        message = f"the name of a database must match {NAME.pattern}"
        raise click.BadParameter(message, param_hint="NAME")
    path = directory / f"{name}.yaml"
    for known in (path, path.with_suffix(".yml")):
        if os.path.lexists(known):
            return Answer(code=ExitCode.PROBLEM, note=_left(known))
    if secrets is None:
        # The `parent` of "." is "." itself.
        secrets = Path(os.path.normpath(directory / ".." / "secrets" / name))
    directory.mkdir(0o755, parents=True, exist_ok=True)
    secrets.parent.mkdir(0o755, parents=True, exist_ok=True)
    if not secrets.is_dir():
        secrets.mkdir(0o700)
        write_new(secrets / ".gitignore", "*\n", 0o600)
    files = [secrets / one for one in _SECRETS]
    for file in files:
        write_new(file, "", 0o600)
    if not write_new(path, _text(name, directory, secrets), 0o644):
        return Answer(code=ExitCode.PROBLEM, note=_left(path))
    steps = [
        f"set host, port and dbname in {path}",
        f"write the user into {files[0]} and the password into {files[1]}",
        shlex.join(["pgmonkey", "check", str(path)]),
        shlex.join(["pgmonkey", "test", name, "--dir", str(directory)]),
    ]
    lines = [f"{path} is written. What is left to do:"]
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    return Answer("\n".join(lines))


def _left(path: Path) -> str:
    return f"{path} exists already and was left as it is"


def _text(name: str, directory: Path, secrets: Path) -> str:
    """Return the text of the file; for what the defaults of the directory have, it has a comment."""
    from pgmonkey.config.yaml_reader import DEFAULTS_FILE, read_again

    where = secrets if secrets.is_absolute() else os.path.relpath(secrets, directory)
    text = template("database.yaml-tpl")
    for place, value in {
        "{name}": name,
        "{dbname}": _scalar(name),
        "{username}": _scalar(f"{where}/username"),
        "{password}": _scalar(f"{where}/password"),
    }.items():
        text = text.replace(place, value)
    defaults = read_again(str(directory / DEFAULTS_FILE))
    section = ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if found := _SECTION.match(line):
            section = found[1]
        elif defaults and (found := _LEAF.match(line)):
            indentation, key = found.groups()
            if defaults.position((section, key) if indentation else (key,)) is not None:
                lines[number] = f"{indentation}# {key}: as {DEFAULTS_FILE} says"
    return "\n".join([*lines, ""])


def _scalar(text: str) -> str:
    """Return a text as YAML, and as a value without references."""
    text = text.replace("${", "$${")
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
