"""`pgmonkey check`: the problems of the files of a registry and, on request, of its servers."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, as_json, tell
from pgmonkey.cli.registry_files import of_files_alone
from pgmonkey.cli.servers import connected, side_by_side

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.config.trust import Trust
    from pgmonkey.errors import Problem

_SUFFIXES: Final = (".yaml", ".yml")


@click.command("check")
@click.argument("paths", metavar="[DIR | FILE...]", nargs=-1, type=options.PATH)
@options.directory_option
@click.option(
    *("-o", "--output"),
    type=click.Choice(["text", "json", "github"]),
    default="text",
    help="The format of the problems; github: annotations of a workflow.",
)
@click.option(
    "--static",
    is_flag=True,
    help="Check the files alone: variables, secret files and TLS files may be missing.",
)
@click.option(
    "--from-4.0",
    "older",
    is_flag=True,
    help="The files are of pgmonkey 4.0: also warn where their meaning has changed.",
)
@click.option("--online", is_flag=True, help="Also connect to each database once.")
@options.trust(default="off")
@options.references
def command(
    paths: tuple[Path, ...],
    option: Path | None,
    output: str,
    static: bool,
    older: bool,
    online: bool,
    trust: Trust,
    references: options.References,
) -> Answer:
    """Check the files of a registry.

    FILE is a file of a registry; the _defaults.yaml beside it counts, too. Without --online it
    connects to nothing. Exit code 1: there are problems.
    """
    if static and online:
        raise click.BadParameter("it cannot be combined with --static", param_hint="--online")
    if static and trust != "off":
        raise click.BadParameter("it cannot be combined with --static", param_hint="--trust")
    # One that counts for every command may be there: it is not looked at.
    own = click.get_current_context().get_parameter_source("env")
    if static and own is ParameterSource.COMMANDLINE:
        raise click.BadParameter("it cannot be combined with --static", param_hint="--env-file")
    if static:
        references["env"] = None
    from pgmonkey.config.directory import DirectoryLoader
    from pgmonkey.config.warnings import find_warnings
    from pgmonkey.errors import count, sorted_problems, summary

    environ: Mapping[str, str] = {} if static else os.environ
    if older:
        if option is not None or trust != "off" or not paths:
            raise click.UsageError("--from-4.0 takes files, without --dir and --trust")
        directory, databases = None, len(paths)
        configs, problems, changes = _older(paths, environ, references)
    else:
        directory, names = _selected(paths, option)
        scan = DirectoryLoader(
            directory,
            names=names,
            environ=environ,
            trust=trust,
            on_untrusted=(lambda _, reason: tell(reason)) if trust == "warn" else None,
            **references,
        ).scan()
        databases, configs, changes = len(scan.present), [*scan.configs.values()], []
        problems = scan.all_problems()
    if static:
        problems = of_files_alone(problems)
    if online:
        problems = sorted_problems((*problems, *_unreachable(configs)))
    warnings = sorted_problems([*find_warnings(configs), *changes])
    lines = [str(problem) for problem in (*problems, *warnings)]
    if output == "json":
        report = {
            "directory": directory and str(directory),
            "databases": databases,
            "problems": [problem.as_dict() for problem in problems],
            "warnings": [warning.as_dict() for warning in warnings],
        }
        lines = [as_json(report)]
    elif output == "github":
        lines = [_annotation("error", problem) for problem in problems]
        lines += [_annotation("warning", warning) for warning in warnings]
    elif not problems and databases and sys.stdout.isatty():
        lines.append(f"{count(databases, 'database')}, no problems")
    note = "" if problems or databases else f"{directory} declares no database"
    if problems and output == "text":
        note = summary(problems)
    return Answer("\n".join(lines), ExitCode.PROBLEM if problems else ExitCode.OK, note)


def _older(
    paths: Iterable[Path], environ: Mapping[str, str], references: options.References
) -> tuple[list[DatabaseConfig], tuple[Problem, ...], list[Problem]]:
    """Load files as the API of 4.0 does; return configs, problems, and what has another meaning."""
    import warnings

    from pgmonkey.config.interpolation import LoadOptions
    from pgmonkey.config.loader import load_path
    from pgmonkey.config.upgrade import find_changes
    from pgmonkey.errors import sorted_problems

    configs: list[DatabaseConfig] = []
    problems: list[Problem] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the wrapper is one of the changes
        for path in paths:
            loaded = load_path(str(path), LoadOptions(isolate=False, environ=environ, **references))
            problems += loaded.problems
            if loaded.config is not None:
                configs.append(loaded.config)
    return (
        configs,
        sorted_problems(problems),
        [change for config in configs for change in find_changes(config)],
    )


def _selected(paths: Sequence[Path], option: Path | None) -> tuple[Path, set[str] | None]:
    """Return the directory, and the databases of the files that were named."""
    files = [path for path in paths if path.suffix in _SUFFIXES and not path.is_dir()]
    if not files and len(paths) <= 1:
        return options.chosen(paths[0] if paths else None, option), None
    directories = {path.parent for path in files}
    if len(files) < len(paths) or len(directories) > 1 or option is not None:
        raise click.UsageError("give one directory, or files of one directory")
    names = {path.stem for path in files}
    # The defaults are checked where they are merged: under every database.
    return directories.pop(), None if "_defaults" in names else names


def _unreachable(configs: Collection[DatabaseConfig]) -> list[Problem]:
    """Connect to each database once; return the failures."""
    return [problem for problem in side_by_side(_probe, configs) if problem is not None]


def _probe(config: DatabaseConfig) -> Problem | None:
    from pgmonkey.errors import Problem

    found = connected(config)
    if isinstance(found, Problem):
        return found
    found.close()
    return None


def _annotation(level: str, problem: Problem) -> str:
    place = {"file": problem.path, "line": problem.line, "col": problem.column}
    properties = ",".join(
        f"{name}={_escaped(str(value), more=':,')}"
        for name, value in {**place, "title": problem.code}.items()
        if value is not None
    )
    message = f"{problem.key}: {problem.message}" if problem.key else problem.message
    if problem.hint:
        message += f"\nhint: {problem.hint}"
    return f"::{level} {properties}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """Return text as GitHub's workflow commands want it."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
