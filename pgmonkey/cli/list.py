"""A listing: what the files of a registry declare, in one row for each database."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pgmonkey.cli.output import table
from pgmonkey.config.directory import DirectoryLoader, Scan
from pgmonkey.config.redaction import scrub
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.errors import count


class Listing:
    """Hold what the files of a directory declare now. Connects to nothing.

    Args:
        directory: The directory.
        allow_sensitive_defaults: Accept `${NAME:-default}` for passwords and the like.

    Raises:
        RegistryConfigError: The directory cannot be read.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, allow_sensitive_defaults: bool = False
    ) -> None:
        scan = DirectoryLoader(directory, allow_sensitive_defaults=allow_sensitive_defaults).scan()
        if not scan.directory_ok:
            scan.raise_for_problems()
        #: Whether every file is good.
        self.good = not scan.all_problems()
        self._rows = [_row(scan, name) for name in sorted(scan.present)]

    def as_json(self) -> str:
        """Return the rows as a JSON document."""
        return json.dumps({"databases": self._rows}, indent=2)

    def as_table(self) -> str:
        """Return the rows as people read them."""
        titles = ("NAME", "TYPE", "SERVER", "DATABASE", "DESCRIPTION")
        return table([titles, *(_cells(row) for row in self._rows)])


def _row(scan: Scan, name: str) -> dict[str, Any]:
    config = scan.configs.get(name)
    if config is None:
        problems = scan.problems.get(name) or scan.general
        return {"name": name, "path": problems[0].path, "problems": len(problems)}
    connection = config.redacted()["connection_settings"]
    return {
        "name": name,
        "path": config.path,
        "problems": 0,
        "connection_type": config.connection_type,
        "description": _shown(config, config.description),
        "required": config.required,
        "server": _shown(config, _server(connection)),
        "dbname": _shown(config, connection.get("dbname", "")),
    }


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["problems"]:
        said = f"{count(row['problems'], 'problem')}: see pgmonkey check"
        return row["name"], "-", "-", "-", said
    return tuple(
        row[key] or "-" for key in ("name", "connection_type", "server", "dbname", "description")
    )


def _server(connection: Mapping[str, str]) -> str:
    """Return the servers as `host:port`, in the words of the file."""
    hosts = connection.get("host") or connection.get("hostaddr") or ""
    if not hosts:
        return f"service {connection['service']}" if "service" in connection else ""
    ports = connection.get("port", "").split(",")
    several = hosts.split(",")
    if len(ports) != len(several):
        ports = ports[:1] * len(several)
    return ",".join(
        f"{host}:{port}" if port else host for host, port in zip(several, ports, strict=True)
    )


def _shown(config: DatabaseConfig, text: str) -> str:
    return scrub(text, config.secrets)
