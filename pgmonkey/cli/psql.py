"""`pgmonkey psql`: the psql of this machine, connected as an application is."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, tell
from pgmonkey.cli.registry_files import scan

if TYPE_CHECKING:
    from pgmonkey.pool.psql import Login


@click.command("psql")
@options.name
@click.argument("arguments", metavar="[-- ARGUMENT...]", nargs=-1, type=click.UNPROCESSED)
@options.directory_beside_names
@options.references
def command(
    name: str,
    arguments: tuple[str, ...],
    directory: Path,
    references: options.References,
) -> Answer:
    """Run psql, connected as an application would be.

    Arguments after -- go to psql, and the exit code is that of psql. The password is in no
    argument, in no environment variable and in no named file.
    """
    program = shutil.which("psql")
    if program is None:
        note = (
            "psql is not installed, or not in PATH\n  hint: it is in the package postgresql-client"
        )
        return Answer(code=ExitCode.PROBLEM, note=note)
    found = scan(directory, references, [name])
    found.raise_for_problems()
    from pgmonkey.pool.psql import psql_login

    config = found.configs[name]
    with psql_login(config, config.connection_type) as login:
        if login.note:
            tell(login.note)
        return _become([program, *arguments], login)


def _become(arguments: list[str], login: Login) -> NoReturn:
    """Let psql take the place of this process, with its open files."""
    sys.stderr.flush()
    for descriptor in login.descriptors:
        os.set_inheritable(descriptor, True)
    # Python ignores these, and psql would do so, too.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execve(arguments[0], arguments, login.environment)  # noqa: S606 - without a shell
