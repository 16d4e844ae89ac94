"""New files: from a template, and never in the place of one that is there."""

from __future__ import annotations

import os
from pathlib import Path


def template(name: str) -> str:
    """Return the text of a template."""
    from importlib.resources import files

    return files("pgmonkey.cli").joinpath("templates", name).read_text("utf-8")


def write_new(path: Path, text: str, mode: int) -> bool:
    """Write a file; return false, and leave it as it is, if there is one.

    A link that leads nowhere is something that is there, too.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)  # a full disk leaves no half of a file
        raise
    return True
