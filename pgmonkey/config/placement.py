"""A placement: where in the files what was found stands."""

from __future__ import annotations

from collections.abc import Iterable

from pgmonkey.config.config_file import Defaults
from pgmonkey.config.finding import Finding
from pgmonkey.config.layout import KeyPath, dotted
from pgmonkey.config.yaml_errors import Place
from pgmonkey.config.yaml_reader import YamlDocument
from pgmonkey.problem import Problem, sorted_problems


class Placement:
    """Turn what was found in the document of one database into problems with their places.

    Args:
        name: The name of the database.
        path: The name of the file.
        document: What it says; `None` if there is no file.
        defaults: What is merged under it.
        wrapped: Whether it may have the `postgresql:` wrapper of old files.
    """

    __slots__ = ("_defaults", "_document", "_name", "_path", "_wrapped")

    def __init__(
        self,
        name: str,
        path: str,
        document: YamlDocument | None = None,
        defaults: Defaults | None = None,
        *,
        wrapped: bool = False,
    ) -> None:
        self._name = name
        self._path = path
        self._document = document
        self._defaults = defaults
        self._wrapped = wrapped

    def problems(self, findings: Iterable[Finding]) -> tuple[Problem, ...]:
        """Return findings with their places, each once, in reading order."""
        return sorted_problems(map(self.problem, dict.fromkeys(findings)))

    def problem(self, finding: Finding) -> Problem:
        """Return one finding with its place."""
        path, place = self._where(finding.path, of_key=finding.at_key)
        if place is None:
            place = self._nearest(finding.path)
        message = finding.message
        if finding.beside:
            other, beside = self._where(finding.beside)
            if beside is not None:
                file = "" if other == path else f"{other}:"
                message += f" ({finding.beside[-1]} at {file}{beside.line}:{beside.column})"
        return Problem(
            path,
            finding.code,
            message,
            line=place.line if place else None,
            column=place.column if place else None,
            key=dotted(finding.path),
            hint=finding.hint,
            database=self._name,
        )

    def _where(self, path: KeyPath, *, of_key: bool = False) -> tuple[str, Place | None]:
        """Return the file that has a part, and its place there."""
        if self._document is None or not path:
            return self._path, None
        place = self._document.place(path, of_key=of_key)
        if place is None and self._wrapped:  # inside the old wrapper
            place = self._document.place(("postgresql", *path), of_key=of_key)
        if place is None and self._defaults is not None:
            place = self._defaults.document.place(path, of_key=of_key)
            if place is not None:
                return self._defaults.path, place
        return self._path, place

    def _nearest(self, path: KeyPath) -> Place | None:
        """Return the place of the closest part around a path that the file has."""
        if self._document is None:
            return None
        while path := path[:-1]:
            place = self._document.place(path, of_key=True)
            if place is not None:
                return place
        return None
