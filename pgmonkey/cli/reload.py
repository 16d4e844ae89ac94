"""`pgmonkey reload`: make a running service read its files now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, as_json

if TYPE_CHECKING:
    from pgmonkey.service.client import ServiceClient


@click.command("reload")
@options.service
@click.option(
    "--token-file",
    metavar="FILE",
    type=options.PATH,
    help="The file with the token of the service.",
)
@options.output
def command(client: ServiceClient, token_file: Path | None, output: str) -> Answer:
    """Make a running service read its files now.

    It prints the names that were applied, removed or unchanged, and the problems of the others.
    Exit code 1: something was rejected, or the service refuses. 5: it cannot be reached.
    """
    from pgmonkey.errors import Problem
    from pgmonkey.service.auth import TokenFile

    token = TokenFile(token_file).read() if token_file else None
    result = client.reload(token)
    code = ExitCode.PROBLEM if result["rejected"] else ExitCode.OK
    if output == "json":
        return Answer(as_json(result), code)
    lines = [
        f"{outcome}: {', '.join(result[outcome])}"
        for outcome in ("applied", "removed", "unchanged")
        if result[outcome]
    ]
    problems = [str(Problem(**problem)) for problem in result["rejected"]]
    return Answer("\n".join(lines), code, note="\n".join(problems))
