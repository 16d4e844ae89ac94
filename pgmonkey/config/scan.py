"""A scan: what the files of a directory say at one moment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pgmonkey.errors import RegistryConfigError
from pgmonkey.problem import Problem, sorted_problems

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig


class Scan(NamedTuple):
    """Hold what the files of a directory say at one moment.

    Args:
        configs: The good databases, by name.
        problems: What is wrong with the others, by name.
        general: What is wrong beyond one database: the directory, a file's name, the defaults.
        present: The names that have a file, good or bad.
        missing: The names that were asked for and have no file.
        directory_ok: Whether the directory could be read. If not, nothing was deleted.
        watched_directories: Where a change can change the answer.
        directory: The directory.
    """

    configs: Mapping[str, DatabaseConfig]
    problems: Mapping[str, tuple[Problem, ...]]
    general: tuple[Problem, ...]
    present: frozenset[str]
    missing: frozenset[str]
    directory_ok: bool
    watched_directories: frozenset[str]
    directory: str

    def all_problems(self) -> tuple[Problem, ...]:
        """Return every problem once, in reading order.

        What is wrong with the defaults or the environment belongs to many databases and is said
        once.
        """
        return sorted_problems(dict.fromkeys(self._problems()))

    def raise_for_problems(self) -> None:
        """Raise if anything is wrong.

        Raises:
            RegistryConfigError: With every problem of every file.
        """
        problems = self.all_problems()
        if problems:
            raise RegistryConfigError(problems)

    def _problems(self) -> Iterator[Problem]:
        yield from self.general
        for name in self.missing:
            from difflib import get_close_matches  # only when something is wrong

            near = get_close_matches(name, self.present, 1, 0.6)
            yield Problem(
                os.path.join(self.directory, f"{name}.yaml"),
                "registry.no_such_database",
                f'no file declares the database "{name}"',
                hint=f'did you mean "{near[0]}"?' if near else None,
                database=name,
            )
        for name, problems in self.problems.items():
            for problem in problems:
                if problem.code.startswith("environment."):
                    yield replace(problem, path=self.directory, database=None)
                elif os.path.basename(problem.path).startswith("_"):
                    yield replace(problem, database=None)
                else:
                    yield replace(problem, database=name)
