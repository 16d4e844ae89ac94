"""The files that connection settings name: certificates, keys, password files."""

from __future__ import annotations

import os
import stat
from typing import Any, Final

from pgmonkey.config.libpq import FILES
from pgmonkey.config.problems import KeyProblem
from pgmonkey.config.redaction import Secret
from pgmonkey.config.secret_files import SecretFileError, Snapshot
from pgmonkey.config.sources import SourceFile, read_source

_LIMIT: Final = 1024 * 1024  # bytes: bundles of authorities are large
_CERTIFICATES: Final = ("sslrootcert", "sslcert")
_HINTS: Final = {
    "file.missing": "check the path: a relative one starts at the directory of this file",
    "file.not_regular": "name the file itself",
    "file.no_certificate": "it must hold certificates in PEM form",
}


class NamedFiles:
    """Read the files that the settings of one connection name, and judge them as libpq will.

    Args:
        snapshot: Reads them.
        directory: What relative paths are relative to.
        isolate: Whether paths are made absolute and what is wrong is collected, as for a registry;
            elsewhere libpq looks in the working directory and says so when it connects, as ever.
    """

    __slots__ = ("_directory", "_isolate", "_snapshot", "contents", "files", "problems")

    def __init__(self, snapshot: Snapshot, directory: str, *, isolate: bool) -> None:
        self._snapshot = snapshot
        self._directory = directory
        self._isolate = isolate
        #: What they hold, by the keys that name them.
        self.contents: dict[str, bytes] = {}
        #: How they looked, by path; `None` in place of one that could not be read.
        self.files: dict[str, SourceFile | None] = {}
        self.problems: list[KeyProblem] = []

    def read(self, connection: Any) -> None:
        """Read the files, and make their paths absolute.

        Args:
            connection: The section of a resolved document, changed in place; anything else that
                a file may say instead of it is left to the schema.
        """
        if not isinstance(connection, dict):
            return
        for key in FILES & connection.keys():
            value = connection[key]
            path = value.reveal() if isinstance(value, Secret) else value
            if not isinstance(path, str) or not _names_file(key, path):
                continue
            if "\n" in path or "-----BEGIN" in path:
                # libpq would quote it as the name of a file that it cannot open.
                del connection[key]
                self.problems.append(
                    KeyProblem(
                        ("connection_settings", key),
                        "file.not_a_path",
                        "expected the path of a file, got what may be its contents (not shown)",
                        f"write the contents to a file, and its path as {key}",
                    )
                )
                continue
            if self._isolate:
                path = os.path.join(os.path.abspath(self._directory), path)
                connection[key] = Secret(path) if isinstance(value, Secret) else path
            self.files[path] = None
            try:
                content, status, self.files[path] = read_source(self._snapshot, path, _LIMIT)
            except SecretFileError as error:
                self._find(key, error)
                continue
            self.contents[key] = content
            if shared := _shared(key, status):
                self._find(key, shared)
            if key in _CERTIFICATES and b"CERTIFICATE-----" not in content:
                self._find(key, SecretFileError("secret.no_certificate", "contains no certificate"))

    def _find(self, key: str, error: SecretFileError) -> None:
        if self._isolate:
            code = error.code.replace("secret.", "file.")
            message = f"the file that {key} names {error}"
            hint = error.hint or _HINTS.get(code)
            self.problems.append(KeyProblem(("connection_settings", key), code, message, hint))


def _names_file(key: str, path: str) -> bool:
    if not path:
        return False
    if key == "sslrootcert" and path == "system":
        return False
    return not (key == "sslkey" and ":" in path and not path.startswith("/"))  # engine:key


def _shared(key: str, status: os.stat_result) -> SecretFileError | None:
    """Apply libpq's own rule for private keys and password files; it says less, and later."""
    mode = status.st_mode
    if key == "sslkey":
        # Its owner alone; what belongs to root may also be read by the group.
        forbidden = stat.S_IRWXO | (stat.S_IRWXG if status.st_uid else stat.S_IWGRP | stat.S_IXGRP)
        said = "libpq refuses it"
    elif key == "passfile":
        forbidden = stat.S_IRWXG | stat.S_IRWXO
        said = "libpq ignores it"
    else:
        return None
    if not mode & forbidden:
        return None
    owner = "root" if status.st_uid == 0 else f"uid {status.st_uid}"
    hint = "chmod 600"
    if key == "sslkey":
        hint += "; in Kubernetes: defaultMode: 0440, with an fsGroup"
    return SecretFileError(
        "secret.shared",
        f"is open to others (mode {stat.S_IMODE(mode):04o}, owned by {owner}): {said}",
        hint,
    )
