"""Run Django's own tests through our engine, and name each failure that is not explained here.

They are those of the installed Django, from its source distribution. The newest Python has the newest
Django, and Python 3.11 has 5.2: `make django-suite PYTHON=python3.11 VENV=.venvs/3.11`. They run on the
distribution's PostgreSQL, which has the collations that they use. Their test databases are declared,
too: nearly all of them run on connections of a pool, as requests do.

`--plain` runs them through Django's own engine on the same server, for comparison, and `--postgis`
those of its engine for PostGIS. Arguments are labels of tests; without any, those of the backend.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import django

from tests.kit.components import postgres_with_tls
from tests.kit.server import PostgresServer


class Engines(NamedTuple):
    """An engine of Django, the one of ours in its place, and the tests that concern them."""

    plain: str
    ours: str
    labels: tuple[str, ...]


POSTGRESQL: Final = Engines(
    "django.db.backends.postgresql",
    "pgmonkey.contrib.django",
    (
        *("backends", "postgres_tests", "transactions", "transaction_hooks", "select_for_update"),
        *("introspection", "schema", "inspectdb", "dbshell", "migrations", "migrate_signals"),
        *("async", "asgi", "servers", "test_runner", "test_utils"),
        *("timezones", "model_fields", "bulk_create", "db_functions", "cache"),
    ),
)
POSTGIS: Final = Engines(
    "django.contrib.gis.db.backends.postgis",
    "pgmonkey.contrib.django.postgis",
    tuple(
        f"gis_tests.{name}"  # those that have a database
        for name in (
            *("distapp", "geo3d", "geoadmin", "geoapp", "geogapp", "gis_migrations"),
            *("inspectapp", "layermap", "rasterapp", "relatedapp"),
        )
    ),
)
_HEALTH: Final = (
    "It pretends that a connection is broken, which the pool sees is not, and hands out again."
)
_POOL: Final = "The option `pool` is not taken: the registry has the pool."
_POSTGRES: Final = (
    "It wants the database `postgres`; ours makes test databases from the declared one."
)
#: The tests that fail with our engine and not with Django's own, and why that is right.
NOT_APPLICABLE: Final = {
    "test_connect_pool": _POOL,
    "test_connect_pool_set_to_true": _POOL,
    "test_pool_check_can_be_overridden": _POOL,
    "test_pool_options_not_mutated": _POOL,
    "test_pooling_health_checks": _POOL,
    "test_pooling_not_support_persistent_connections": _POOL,
    "test_health_checks_enabled": _HEALTH,
    "test_set_autocommit_health_checks_enabled": _HEALTH,
    "test_connect_server_side_binding": "It wants Django's class of cursors; ours derives from it.",
    "test_nodb_cursor": _POSTGRES,
    "test_nodb_cursor_raises_postgres_authentication_failure": _POSTGRES,
    "test_serialize_deprecation": "It wants a warning to name the caller of Django's method, which is ours.",
}
SETTINGS: Final = """
import django
SECRET_KEY = "x"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
if django.VERSION < (6,):
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PGMONKEY = {{"REGISTRY": {registry!r}}}
DATABASES = {databases!r}
"""
#: Our engine, which takes a test database for a declared one.
ENGINE: Final = """
from pgmonkey.contrib.django import get_registry
from {ours} import base

class DatabaseWrapper(base.DatabaseWrapper):
    @property
    def registry_name(self):
        name = self.settings_dict["NAME"]
        return name if name in get_registry() else super().registry_name
"""


def main() -> int:
    """Run them, print how many failed and which, and return 1 if one fails without an explanation."""
    parser = argparse.ArgumentParser(prog="make django-suite ARGS=...", description=__doc__)
    parser.add_argument("labels", nargs="*")
    parser.add_argument("--plain", action="store_true", help="through Django's own engine")
    parser.add_argument("--postgis", action="store_true", help="through the engine for PostGIS")
    arguments = parser.parse_args()
    engines = POSTGIS if arguments.postgis else POSTGRESQL
    labels = arguments.labels or engines.labels
    with tempfile.TemporaryDirectory(prefix="django-suite-") as name:
        directory = Path(name)
        tests = _source(directory)
        with PostgresServer(binaries=postgres_with_tls()) as server:
            _settings(directory, server, engines, plain=arguments.plain)
            output = _run(directory, tests, labels)
    failed = set(re.findall(r"^(?:FAIL|ERROR): (\w+)", output, re.MULTILINE))
    for test in sorted(failed):
        print(f"{test}: {NOT_APPLICABLE.get(test, 'NOT EXPLAINED')}")
    ran = re.search(r"^Ran \d+ tests.*", output, re.MULTILINE)
    print(f"Django {django.__version__}: {ran[0] if ran else 'no test ran'}, {len(failed)} failed")
    return int(ran is None or not failed <= NOT_APPLICABLE.keys())


def _source(directory: Path) -> Path:
    """Return the tests of the installed Django."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", "django", f"django=={django.__version__}"),
        ],
        cwd=directory,
        check=True,
    )
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(directory, filter="data")
    (tests,) = directory.glob("*/tests/runtests.py")
    return tests


def _settings(directory: Path, server: PostgresServer, engines: Engines, *, plain: bool) -> None:
    """Write settings with two databases of one user, who makes extensions, and the registry of them."""
    registry = directory / "registry.d"
    registry.mkdir()
    server.execute("CREATE ROLE suite LOGIN SUPERUSER PASSWORD 'suite'")
    databases = {}
    for alias, name in (("default", "first"), ("other", "second")):
        server.execute(f"CREATE DATABASE {name} OWNER suite")
        for dbname in (name, f"test_{name}"):
            (registry / f"{dbname}.yaml").write_text(
                f"connection_settings: {{host: {server.host}, port: {server.port}, dbname: {dbname},"
                " user: suite, password: suite}\n"
            )
        databases[alias] = {"ENGINE": "pooled", "NAME": name}
        if plain:
            databases[alias] = {
                "ENGINE": engines.plain,
                "NAME": name,
                "HOST": server.host,
                "PORT": str(server.port),
                "USER": "suite",
                "PASSWORD": "suite",
            }
    engine = directory / "pooled"
    engine.mkdir()
    (engine / "__init__.py").touch()
    (engine / "base.py").write_text(ENGINE.format(ours=engines.ours))
    text = SETTINGS.format(registry=os.fspath(registry), databases=databases)
    (directory / "suite_settings.py").write_text(text)


def _run(directory: Path, tests: Path, labels: Sequence[str]) -> str:
    """Run the tests one after the other, show the output as it comes, and return it."""
    with subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", tests, "--settings=suite_settings"),
            *("--parallel=1", "--noinput", *labels),
        ],
        cwd=tests.parent,
        env=os.environ | {"PYTHONPATH": os.fspath(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            print(line, end="", flush=True)
            output.append(line)
    return "".join(output)


if __name__ == "__main__":
    sys.exit(main())
