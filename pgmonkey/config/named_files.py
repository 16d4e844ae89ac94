"""Read the files that connection settings name: certificates, keys, password files."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
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


@dataclass(slots=True, repr=False)  # it holds the contents of private keys
class NamedFiles:
    """Read the files that the settings of one connection name, and check them as libpq will.

    Paths are made absolute. With `isolate`, as for a registry, relative ones start at the directory
    and problems are collected; otherwise they start at the working directory of this moment, as
    for libpq, which reports problems when it connects.
    """

    snapshot: Snapshot
    directory: str
    isolate: bool
    #: The contents, by the keys that name the files.
    contents: dict[str, bytes] = field(default_factory=dict)
    #: The files as sources, by path; `None` for one that could not be read.
    files: dict[str, SourceFile | None] = field(default_factory=dict)
    problems: list[KeyProblem] = field(default_factory=list)

    def read(self, connection: Any) -> None:
        """Read the files of a resolved section, and make their paths absolute in place."""
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
                message = "expected the path of a file, got what may be its contents (not shown)"
                hint = f"write the contents to a file, and its path as {key}"
                self.problems.append(
                    KeyProblem(("connection_settings", key), "file.not_a_path", message, hint)
                )
                continue
            path = os.path.join(self.directory if self.isolate else os.path.abspath(""), path)
            connection[key] = Secret(path) if isinstance(value, Secret) else path
            self.files[path] = None
            try:
                content, status, self.files[path] = read_source(self.snapshot, path, _LIMIT)
            except SecretFileError as error:
                self._find(key, error)
                continue
            self.contents[key] = content
            if shared := _shared(key, status):
                self._find(key, shared)
            if key in _CERTIFICATES and b"CERTIFICATE-----" not in content:
                self._find(key, SecretFileError("secret.no_certificate", "contains no certificate"))

    def _find(self, key: str, error: SecretFileError) -> None:
        if self.isolate:
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
    """Apply libpq's own rule for private keys and password files; its error comes later."""
    mode = status.st_mode
    if key == "sslkey":
        # Its owner alone; what belongs to root may also be read by the group.
        forbidden = stat.S_IRWXO | (stat.S_IRWXG if status.st_uid else stat.S_IWGRP | stat.S_IXGRP)
        then = "libpq refuses it"
    elif key == "passfile":
        forbidden = stat.S_IRWXG | stat.S_IRWXO
        then = "libpq ignores it"
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
        f"is open to others (mode {stat.S_IMODE(mode):04o}, owned by {owner}): {then}",
        hint,
    )
