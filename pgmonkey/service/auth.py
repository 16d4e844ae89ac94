"""The token file: what a request for a reload has to know."""

from __future__ import annotations

import os

from pgmonkey.config.secret_files import (
    SecretFileError,
    SnapshotMovedError,
    from_one_snapshot,
    text_of,
)
from pgmonkey.errors import PgmonkeyError


class TokenError(PgmonkeyError):
    """Report that the token file cannot be used."""


class TokenFile:
    """Read the token that reloads are asked for with, anew each time: it may be rotated.

    Args:
        path: The file, read like every secret file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100 - links are followed when it is read

    def read(self) -> str:
        """Return what it says now.

        Raises:
            TokenError: It cannot be read, or is empty.
        """
        try:
            content, _ = from_one_snapshot(lambda snapshot: snapshot.read_bytes(self._path))
            return text_of(content)
        except SecretFileError as error:
            problem = str(error)
        except SnapshotMovedError:
            problem = "is replaced again and again"
        raise TokenError(f"the token file {self._path} {problem}")
