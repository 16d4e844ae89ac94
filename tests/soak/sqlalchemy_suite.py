"""Run SQLAlchemy's own tests of its PostgreSQL dialect through engines of a registry.

`make sqlalchemy-suite` downloads the source distribution of the installed SQLAlchemy, starts a
server, and runs the dialect suite (`sqlalchemy.testing.suite`) and the tests of the dialect itself,
sync and async: once as they are, with SQLAlchemy's own pool, and once with each engine on a handle.
What fails in the second run only is ours, and makes it fail.

It is a plugin of pytest, too, in the processes that it starts: there it puts the pool of a handle
into the engines that the tests make.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import sqlalchemy
import yaml
from psycopg import sql
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import URL, CreateEnginePlugin

from pgmonkey import Registry
from pgmonkey.contrib.sqlalchemy import HandlePool

ROOT: Final = Path(__file__).resolve().parent.parent.parent
#: What is run of the source distribution.
TESTS: Final = ("test/dialect/test_suite.py", "test/dialect/postgresql")
#: What a test gives to an engine that wants another pool, or other connections, than those of a handle.
_OWN: Final = {
    "pool",
    "poolclass",
    "creator",
    "async_creator",
    "connect_args",
    "module",
    "strategy",
}
#: What belongs in the file of a database.
_OF_THE_FILE: Final = ("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_use_lifo")

#: Tests that cannot apply to an engine on a handle, with the reason.
_NOT_APPLICABLE: Final = {
    "test_client_encoding": "client_encoding belongs in the file, and create_engine refuses it",
}
#: This module, which is `__main__` in one of its processes.
_THIS: Final = "tests.soak.sqlalchemy_suite"

_registries: Final[dict[str, Registry]] = {}


class EnginesOnHandles(CreateEnginePlugin):
    """Let `create_engine` take its connections from a registry, as `?plugin=pgmonkey` asks for."""

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        self._on_handle = not _OWN & kwargs.keys()
        if not self._on_handle:
            return
        for key in _OF_THE_FILE:
            kwargs.pop(key, None)
        is_async = kwargs.get("_is_async") or url.drivername.endswith("_async")
        kwargs["poolclass"] = HandlePool
        kwargs["handle"] = _registry(url).get("suite", "async_pool" if is_async else "pool")

    def update_url(self, url: URL) -> URL:
        """Keep the plugin in the URL: the tests make other engines of it."""
        return url.update_query_dict({"plugin": "pgmonkey"}) if self._on_handle else url


plugins.register("pgmonkey", _THIS, "EnginesOnHandles")


def _registry(url: URL) -> Registry:
    database = str(url.database)
    if database not in _registries:
        directory = Path(tempfile.mkdtemp(prefix="suite-"))
        connection = {
            "host": url.host,
            "port": url.port,
            "dbname": database,
            "user": url.username,
            "password": url.password,
        }
        pool = {"min_size": 0, "max_size": 20, "timeout": 10}
        file = {
            "connection_settings": connection,
            "pool_settings": pool,
            "async_pool_settings": pool,
        }
        (directory / "suite.yaml").write_text(yaml.safe_dump(file))
        _registries[database] = Registry(directory, metrics=None, watch=False)
    return _registries[database]


def pytest_unconfigure() -> None:
    """Say how many connections were borrowed from handles: none, if the plugin was not used."""
    for registry in _registries.values():
        for pool in registry.status().databases[0].pools:
            print(f"\nborrowed from a handle: {pool.requests}, still out: {pool.used}")
        registry.close()


def _source() -> Path:
    """Return the unpacked source distribution of the installed SQLAlchemy."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    source = build / f"sqlalchemy-{sqlalchemy.__version__}"
    if not source.exists():
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--quiet",
            "download",
            "--no-deps",
            "--no-binary",
            ":all:",
        )
        subprocess.run([*pip, f"sqlalchemy=={sqlalchemy.__version__}"], cwd=build, check=True)
        with tarfile.open(f"{source}.tar.gz") as archive:
            archive.extractall(build, filter="data")
    return source


def _run(source: Path, url: URL, *arguments: str) -> dict[str, str]:
    """Run the tests once and return the outcome of each."""
    report = ROOT / "build" / "sqlalchemy-suite.xml"
    report.unlink(missing_ok=True)
    command = (sys.executable, "-s", "-m", "pytest", "-p", _THIS, "-p", "no:randomly")
    subprocess.run(
        [
            *(
                *command,
                "-p",
                "no:cacheprovider",
                "-n",
                "0",
                "--maxfail",
                "1000",
                "--timeout",
                "60",
            ),
            *("-q", "--tb", "short", "-r", "N", "--log-level", "WARNING", f"--junit-xml={report}"),
            f"--dburi={url.render_as_string(hide_password=False)}",
            *(*TESTS, *arguments),
        ],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=(ROOT / "build" / "sqlalchemy-suite.log").open("a"),
        check=False,
    )
    outcomes = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        found = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcome = "failed" if found & {"failure", "error"} else "skipped" if found else "passed"
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes


def main(*arguments: str) -> int:
    """Run everything twice, sync and async; return 1 if something differs with a handle."""
    from tests.kit.server import PostgresServer

    source = _source()
    server = PostgresServer(settings={"max_prepared_transactions": "10", "max_connections": "60"})
    server.start()
    failed = False
    try:
        password = "suite"
        server.create_database_with_owner("suite", password)
        server.execute(sql.SQL("ALTER ROLE suite SUPERUSER"))
        for statement in (
            "CREATE SCHEMA test_schema",
            "CREATE SCHEMA test_schema_2",
            "CREATE EXTENSION hstore",
            "CREATE EXTENSION citext",
        ):
            server.execute(sql.SQL(statement), dbname="suite")
        for driver in ("psycopg", "psycopg_async"):
            url = URL.create(
                f"postgresql+{driver}", "suite", password, server.host, server.port, "suite"
            )
            after = _run(source, url.update_query_dict({"plugin": "pgmonkey"}), *arguments)
            before = _run(source, url, *arguments)
            for title, outcomes in (("its own pool", before), ("a handle", after)):
                counts = Counter(outcomes.values())
                print(
                    f"{driver}, {title}: {counts['passed']} passed, {counts['failed']} failed,"
                    f" {counts['skipped']} skipped",
                    flush=True,
                )
            worse = [one for one in after if after[one] != before.get(one)]
            for one in sorted(worse):
                reason = _NOT_APPLICABLE.get(one.rpartition("::")[2])
                print(f"{driver}, only with a handle: {one}" + (f" ({reason})" if reason else ""))
                failed = failed or reason is None
    finally:
        server.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
