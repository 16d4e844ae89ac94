"""A config file: from its bytes to a YAML document, or to what is wrong with it."""

from __future__ import annotations

from typing import NamedTuple

from pgmonkey.config.secret_files import SecretFileError, Snapshot, SnapshotMovedError
from pgmonkey.config.yaml_errors import Place, YamlProblem
from pgmonkey.config.yaml_reader import LIMIT, YamlDocument, read_yaml
from pgmonkey.problem import Problem


class Defaults(NamedTuple):
    """Hold the document that is merged under every database, and the file it came from."""

    path: str
    document: YamlDocument


def parse(content: bytes, path: str) -> tuple[YamlDocument | None, tuple[Problem, ...]]:
    """Parse the bytes of one file; return the document, or what is wrong with it."""
    try:
        document = read_yaml(content)
    except YamlProblem as error:
        place = error.place
        return None, (
            Problem(
                path,
                error.code,
                str(error),
                line=place.line if place else None,
                column=place.column if place else None,
                key=error.key,
                hint=error.hint,
            ),
        )
    if document.value is None:
        return None, (
            Problem(
                path,
                "config.empty",
                "the file is empty; expected a mapping with connection_settings",
                hint="remove the file if the database is to go",
            ),
        )
    if not isinstance(document.value, dict):
        got = "a list" if isinstance(document.value, list) else "text"
        hint = "one database per file" if isinstance(document.value, list) else None
        place = document.place(()) or Place(1, 1)
        message = f"expected a mapping with connection_settings, got {got}"
        return None, (Problem(path, "config.shape", message, place.line, place.column, hint=hint),)
    return document, ()


def unreadable(path: str, error: SecretFileError, name: str | None = None) -> Problem:
    """Return the problem of a config file that cannot be read.

    Args:
        path: The file.
        error: What reading it came to; it is read as secret files are.
        name: The database that it declares, if any.
    """
    code = error.code.replace("secret.", "config.")
    return Problem(path, code, f"the file {error}", hint=error.hint, database=name)


def read_again(path: str) -> YamlDocument | None:
    """Return a file that was loaded before, for the places in it: a config keeps none.

    Returns:
        `None` if it has gone since, or is being replaced.
    """
    try:
        with Snapshot() as snapshot:
            content, _ = snapshot.read_bytes(path, LIMIT)
    except (SecretFileError, SnapshotMovedError):
        return None
    document, _ = parse(content, path)
    return document
