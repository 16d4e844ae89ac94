"""Read secret files safely, and all files of one directory from one snapshot of it."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

from pgmonkey.config.redaction import may_be_secret
from pgmonkey.errors import did_you_mean

LIMIT: Final = 64 * 1024  # bytes

# O_NONBLOCK: opening a FIFO must not wait for a writer. O_NOCTTY: nor adopt a terminal.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
# O_PATH, where there is one: a directory that may be searched but not listed can be opened.
_DIRECTORY_FLAGS: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC | os.O_DIRECTORY
_DATA: Final = "..data"  # the link that a Kubernetes volume replaces in one step
_TRIES: Final = 8

T = TypeVar("T")

Signature = tuple[int, int, int, int, int, bool]

#: What has happened to a file or directory that `is_unlinked`, and what to do about it.
UNLINKED: Final = (
    "was replaced or deleted where it is mounted from, and this mount keeps the old one"
)
MOUNT_THE_DIRECTORY: Final = "start the container again, and mount the directory instead of the file (Kubernetes: no subPath)"
KEEP_THE_DIRECTORY: Final = (
    "start the container again, and replace the files in the directory, not the directory itself"
)


class SecretFileError(Exception):
    """Report a file that cannot be used as a secret. The message holds no path and no content."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class SnapshotMovedError(Exception):
    """Report that a directory was replaced while it was read: discard what was read so far."""


def signature_of(status: os.stat_result) -> Signature:
    """Return what changes when a file is replaced, rewritten or deleted, or its mode changes."""
    # Programs that copy files may set the time of modification, but not that of the inode.
    return (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
        status.st_nlink == 0,
    )


def is_unlinked(path: str) -> bool:
    """Tell whether a path leads to a file or directory that was deleted: only a mount shows it.

    A mount of a single file, or of a directory, keeps what it was made from. If that is deleted or
    replaced, the mount shows the old one for ever.
    """
    path = os.path.realpath(path)  # there is nothing at the target of a link in /proc/self/fd
    try:
        # Some file systems count no links at all.
        return os.stat(path).st_nlink == 0 and os.stat(os.path.dirname(path)).st_nlink > 0
    except OSError:
        return False


class Snapshot:
    """Read all files of one directory from one state of it. A context manager.

    Kubernetes changes all files of a volume by replacing the link `..data`. The directory behind
    that link is opened once, and every file of the volume is read through it, so an old user is
    never paired with a new password. If that directory is removed between two reads,
    `SnapshotMovedError` asks the caller to begin again with a new snapshot.
    """

    __slots__ = ("_directories",)

    def __init__(self) -> None:
        self._directories: dict[str, tuple[int, bool]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        directories, self._directories = self._directories, {}
        for descriptor, _ in directories.values():
            os.close(descriptor)

    def read_bytes(self, path: str, limit: int = LIMIT) -> tuple[bytes, os.stat_result]:
        """Read a regular file of at most `limit` bytes through the snapshot of its directory.

        Raises:
            SecretFileError: It is missing, unreadable, no regular file, or too large.
            SnapshotMovedError: The directory was replaced meanwhile.
        """
        try:
            descriptor = self._open(path)
            try:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode):
                    return _read(descriptor, status.st_size, limit), status
            finally:
                os.close(descriptor)
        except OSError as error:
            number = error.errno or 0
        else:
            number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ENXIO
        raise _described(number)  # outside of the handler: our words need no cause

    def is_volume(self, path: str) -> bool:
        """Tell whether a file that was read is in a Kubernetes volume."""
        _, is_data = self._directories.get(os.path.dirname(path) or ".", (0, False))
        return is_data

    def _open(self, path: str) -> int:
        directory, name = os.path.split(path)
        if name in ("", ".", ".."):
            return os.open(path, _FLAGS)
        parent, is_data = self._directory(directory or ".")
        try:
            return os.open(name, _FLAGS, dir_fd=parent)
        except FileNotFoundError:
            if not is_data:
                if is_unlinked(directory or "."):
                    message = f"does not exist: its directory {UNLINKED}"
                    raise SecretFileError("secret.missing", message, KEEP_THE_DIRECTORY) from None
                raise
        if self._moved(directory or ".", parent):
            raise SnapshotMovedError
        # A file beside those of the volume.
        return os.open(path, _FLAGS)

    def _directory(self, directory: str) -> tuple[int, bool]:
        """Return the descriptor of a directory, and whether it is the one behind `..data`."""
        known = self._directories.get(directory)
        if known is None:
            try:
                known = os.open(os.path.join(directory, _DATA), _DIRECTORY_FLAGS), True
            except (FileNotFoundError, NotADirectoryError):
                known = os.open(directory, _DIRECTORY_FLAGS), False
            self._directories[directory] = known
        return known

    @staticmethod
    def _moved(directory: str, descriptor: int) -> bool:
        ours = os.fstat(descriptor)
        try:
            now = os.stat(os.path.join(directory, _DATA))
        except FileNotFoundError:
            return True
        return (ours.st_dev, ours.st_ino) != (now.st_dev, now.st_ino)


def from_one_snapshot(look: Callable[[Snapshot], T]) -> T:
    """Call a function with a snapshot, again with a new one if a directory moved meanwhile.

    Raises `SnapshotMovedError` if a directory moved each of 8 times.
    """
    for _ in range(_TRIES):
        with suppress(SnapshotMovedError), Snapshot() as snapshot:
            return look(snapshot)
    raise SnapshotMovedError


def _read(descriptor: int, size: int, limit: int) -> bytes:
    content = b""
    while len(content) <= limit:
        # As much as there should be: a buffer of the limit's size would cost more than the read.
        wanted = max(size + 1 - len(content), 4096)
        piece = os.read(descriptor, min(wanted, limit + 1 - len(content)))
        if not piece:
            return content
        content += piece
    raise SecretFileError("secret.too_large", f"is larger than {limit // 1024} KiB")


def secret_text(content: bytes) -> str:
    """Return the text of a secret file, without one trailing newline, or raise `SecretFileError`."""
    if content.endswith(b"\n"):
        content = content[:-1].removesuffix(b"\r")
    if not content:
        raise SecretFileError("secret.empty", "is empty")
    if b"\0" in content:
        raise SecretFileError("secret.nul", "contains a NUL character")
    if content.startswith(b"\xef\xbb\xbf"):
        raise SecretFileError(
            "secret.bom", "starts with a byte order mark", "save it as UTF-8 without one"
        )
    try:
        return content.decode()
    except UnicodeDecodeError:
        pass  # the exception holds the bytes: it must not become a cause
    raise SecretFileError("secret.encoding", "is not UTF-8 text")


def json_member(content: bytes, key: str) -> str:
    """Return a member of the JSON document in a secret file as text, or raise `SecretFileError`.

    A number is its digits as they are written. With dots, the key leads into members of members,
    unless a member has this very name.
    """
    value = _document(secret_text(content))
    if not isinstance(value, dict):
        raise SecretFileError("secret.json", "is JSON, but not an object")
    for step in [key] if key in value else key.split("."):
        members = value if isinstance(value, dict) else {}
        if step not in members:
            names = [name for name in members if not may_be_secret(name)]
            hint = did_you_mean(key, names) or did_you_mean(step, names)
            raise SecretFileError("secret.json_key", "has no such member", hint)
        value = members[step]
    if not isinstance(value, str):
        message = "its member is neither text nor a number"
        raise SecretFileError("secret.json_key", message)
    if not value:
        raise SecretFileError("secret.json_key", "its member is empty")
    return value


def _document(text: str) -> Any:
    try:
        # Numbers stay as they are written: they become text again.
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        pass  # the exception holds the text: it must not become a cause
    raise SecretFileError("secret.json", "is no JSON document")


def _described(number: int) -> SecretFileError:
    """Return an error of the system in our own words."""
    code, message, hint = _WORDS.get(
        number, ("secret.unreadable", f"cannot be read ({os.strerror(number)})", None)
    )
    if code == "secret.permission":
        hint = f"the process runs as uid {os.geteuid()}"
    return SecretFileError(code, message, hint)


_WORDS: Final[dict[int, tuple[str, str, str | None]]] = {
    errno.ENOENT: ("secret.missing", "does not exist", None),
    errno.ENOTDIR: ("secret.missing", "does not exist", "a part of its path is no directory"),
    errno.EACCES: ("secret.permission", "may not be read (permission denied)", None),
    errno.EPERM: ("secret.permission", "may not be read (permission denied)", None),
    errno.EISDIR: ("secret.not_regular", "is a directory", None),
    errno.ENXIO: ("secret.not_regular", "is not a regular file", None),
    errno.ELOOP: ("secret.missing", "is a link that leads nowhere", None),
    errno.ENAMETOOLONG: ("secret.missing", "has a name that is too long", None),
}
