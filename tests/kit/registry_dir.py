"""A registry directory of a test, written as people and tools write files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.kit.database import TemporaryDatabase
from tests.kit.secret_volume import SecretVolume


class RegistryDirectory:
    """A `registry.d` of one test. It is an `os.PathLike`, so that `Registry(registry_dir)` works."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<RegistryDirectory {str(self.path)!r}>"

    def file(self, name: str) -> Path:
        """Return the path of a database's file; a name with a suffix is taken as it is."""
        return self.path / (name if "." in name else f"{name}.yaml")

    def write(self, name: str, content: Mapping[str, Any] | str) -> Path:
        """Write a file as careful tools do: under another name, then renamed.

        Args:
            name: The database, or a file name.
            content: A mapping, dumped as YAML, or the text itself.

        Returns:
            The path of the file.
        """
        path = self.file(name)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(_text(content), encoding="utf-8")
        temporary.replace(path)
        return path

    def write_in_place(self, name: str, content: Mapping[str, Any] | str) -> Path:
        """Write a file as careless tools do: emptied, then filled."""
        path = self.file(name)
        path.write_text(_text(content), encoding="utf-8")
        return path

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.file(name).unlink()

    def declare(
        self,
        name: str,
        database: TemporaryDatabase,
        connection_type: str = "pool",
        *,
        volume: SecretVolume | None = None,
        connection: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> Path:
        """Write the file of a database that exists.

        Args:
            name: What the registry calls it.
            database: The server's database.
            connection_type: The type to declare.
            volume: Where its user name and password are written to and read from
                (`from_file`); without one they stand in the file.
            connection: More connection settings, or others; `None` as a value leaves one out.
            sections: The rest of the file: `pool_settings={"max_size": 4}`, `required=False` ...

        Returns:
            The path of the file.
        """
        settings: dict[str, Any] = database.parameters()
        if volume is not None:
            write_credentials(volume, database)
            settings["user"] = {"from_file": os.fspath(volume.path("username"))}
            settings["password"] = {"from_file": os.fspath(volume.path("password"))}
        settings |= connection or {}
        settings = {key: value for key, value in settings.items() if value is not None}
        return self.write(
            name, {"connection_type": connection_type, "connection_settings": settings, **sections}
        )


def write_credentials(volume: SecretVolume, database: TemporaryDatabase) -> None:
    """Write a database's present user and password as a Kubernetes secret."""
    volume.write({"username": database.user, "password": database.password})


def _text(content: Mapping[str, Any] | str) -> str:
    if isinstance(content, str):
        return content
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
