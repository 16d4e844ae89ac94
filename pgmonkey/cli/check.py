"""A check: everything that is wrong with the files of a registry and, if asked, with its servers."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.problems import failed_probe
from pgmonkey.config.trust import Trust
from pgmonkey.config.warnings import doubts
from pgmonkey.errors import ConnectError, Problem, sorted_problems, summary

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig

#: Problems of what a reference or a path leads to. Where files are written there is none of it.
_ELSEWHERE: Final = ("reference.unset", "secret.", "file.")
_WORKERS: Final = 8


@dataclass(frozen=True, slots=True)
class Report:
    """Hold what a check found.

    Args:
        directory: The directory, as it was given.
        databases: How many databases its files declare, good or bad.
        problems: What is wrong, in reading order.
        doubts: What is accepted, and is probably not what was meant.
    """

    directory: str
    databases: int
    problems: tuple[Problem, ...]
    doubts: tuple[Problem, ...] = ()

    def as_text(self) -> str:
        """Return one problem after the other, as people read them; empty if there is none."""
        return "\n".join(map(str, (*self.problems, *self.doubts)))

    def as_json(self) -> str:
        """Return the report as a JSON document."""
        shape: Mapping[str, Any] = {
            "directory": self.directory,
            "databases": self.databases,
            "problems": [problem.as_dict() for problem in self.problems],
            "doubts": [doubt.as_dict() for doubt in self.doubts],
        }
        return json.dumps(shape, indent=2)

    def as_github(self) -> str:
        """Return the problems as annotations of a GitHub workflow; empty if there is none."""
        errors = (_annotation("error", problem) for problem in self.problems)
        return "\n".join((*errors, *(_annotation("warning", doubt) for doubt in self.doubts)))

    def summary(self) -> str:
        """Return how much was found where, in one line."""
        return summary(self.problems)


def check(
    directory: str | os.PathLike[str],
    *,
    static: bool = False,
    online: bool = False,
    trust: Trust = "off",
    on_untrusted: Callable[[str, str], None] | None = None,
    allow_sensitive_defaults: bool = False,
) -> Report:
    """Look for everything that is wrong with the files of a directory.

    Costs a fraction of a millisecond for each file, and connects to nothing unless it is asked to.

    Args:
        directory: The directory.
        static: Judge the files alone: variables, secret files and TLS files need not be there,
            and the environment is not looked at.
        online: Connect to each good database once.
        trust: `strict`: a file that other accounts can change is a problem, as it is for the
            service.
        on_untrusted: Called with such a file and the reason, unless `trust` is `off`.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and the like.

    Example:
        >>> check("registry.d").problems
        ()
    """
    scan = DirectoryLoader(
        directory,
        allow_sensitive_defaults=allow_sensitive_defaults,
        environ={} if static else None,
        trust=trust,
        on_untrusted=on_untrusted,
    ).scan()
    problems: Iterable[Problem] = scan.all_problems()
    if static:
        problems = [problem for problem in problems if not problem.code.startswith(_ELSEWHERE)]
    if online:
        problems = sorted_problems((*problems, *_unreachable(scan.configs.values())))
    doubtful = sorted_problems(doubts(scan.configs.values()))
    return Report(os.fspath(directory), len(scan.present), tuple(problems), doubtful)


def _unreachable(configs: Iterable[DatabaseConfig]) -> list[Problem]:
    """Connect to each database once, a few at a time; return what failed.

    The threads are daemons: Ctrl-C must not wait for a server that says nothing, as the end of an
    executor would.
    """
    waiting = deque((config, Future[Problem | None]()) for config in configs)
    outcomes = [outcome for _, outcome in waiting]

    def work() -> None:
        while True:
            try:
                config, outcome = waiting.popleft()
            except IndexError:
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
        f"{name}={_escaped(str(value), property_=True)}"
        for name, value in {**place, "title": problem.code}.items()
        if value is not None
    )
    said = f"{problem.key}: {problem.message}" if problem.key else problem.message
    if problem.hint:
        said += f"\nhint: {problem.hint}"
    return f"::{level} {properties}::{_escaped(said)}"


def _escaped(text: str, *, property_: bool = False) -> str:
    """Return text as GitHub's workflow commands want it."""
    for character in "%\r\n" + (":," if property_ else ""):
        text = text.replace(character, f"%{ord(character):02X}")
    return text
