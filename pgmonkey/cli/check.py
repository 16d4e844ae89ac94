"""`pgmonkey check`: the problems of the files of a registry and, on request, of its servers."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, as_json, tell

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.config.trust import Trust
    from pgmonkey.errors import Problem

#: Codes of problems that depend on this machine. --static leaves them out.
_OF_THIS_MACHINE: Final = ("reference.unset", "secret.", "file.")
_WORKERS: Final = 8
_SUFFIXES: Final = (".yaml", ".yml")


@click.command("check")
@click.argument("paths", metavar="[DIR | FILE...]", nargs=-1, type=options.PATH)
@options.directory_option
@options.choice(
    *("-o", "--output"),
    words=("text", "json", "github"),
    default="text",
    text="The format of the problems; github: annotations of a workflow.",
)
@click.option(
    "--static",
    is_flag=True,
    help="Check the files alone: variables, secret files and TLS files may be missing.",
)
@click.option("--online", is_flag=True, help="Also connect to each database once.")
@options.trust("off")
@options.allow_sensitive_defaults
def command(
    paths: tuple[Path, ...],
    option: Path | None,
    output: str,
    static: bool,
    online: bool,
    trust: Trust,
    allow_sensitive_defaults: bool,
) -> Answer:
    """Check the files of a registry.

    FILE is one of a registry's files; its directory's _defaults.yaml counts as well. Without
    --online it connects to nothing. Exit code 1: there are problems.
    """
    if static and online:
        raise click.BadParameter("it cannot be combined with --static", param_hint="--online")
    if static and trust != "off":
        raise click.BadParameter("it cannot be combined with --static", param_hint="--trust")
    directory, names = _selected(paths, option)
    report = check(
        directory,
        names=names,
        static=static,
        online=online,
        trust=trust,
        on_untrusted=(lambda _, reason: tell(reason)) if trust == "warn" else None,
        allow_sensitive_defaults=allow_sensitive_defaults,
    )
    return report.answer(output)


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


@dataclass(frozen=True, slots=True)
class Report:
    """Hold what a check found.

    Args:
        directory: The directory, as it was given.
        databases: How many databases its files declare, good or bad.
        problems: What is wrong, in reading order.
        warnings: What is accepted, and is probably not meant.
    """

    directory: str
    databases: int
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()

    def answer(self, output: str) -> Answer:
        """Return the answer of the command.

        Args:
            output: `text`, `json` or `github`.
        """
        text: str = getattr(self, f"as_{output}")()
        if self.problems:
            from pgmonkey.errors import summary

            note = summary(self.problems) if output == "text" else ""
            return Answer(text, ExitCode.PROBLEM, note)
        if not self.databases:
            return Answer(text, note=f"{self.directory} declares no database")
        if output == "text" and sys.stdout.isatty():
            return Answer("\n".join(filter(None, (text, self._all_is_well()))))
        return Answer(text)

    def as_text(self) -> str:
        """Return one problem after the other, for people; empty if there is none."""
        return "\n".join(map(str, (*self.problems, *self.warnings)))

    def as_json(self) -> str:
        """Return the report as a JSON document."""
        return as_json(
            {
                "directory": self.directory,
                "databases": self.databases,
                "problems": [problem.as_dict() for problem in self.problems],
                "warnings": [one.as_dict() for one in self.warnings],
            }
        )

    def as_github(self) -> str:
        """Return the problems as annotations of a GitHub workflow; empty if there is none."""
        errors = (_annotation("error", problem) for problem in self.problems)
        return "\n".join((*errors, *(_annotation("warning", one) for one in self.warnings)))

    def _all_is_well(self) -> str:
        from pgmonkey.errors import count

        return f"{count(self.databases, 'database')}, no problems"


def check(
    directory: str | os.PathLike[str],
    *,
    names: Collection[str] | None = None,
    static: bool = False,
    online: bool = False,
    trust: Trust = "off",
    on_untrusted: Callable[[str, str], None] | None = None,
    allow_sensitive_defaults: bool = False,
) -> Report:
    """Find everything that is wrong with the files of a directory.

    Costs a fraction of a millisecond for each file, and connects to nothing unless asked to.

    Args:
        directory: The directory.
        names: The databases to check; by default all.
        static: Judge the files alone: variables, secret files and TLS files may be missing,
            and the environment is not read.
        online: Connect to each good database once.
        trust: `strict`: a file that other accounts can change is a problem, as it is for the
            service.
        on_untrusted: Called with such a file and the reason, unless `trust` is `off`.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and other secrets.

    Example:
        >>> check("registry.d").problems
        ()
    """
    from pgmonkey.config.directory import DirectoryLoader
    from pgmonkey.config.warnings import find_warnings
    from pgmonkey.errors import sorted_problems

    scan = DirectoryLoader(
        directory,
        names=names,
        allow_sensitive_defaults=allow_sensitive_defaults,
        environ={} if static else None,
        trust=trust,
        on_untrusted=on_untrusted,
    ).scan()
    problems: Iterable[Problem] = scan.all_problems()
    if static:
        problems = [one for one in problems if not one.code.startswith(_OF_THIS_MACHINE)]
    if online:
        problems = sorted_problems((*problems, *_unreachable(scan.configs.values())))
    warnings = sorted_problems(find_warnings(scan.configs.values()))
    return Report(os.fspath(directory), len(scan.present), tuple(problems), warnings)


def _unreachable(configs: Collection[DatabaseConfig]) -> list[Problem]:
    """Connect to each database once, a few at a time; return the failures.

    The threads are daemons: Ctrl-C must not wait for a server that does not answer, as the end of
    an executor would.
    """
    waiting: SimpleQueue[tuple[DatabaseConfig, Future[Problem | None]]] = SimpleQueue()
    outcomes = []
    for config in configs:
        outcome: Future[Problem | None] = Future()
        outcomes.append(outcome)
        waiting.put((config, outcome))

    def work() -> None:
        while True:
            try:
                config, outcome = waiting.get_nowait()
            except Empty:
                return
            try:
                outcome.set_result(_probe(config))
            except BaseException as error:  # noqa: BLE001 - raised where the outcome is asked for
                outcome.set_exception(error)

    threads = [
        threading.Thread(target=work, name=f"pgmonkey-check-{number}", daemon=True)
        for number in range(min(_WORKERS, len(outcomes)))
    ]
    for thread in threads:
        thread.start()
    problems = [outcome.result() for outcome in outcomes]
    for thread in threads:
        thread.join()
    return [problem for problem in problems if problem is not None]


def _probe(config: DatabaseConfig) -> Problem | None:
    # Late: checking files alone must not wait for the import of the pool.
    from pgmonkey.config.problems import failed_probe
    from pgmonkey.errors import ConnectError
    from pgmonkey.pool.dialer import Dialer
    from pgmonkey.pool.limits import Gate
    from pgmonkey.pool.usage import Usage

    dialer = Dialer(config, config.connection_type, Gate(1, Usage()))
    try:
        dialer.dial(None, probe=True).close()
    except ConnectError as error:
        return failed_probe(config.path, config.name, error)
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
