"""Write secrets into a directory exactly as the kubelet does for a mounted Kubernetes secret."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

_KEY = re.compile(r"(?!\.\.)[-._a-zA-Z0-9]+")


class SecretVolume:
    """Simulate the kubelet's AtomicWriter on one directory.

    The visible files are links through `..data` to a directory with a time stamp for a name. An
    update makes a new one, renames a link over `..data`, and removes the old one: every reader
    sees all of the old secret or all of the new one, and nothing happens to the visible names
    themselves, so a watch on `password` alone never sees it change.

        password -> ..data/password
        ..data -> ..2026_01_02_15_04_05.2718281828
        ..2026_01_02_15_04_05.2718281828/password

    Args:
        directory: The mount point; made if it is missing.
        mode: The permissions of the files, `defaultMode` in a pod's manifest.
        links_first: Make the visible links of new keys before the swap, as kubelets before 1.30
            did, instead of after it.

    Example:
        >>> volume = SecretVolume("secrets/web", mode=0o600)
        >>> volume.write({"username": "web", "password": "tea"})
        True
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        mode: int = 0o644,
        links_first: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self._mode = mode
        self._links_first = links_first
        self.directory.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"<SecretVolume {str(self.directory)!r}>"

    def path(self, key: str) -> Path:
        """Return the visible path of a key: what `from_file` names."""
        return self.directory / key

    def write(self, payload: Mapping[str, str | bytes]) -> bool:
        """Make the volume hold exactly this; keys that are not in it are removed.

        Args:
            payload: The content of each key; text is written as UTF-8, nothing is added.

        Returns:
            Whether anything was written; the same payload again is not.

        Raises:
            ValueError: A key is no valid name in a Kubernetes secret.
        """
        return bool(list(self.steps(payload)))

    def steps(self, payload: Mapping[str, str | bytes]) -> Iterator[str]:
        """Write as `write` does, but stop after each step and say which it was.

        A test looks at the directory between two steps, without racing against them.

        Yields:
            `directory`, `files`, `links`, `temporary`, `swap`, `unlink`, `remove`, in the order in
            which they were done; none if the volume holds the payload already.
        """
        content = {key: _bytes(value) for key, value in payload.items()}
        for key in content:
            if not _KEY.fullmatch(key):
                raise ValueError(f"{key!r} is no key of a Kubernetes secret")
        data = self.directory / "..data"
        old = data.readlink().name if data.is_symlink() else None
        if old is not None and content == self._read(old):
            return

        new = self._make_directory()
        yield "directory"
        for key, value in content.items():
            path = new / key
            path.write_bytes(value)
            path.chmod(self._mode)
        yield "files"
        if self._links_first:
            self._link(content)
            yield "links"
        temporary = self.directory / "..data_tmp"
        temporary.symlink_to(new.name)
        yield "temporary"
        temporary.rename(data)
        yield "swap"
        if not self._links_first:
            self._link(content)
            yield "links"
        if old is not None:
            for key in self._read(old).keys() - content.keys():
                self.path(key).unlink(missing_ok=True)
            yield "unlink"
            shutil.rmtree(self.directory / old)
            yield "remove"

    def _make_directory(self) -> Path:
        while True:
            stamp = datetime.now(UTC).strftime("..%Y_%m_%d_%H_%M_%S.")
            path = self.directory / f"{stamp}{secrets.randbelow(2**32)}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            path.chmod(0o755)
            return path

    def _link(self, keys: Mapping[str, bytes]) -> None:
        for key in keys:
            if not self.path(key).is_symlink():
                self.path(key).symlink_to(Path("..data", key))

    def _read(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.directory / name).iterdir()}


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
