"""The files and variables that a config was made from, and whether they changed."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from pgmonkey.config.secret_files import (
    SecretFileError,
    Signature,
    Snapshot,
    SnapshotMovedError,
    is_unlinked,
    signature_of,
)

# The key is random, so a digest cannot be tried against a list of passwords.
_KEY: Final = secrets.token_bytes(32)


def keyed_digest(content: bytes, *, after: bytes = b"") -> bytes:
    """Return 16 bytes that are equal for equal contents (after equal digests), in this process."""
    return hashlib.blake2b(after + b"|" + content, key=_KEY, digest_size=16).digest()


def files_digest(contents: Mapping[str, bytes]) -> bytes:
    """Return a keyed digest of several contents with their names; empty for none."""
    if not contents:
        return b""
    return keyed_digest(
        b"".join(
            f"{name}\0{len(content)}\0".encode() + content
            for name, content in sorted(contents.items())
        )
    )


# A file that was written this shortly before it was read may change again without a new time of
# modification: the clock of a file system ticks every few milliseconds, that of some only every
# second or two. Until it is older, its content is compared.
_TICK: Final = 50_000_000  # nanoseconds
_COARSE_TICK: Final = 2_000_000_000

Statuses = dict[str, "Signature | None"]


class SourceFile:
    """Remember the status and a keyed digest of one file when it was read.

    The file was read at `read_at` (unix nanoseconds), and its status was taken after that. To
    compare its content, `limit` bytes of it are read.
    """

    __slots__ = ("_in_volume", "_limit", "_settled", "_signature", "digest", "path")

    def __init__(
        self,
        path: str,
        content: bytes,
        status: os.stat_result,
        read_at: int,
        limit: int,
        *,
        in_volume: bool = False,
    ) -> None:
        self.path = path
        self._in_volume = in_volume
        self._limit = limit
        self.digest = keyed_digest(content)
        self._signature = signature_of(status)
        self._settled = _settled(max(status.st_mtime_ns, status.st_ctime_ns), read_at)

    @property
    def unlinked(self) -> bool:
        """Whether it was deleted or replaced where it is mounted from."""
        return self._signature[-1] and is_unlinked(self.path)

    def is_confirmed_by(self, newer: SourceFile) -> bool:
        """Tell whether a newer look found the same content; if so, keep the newer status."""
        if not newer.has_content_of(self):
            return False
        self._signature = newer._signature
        self._settled = newer._settled
        return True

    def has_content_of(self, other: SourceFile) -> bool:
        """Tell whether both looks found the same content."""
        return self.digest == other.digest

    def is_file_of(self, other: SourceFile) -> bool:
        """Tell whether both looks found the same file, whatever was in it."""
        return self._signature[3:5] == other._signature[3:5]  # inode and device

    def is_whole(self) -> bool:
        """Tell whether the file looks as if it is not being written.

        It is in a Kubernetes volume, or changed after its last write: its name, mode or time.
        """
        _, modified, changed, *_ = self._signature
        return self._in_volume or changed > modified

    def looks_like(self, signature: Signature | None) -> bool:
        """Tell whether a signature proves that the content is the same."""
        return self._settled and signature == self._signature

    def unchanged(self, statuses: Statuses) -> bool:
        """Tell whether the content is the same; reads the file only if its status differs.

        Each file is looked at once in a round: `statuses` keeps the signatures of the round.
        """
        if self.path not in statuses:
            statuses[self.path] = _look(self.path)
        if self.looks_like(statuses[self.path]):
            return True
        try:
            with Snapshot() as snapshot:
                _, _, newer = read_source(snapshot, self.path, self._limit)
        except (SecretFileError, SnapshotMovedError):
            return False
        return self.is_confirmed_by(newer)


def read_source(
    snapshot: Snapshot, path: str, limit: int
) -> tuple[bytes, os.stat_result, SourceFile]:
    """Read a file as `Snapshot.read_bytes` does, and remember it as a source."""
    read_at = time.time_ns()
    content, status = snapshot.read_bytes(path, limit)
    in_volume = snapshot.is_volume(path)
    return content, status, SourceFile(path, content, status, read_at, limit, in_volume=in_volume)


class Sources:
    """Remember the database file, the secret files, the TLS files and the variables of one config.

    `None` is in place of a file that could not be read. Of the variables, a digest is kept;
    `lookup` has what they are now.
    `modified` is the newest modification of the secret files, in unix seconds.
    """

    __slots__ = (
        *("_file", "_names", "_values", "directories", "files", "lookup", "modified"),
        "secrets_from",
    )

    def __init__(
        self,
        file: SourceFile | None,
        files: Mapping[str, SourceFile | None],
        variables: Mapping[str, str | None],
        lookup: Mapping[str, str],
        modified: float | None = None,
        secrets_from: str | None = None,
    ) -> None:
        self._file = file
        #: The secret files and TLS files, by path.
        self.files = files
        self.lookup = lookup
        self._names = tuple(variables)
        self._values = _digest(variables.values()) if variables else b""
        self.modified = modified
        #: Where the secret files were read, instead of where the file says.
        self.secrets_from = secrets_from
        self.directories = _shared(frozenset(map(directory_of, files)))

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables that the files refer to."""
        return self._names

    @property
    def paths(self) -> tuple[str, ...]:
        """The secret files and TLS files that could be read."""
        return tuple(path for path, file in self.files.items() if file is not None)

    @property
    def unlinked(self) -> tuple[str, ...]:
        """The files that were deleted or replaced where they are mounted from."""
        files = (self._file, *self.files.values())
        return tuple(file.path for file in files if file is not None and file.unlinked)

    def is_current(self) -> bool:
        """Tell whether loading again would give the same config.

        Costs one `stat` of each file. A file that is gone counts as unchanged.
        """
        statuses: Statuses = {}
        if self._file is not None and not _same_or_gone(self._file, statuses):
            return False
        return self._variables_current() and all(
            file is not None and _same_or_gone(file, statuses) for file in self.files.values()
        )

    def values_current(self, statuses: Statuses) -> bool:
        """Tell whether the variables, secret files and TLS files are as they were."""
        return self._variables_current() and all(
            file is not None and file.unchanged(statuses) for file in self.files.values()
        )

    def _variables_current(self) -> bool:
        names = self._names
        return not names or _digest(map(self.lookup.get, names)) == self._values


def _same_or_gone(file: SourceFile, statuses: Statuses) -> bool:
    return file.unchanged(statuses) or not os.path.lexists(file.path)


def directory_of(path: str) -> str:
    """Return the directory of a file, in its shortest spelling."""
    directory = os.path.dirname(path)
    shortest = os.path.normpath(directory)
    if "/.." in directory:
        try:
            # Behind a link, `..` is the parent of the link's target.
            if not os.path.samefile(directory, shortest):
                return directory
        except OSError:
            return directory
    return shortest


@lru_cache(maxsize=10_000)
def _shared(directories: frozenset[str]) -> frozenset[str]:
    """Return one object for equal sets: many databases have the same."""
    return directories


def _look(path: str) -> Signature | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    # A file that became a directory or a pipe must be read again, for the error.
    return signature_of(status) if stat.S_ISREG(status.st_mode) else None


def _settled(modified: int, now: int) -> bool:
    """Tell whether a later change of a file will show in its time of modification."""
    tick = _COARSE_TICK if modified % 1_000_000_000 == 0 else _TICK
    return modified + tick < now


def _digest(values: Iterable[str | None]) -> bytes:
    # The repr of a list: two different lists never look the same, and it can always be encoded.
    return keyed_digest(repr([*values]).encode())
