"""`pgmonkey test`: connect to databases as their application would, and report what it finds."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, as_json, described, milliseconds
from pgmonkey.cli.registry_files import scan
from pgmonkey.cli.servers import Found, find, side_by_side

if TYPE_CHECKING:
    from pgmonkey.config.budget import Limits
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import Problem


@click.command("test")
@options.names
@options.directory_beside_names
@click.option(
    "--credentials-from",
    metavar="DIR",
    type=options.PATH,
    help="Rehearse a rotation: from_file reads the files of the same names in this directory.",
)
@options.output_of_text
@options.references
def command(
    names: tuple[str, ...],
    directory: Path,
    credentials_from: Path | None,
    output: str,
    references: options.References,
) -> Answer:
    """Connect to databases as their application would.

    Each gets one connection, which is closed at once. Functions of `configure` are not called: only
    the application has them. Exit code 4: a database cannot be reached, or refuses. 1: there is
    another problem.
    """
    from pgmonkey.errors import sorted_problems, summary

    names = tuple(dict.fromkeys(names))
    found = scan(directory, references, names, secrets_from=credentials_from)
    tries = side_by_side(partial(_try, credentials_from), found.configs.values())
    tried = dict(zip(found.configs, tries, strict=True))
    problems = sorted_problems(
        [*found.all_problems(), *(problem for one in tries for problem in one.problems)]
    )
    code = ExitCode.PROBLEM if problems else ExitCode.OK
    if any(one.refused for one in tries):
        code = ExitCode.DATABASE_UNREACHABLE
    if output == "json":
        report = {
            "directory": str(directory),
            "credentials_from": credentials_from and str(credentials_from),
            "databases": [_as_dict(name, tried.get(name)) for name in names],
            "problems": [problem.as_dict() for problem in problems],
        }
        return Answer(as_json(report), code)
    lines = [one.text(one.found) for name in names if (one := tried.get(name)) and one.found]
    lines += map(str, problems)
    return Answer("\n".join(lines), code, summary(problems) if problems else "")


class _Tried(NamedTuple):
    """One database, and what came out when it was connected to."""

    config: DatabaseConfig
    #: The files that were read in place of the mounted ones.
    secret_files: list[str]
    found: Found | None
    problems: list[Problem]

    @property
    def refused(self) -> bool:
        """Whether there is no connection, although it was tried."""
        return any(one.code.startswith("probe.") for one in self.problems) and self.found is None

    def text(self, found: Found) -> str:
        """Return what was found, for people."""
        kind = self.config.connection_type
        lines = {
            **found.server.lines(),
            "connected in": milliseconds(found.connect),
            "round trip": milliseconds(found.round_trip),
            "connections": connections(found.limits),
        }
        if kind.endswith("pool"):
            pool = self.config.pool(kind)
            lines["pool"] = f"{pool.min_size} to {pool.max_size} connections in each process"
        if self.secret_files:
            lines["secrets"] = ", ".join(self.secret_files)
        return described(f"{self.config.name}: a connection of type {kind} works", lines)


def connections(limits: Limits) -> str:
    """Return the limits for people."""
    allowed, limit = limits.allowed()
    reserved = f"{limits.reserved} reserved, " if limits.reserved else ""
    return (
        f"{allowed} allowed by {limit}; {limits.max_connections} in all, {reserved}"
        f"{limits.in_use} in use"
    )


def _limits_as_dict(limits: Limits) -> dict[str, Any]:
    values = limits._asdict()
    of_server = ("identity", "role", "database")
    return {
        **{key: value for key, value in values.items() if key not in of_server},
        "allowed": limits.allowed()[0],
    }


def _try(credentials_from: Path | None, config: DatabaseConfig) -> _Tried:
    from pgmonkey.config.failed_probes import pool_too_large
    from pgmonkey.errors import Problem

    files: list[str] = []
    if credentials_from is not None:
        files = _files_in(credentials_from, config)
        if not files:
            return _Tried(config, files, None, [not_rehearsed(config)])
    found = find(config)
    if isinstance(found, Problem):
        return _Tried(config, files, None, [found])
    problems: list[Problem] = []
    # Behind PgBouncer, its own limits count.
    if config.pooler == "none" and config.connection_type.endswith("pool"):
        too_large = pool_too_large(config, *found.limits.allowed())
        problems = [too_large] if too_large is not None else []
    return _Tried(config, files, found, problems)


def _files_in(directory: Path, config: DatabaseConfig) -> list[str]:
    """Return the secret files of a database that were read in a directory."""
    inside = f"{os.path.abspath(directory)}{os.sep}"  # noqa: PTH100 - `resolve` follows links
    return sorted(
        str(directory / path.removeprefix(inside))
        for path in config.sources.files
        if path.startswith(inside)
    )


def not_rehearsed(config: DatabaseConfig) -> Problem:
    """Return the problem of a database of which new files would change nothing."""
    from pgmonkey.errors import Problem

    message = "it has no from_file, so --credentials-from changes nothing: it was not tried"
    hint = "without --credentials-from, its present credentials are tried"
    return Problem(config.path, "reference.no_file", message, hint=hint, database=config.name)


def _as_dict(name: str, tried: _Tried | None) -> dict[str, Any]:
    config, found = (tried.config, tried.found) if tried is not None else (None, None)
    pool = None
    if config is not None and config.connection_type.endswith("pool"):
        sizes = config.pool(config.connection_type)
        pool = {"min_size": sizes.min_size, "max_size": sizes.max_size}
    return {
        "name": name,
        "connection_type": config and config.connection_type,
        "reached": found is not None,
        "server": found and found.server.as_dict(),
        "connect_seconds": found and round(found.connect, 6),
        "round_trip_seconds": found and round(found.round_trip, 6),
        "limits": found and _limits_as_dict(found.limits),
        "pool": pool,
        "secret_files": tried.secret_files if tried is not None else [],
    }
