"""The engine for Django, in Django: its ORM, requests, threads and event loops, over rotations."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import httpx
import psycopg
import pytest
from django.core import checks, signals
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.db import (
    OperationalError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.test.utils import override_settings
from psycopg import sql
from psycopg.rows import dict_row

from pgmonkey import Registry
from pgmonkey.contrib.django import get_registry
from tests.contrib.django_project.ready import Item, pid
from tests.kit.canary import Canary
from tests.kit.components import need
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.pgbouncer import PgBouncer
from tests.kit.process import Process, in_a_child
from tests.kit.registry_dir import RegistryDirectory
from tests.kit.server import PostgresServer
from tests.pool.side import FRESH
from tests.recipes.recipe import plain_environment, recipe

MAX_SIZE = 4
#: Seconds for a program that starts Django, on a machine with much else to do.
PATIENCE = 120


class Project:
    """The project in this process, with its registry and its database."""

    def __init__(
        self, registry: Registry, directory: RegistryDirectory, database: TemporaryDatabase
    ) -> None:
        self.registry = registry
        self.directory = directory
        self.database = database

    def settings(self, **changes: Any) -> None:
        """Change the settings of the alias, as if they had been so from the start."""
        connection.close_pool()
        connections.settings["default"].update(changes)

    def declare(self, **sections: Any) -> None:
        """Write the file of the database."""
        sections = {"pool_settings": {"min_size": 0, "max_size": MAX_SIZE}} | sections
        self.directory.declare("orders", self.database, **sections)

    def rotate(self) -> None:
        """Give the user another password, and the registry with it."""
        self.database.rotate()
        self.declare()
        assert self.registry.reload().applied == ("orders",)

    def pool(self) -> Any:
        """Return the numbers of the pools of the database."""
        (status,) = self.registry.status().databases[0].pools
        return status


def end_request() -> None:
    """End a request of this thread, as a handler does."""
    signals.request_finished.send(sender=None)


def get(path: str) -> tuple[int, bytes]:
    """Answer a request in this thread, as a WSGI server does."""
    status: list[str] = []
    environ = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    response = WSGIHandler()(environ, lambda line, headers: status.append(line))
    try:
        body = b"".join(response)
    finally:
        response.close()
    return int(status[0].split()[0]), body


@contextmanager
def set_up(directory: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Project]:
    """Set the project up in this process, and take that back."""
    before = connections.settings["default"].copy()
    with (
        Registry(directory, metrics=None, watch=False) as registry,
        override_settings(PGMONKEY={"REGISTRY": registry}),
    ):
        try:
            yield Project(registry, directory, database)
        finally:
            connection.close()
            connection.close_pool()
            del connections["default"]
            connections.settings["default"].clear()
            connections.settings["default"].update(before)
            connections.settings["default"].pop("REGISTRY_NAME", None)


@pytest.fixture(scope="module")
def shop_database(
    module_database: TemporaryDatabase, tmp_path_factory: pytest.TempPathFactory
) -> TemporaryDatabase:
    """The database of all these tests, with its table. Its owner may create databases."""
    owner = sql.Identifier(module_database.user)
    module_database.server.execute(sql.SQL("ALTER ROLE {} CREATEDB").format(owner))
    directory = RegistryDirectory(tmp_path_factory.mktemp("registry"))
    directory.declare("orders", module_database)
    with set_up(directory, module_database):
        call_command("migrate", verbosity=0)
    return module_database


@pytest.fixture
def database(
    shop_database: TemporaryDatabase, shared_database: TemporaryDatabase
) -> TemporaryDatabase:
    """That database; its table is empty, and a test leaves no session in it."""
    assert shared_database is shop_database
    shop_database.execute("TRUNCATE shop_item")
    return shop_database


@pytest.fixture
def project(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Project]:
    """The project of one test, with a registry of its own."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 0, "max_size": MAX_SIZE})
    with set_up(registry_dir, database) as project:
        yield project


# What Django does with a database


def test_models_transactions_and_savepoints_work(project):
    """An inner block that fails loses its own work alone; the outer one commits the rest."""
    with transaction.atomic():
        Item.objects.create(name="tea", details={"kind": ["green", "black"]})
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Item.objects.create(name="coffee")
            raise ZeroDivisionError

    item = Item.objects.get()
    assert (item.name, item.details) == ("tea", {"kind": ["green", "black"]})
    assert Item.objects.filter(details__kind__contains="green").exists()
    assert item.made_at.utcoffset().total_seconds() == 0
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Item.objects.all().delete()
        raise ZeroDivisionError
    assert Item.objects.count() == 1


def test_a_row_is_locked_for_others(project):
    """`select_for_update` holds the row until its block ends."""
    item = Item.objects.create(name="tea")
    with transaction.atomic():
        Item.objects.select_for_update().get(pk=item.pk)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(_is_locked, item.pk).result()


def _is_locked(pk: int) -> bool:
    try:
        with transaction.atomic():
            return not Item.objects.select_for_update(skip_locked=True).filter(pk=pk).exists()
    finally:
        connection.close()


def test_large_results_come_through_a_cursor_of_the_server(project):
    """`iterator()` reads in parts, inside of a transaction and without one."""
    Item.objects.bulk_create(Item(name=f"item {number}") for number in range(25))

    for _ in range(2):
        items = Item.objects.order_by("pk").iterator(chunk_size=10)
        assert next(items).name == "item 0"
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '_django_curs_%%'")
            assert cursor.fetchone() == (1,)
        assert len(list(items)) == 24
    with transaction.atomic():
        assert len(list(Item.objects.iterator(chunk_size=10))) == 25


def test_behind_a_pooler_there_is_no_cursor_of_the_server(project):
    """With `pooler: pgbouncer` results come at once: the next part may be on another connection."""
    project.declare(pooler="pgbouncer")
    project.registry.reload()
    Item.objects.create(name="tea")
    Item.objects.create(name="coffee")

    items = Item.objects.iterator(chunk_size=1)
    next(items)

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '_django_curs_%%'")
        assert cursor.fetchone() == (0,)


@pytest.mark.pgbouncer
def test_behind_pgbouncer_each_client_has_its_time_zone(project, canary):
    """Clients with other time zones share one connection of the server: times are right for each."""
    with PgBouncer(project.database, canary, {"default_pool_size": 1}) as bouncer:
        project.declare(pooler="pgbouncer", connection=bouncer.address)
        project.registry.reload()
        handle = project.registry.get("orders")
        item = Item.objects.create(name="tea")
        for zone in ("Asia/Tokyo", "America/Lima"):
            with handle.transaction() as conn:
                conn.execute(f"SET TIME ZONE '{zone}'")
            assert Item.objects.get().made_at == item.made_at
            assert len(list(Item.objects.iterator())) == 1
        end_request()
        assert Item.objects.get().made_at == item.made_at
        connection.close()
        connection.close_pool()


# Whose connections they are


def test_no_other_code_gets_what_is_set_up_for_django(project):
    """Plain blocks of the same database never get a connection of Django, nor any of its settings."""
    project.declare(
        sync_settings={"timezone": "Asia/Tokyo"}, connection={"row_factory": "dict_row"}
    )
    project.registry.reload()
    django_pids = {pid()}
    end_request()

    handle = project.registry.get("orders")
    with handle as one, handle as two:
        for conn in (one, two):
            assert conn.row_factory is dict_row
            assert not conn.autocommit
            assert isinstance(conn.cursor(), psycopg.Cursor)
            assert not isinstance(conn.cursor(), psycopg.ClientCursor)
            assert conn.prepare_threshold == 5
            row: Any = conn.execute("SELECT now() AS now, '{}'::jsonb AS json").fetchone()
            assert str(row["now"].tzinfo) == "Asia/Tokyo"
            assert row["json"] == {}
            assert conn.info.backend_pid not in django_pids
    with handle as conn:
        plain = conn.info.backend_pid
    assert pid() in django_pids
    assert pid() != plain


def test_rows_are_what_django_expects_whatever_the_file_says(project):
    """A file's row factory, time zone and autocommit are for plain blocks."""
    project.declare(
        sync_settings={"timezone": "Asia/Tokyo"},
        connection={"row_factory": "dict_row", "autocommit": True, "client_encoding": "latin1"},
    )
    project.registry.reload()

    item = Item.objects.create(name="\N{EURO SIGN}")

    assert Item.objects.get(name="\N{EURO SIGN}").made_at == item.made_at
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('TimeZone'), current_setting('client_encoding')")
        assert cursor.fetchone() == ("UTC", "UTF8")


def test_isolation_level_and_role_are_those_of_the_options(project):
    """OPTIONS of Django count: each new connection gets them, and keeps them."""
    project.settings(
        OPTIONS={
            "isolation_level": psycopg.IsolationLevel.SERIALIZABLE,
            "assume_role": project.database.user,
            "server_side_binding": True,
        }
    )

    for _ in range(2):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('transaction_isolation'), current_user")
            assert cursor.fetchone() == ("serializable", project.database.user)
        assert Item.objects.filter(name="tea").count() == 0
        end_request()


@pytest.mark.parametrize("max_age", [0, 60, None])
def test_requests_share_connections_that_stay_open(project, max_age):
    """One request after the other uses the same connection; between them no thread has it."""
    project.settings(CONN_MAX_AGE=max_age)
    pids = set()
    for _ in range(3):
        pids.add(pid())
        end_request()
        assert connection.connection is None
        assert project.pool().used == 0

    assert len(pids) == 1


@pytest.mark.parametrize("health_checks, trips", [(False, 1), (True, 2)])
def test_a_request_costs_the_round_trips_of_its_statements(project, proxy, health_checks, trips):
    """A connection is set up once. CONN_HEALTH_CHECKS asks the server before each request, once."""
    project.declare(
        connection={"host": proxy.host, "port": proxy.port},
        pool_settings={"min_size": 1, "max_size": 1},
    )
    project.registry.reload()
    project.settings(CONN_HEALTH_CHECKS=health_checks)
    pid()
    end_request()

    for _ in range(2):
        before = proxy.round_trips
        pid()
        end_request()
        assert proxy.round_trips - before == trips


def test_threads_never_hold_more_connections_than_max_size(project):
    """Requests of many threads wait for each other, and leave nothing behind."""
    before = len(project.database.backends())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(get, ["/order"] * 40))

    assert {status for status, _ in answers} == {200}
    assert Item.objects.count() == 40
    end_request()
    assert project.pool().used == 0
    assert before <= len(project.database.backends()) <= MAX_SIZE


def test_a_thread_that_ends_with_a_connection_costs_no_place(project, events):
    """The pool closes the connection of a thread that has ended, reports that, and gives others one."""
    for _ in range(MAX_SIZE + 2):
        thread = threading.Thread(target=pid)
        thread.start()
        thread.join()

    assert pid()
    assert project.pool().used == 1
    assert events.wait("checkout.abandoned", 20)["place"].endswith("in pid")


def test_a_response_that_streams_keeps_its_connection_to_its_end(project):
    """The connection goes back when the last part was sent."""
    Item.objects.bulk_create(Item(name=f"item {number}") for number in range(5))
    end_request()

    status, body = get("/stream")

    assert status == 200
    assert body.decode().split("\n")[:-1] == [f"item {number}" for number in range(5)]
    assert project.pool().used == 0


def test_a_child_process_has_connections_of_its_own(project):
    """A child that is forked in a transaction has a connection of its own; its parent goes on."""
    with transaction.atomic():
        Item.objects.create(name="tea")
        parent = pid()

        child, items = in_a_child(lambda: (pid(), Item.objects.count()))

        assert (child != parent, items) == (True, 0)
        assert pid() == parent
    assert Item.objects.count() == 1


# Rotations


@pytest.mark.parametrize("max_age", [0, None])
def test_a_request_after_a_rotation_has_a_new_connection(project, max_age):
    """After a rotation no thread has an old connection, however long it may keep one."""
    project.settings(CONN_MAX_AGE=max_age)
    before = pid()
    end_request()

    project.rotate()

    assert pid() != before
    assert before not in [backend["pid"] for backend in project.database.backends()]


def test_a_request_ends_on_its_connection_and_gives_it_back_retired(project):
    """A request ends on the connection that it began with; then that closes."""
    project.settings(CONN_MAX_AGE=None)
    with transaction.atomic():
        before = pid()
        Item.objects.create(name="tea")
        project.rotate()
        assert pid() == before
        assert project.pool().retired == 1
    assert Item.objects.count() == 1
    assert pid() == before

    end_request()

    assert project.registry.wait_drained(20)
    assert before not in [backend["pid"] for backend in project.database.backends()]
    assert pid() != before


def test_a_worker_gives_a_retired_connection_back_between_its_tasks(project):
    """`close_old_connections()` keeps a connection that is not retired, and gives one back that is."""
    project.settings(CONN_MAX_AGE=None)
    before = pid()
    close_old_connections()
    assert connection.connection is not None
    project.rotate()

    close_old_connections()

    assert connection.connection is None
    assert pid() != before


def test_a_restart_of_the_server_costs_no_request_after_it(project):
    """The pool replaces connections that died meanwhile before a request gets one."""
    pid()
    end_request()
    came_back = time.monotonic()
    eventually(lambda: time.monotonic() > came_back + FRESH)  # until then nothing looks at it
    project.database.server.restart()

    assert get("/order")[0] == 200


def test_a_request_whose_connection_broke_is_the_only_one_that_fails(project):
    """The next request gets a working connection, whatever CONN_MAX_AGE."""
    project.settings(CONN_MAX_AGE=None)
    pid()
    project.database.terminate_backends()
    with pytest.raises(OperationalError):
        pid()
    end_request()

    assert get("/order")[0] == 200


# Event loops


def test_asynchronous_views_leave_no_connection_behind(project):
    """Requests of an ASGI server that overlap are answered, and hold nothing afterwards."""
    project.settings(CONN_MAX_AGE=None)

    async def serve() -> list[int]:
        transport = httpx.ASGITransport(ASGIHandler())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = [client.get(path) for path in ["/later", "/order"] * 10]
            return [answer.status_code for answer in await asyncio.gather(*answers)]

    assert set(asyncio.run(serve())) == {200}

    assert Item.objects.count() == 20
    end_request()
    eventually(lambda: project.pool().used == 0, 20, "every connection is back")


# Settings and problems


@pytest.mark.parametrize(
    "setting, key",
    [
        ("HOST", "connection_settings: host"),
        ("PORT", "connection_settings: port"),
        ("USER", "connection_settings: user"),
        ("PASSWORD", "connection_settings: password"),
    ],
)
def test_a_check_says_where_a_connection_setting_belongs(project, canary, setting, key):
    """HOST, PORT, USER and PASSWORD beside the engine are errors that name the file and the key."""
    project.settings(**{setting: canary.secret()})

    (problem,) = checks.run_checks()

    assert problem.id == "pgmonkey.E002"
    assert problem.msg == f'DATABASES["default"]["{setting}"] has no effect here.'
    assert problem.hint == f"Remove it. It belongs in orders.yaml of the registry, as `{key}`."
    with pytest.raises(ImproperlyConfigured, match=f"as `{key}`"):
        pid()


@pytest.mark.parametrize(
    "option, number, text",
    [
        ("pool", "E002", "as `pool_settings`"),
        ("sslmode", "E002", "as `connection_settings: sslmode`"),
        ("passfile", "E002", "as `connection_settings: passfile`"),
        ("isolaton_level", "E003", "It takes assume_role, cursor_factory, isolation_level"),
    ],
)
def test_a_check_says_where_an_option_belongs(project, option, number, text):
    """The hint names the key of the file in its place, or the options that there are."""
    project.settings(OPTIONS={option: "something"})

    (problem,) = checks.run_checks()

    assert problem.id == f"pgmonkey.{number}"
    assert text in problem.hint


def test_nothing_is_wrong_with_good_settings(project):
    """The checks of Django find nothing, those of the database included."""
    assert checks.run_checks(databases=["default"]) == []


def test_a_check_of_a_database_says_what_is_wrong_with_its_files(project, registry_dir):
    """`check --database` reads the files, and connects to nothing."""
    registry_dir.write("orders", "connection_settings: {hots: localhost}\n")
    with override_settings(PGMONKEY={"REGISTRY": str(registry_dir)}):
        assert checks.run_checks() == []

        (problem,) = checks.run_checks(databases=["default"])

    assert problem.id == "pgmonkey.E004"
    assert "hots" in problem.msg


def test_an_unknown_name_is_a_problem_of_the_settings(project):
    """The error suggests the name that is near."""
    project.settings(NAME="order", REGISTRY_NAME="order")

    with pytest.raises(ImproperlyConfigured, match='did you mean "orders"'):
        pid()


def test_a_missing_name_is_a_problem_of_the_settings(project):
    """The error says that NAME is the name in the registry."""
    project.settings(NAME="", REGISTRY_NAME="")

    with pytest.raises(ImproperlyConfigured, match="the stem of its file"):
        pid()


def test_problems_of_the_files_are_problems_of_the_settings(project, registry_dir):
    """The error has our text, with file, line and key."""
    path = registry_dir.write("orders", "connection_settings: {hots: localhost}\n")

    with (
        override_settings(PGMONKEY={"REGISTRY": str(registry_dir)}),
        pytest.raises(ImproperlyConfigured) as raised,
    ):
        pid()

    assert str(path) in str(raised.value)
    assert "hots" in str(raised.value)


def test_a_server_that_refuses_is_an_operational_error_with_our_text(project, registry_dir):
    """The error that Django shows has the reason and a hint."""
    project.declare(connection={"password": "wrong"})

    with (
        override_settings(PGMONKEY={"REGISTRY": str(registry_dir)}),
        get_registry(),
        pytest.raises(OperationalError, match=r"orders: cannot connect: .* \[auth\]") as raised,
    ):
        pid()

    assert "hint" in str(raised.value)


@pytest.mark.parametrize(
    "value, text",
    [
        ({}, "names the directory"),
        ("registry.d", "PGMONKEY is a dictionary"),
        ({"REGISTRYS": "registry.d"}, "did you mean"),
        ({"REGISTRY": 3}, "a path or a Registry, not int"),
        ({"REGISTRY": "/nowhere"}, "/nowhere"),
    ],
)
def test_a_setting_that_names_no_registry_says_so(project, monkeypatch, value, text):
    """The error says what is wrong with PGMONKEY."""
    monkeypatch.delenv("PGMONKEY_REGISTRY", raising=False)
    with override_settings(PGMONKEY=value), pytest.raises(ImproperlyConfigured, match=text):
        pid()


def test_the_environment_names_the_registry(project, registry_dir, monkeypatch):
    """Without the setting, $PGMONKEY_REGISTRY counts; the registry is the same every time."""
    monkeypatch.setenv("PGMONKEY_REGISTRY", str(registry_dir))
    with override_settings(PGMONKEY={}), get_registry() as registry:
        assert get_registry() is registry
        assert registry.path == registry_dir.path
        assert pid()
        connection.close()
        connection.close_pool()


# The recipe


def test_the_recipes_work_as_they_are_written(project):
    """A worker gives back a retired connection between tasks; the registry has plain connections."""
    names: dict[str, Any] = {}
    exec(recipe("recipes/django", "Workers and commands"), names)
    exec(recipe("recipes/django", "Connections without Django"), names)
    project.settings(CONN_MAX_AGE=None)
    pids: list[int] = []

    def task() -> None:
        pids.append(pid())

    names["work"]([task, task, project.rotate, task])

    first, second, third = pids
    assert first == second != third
    Item.objects.create(name="tea")
    assert names["count"]() == 1


def test_status_names_the_code_that_has_called_django(project):
    """A timeout and the status say which view, not which line of Django, holds a connection."""
    pid()

    (checkout,) = project.pool().checkouts

    assert checkout.place.endswith("in pid")
    assert "urls.py:" in checkout.place


def test_postgis_is_djangos_engine_for_it_on_the_same_connections(project):
    """The engine has the operations of PostGIS, and borrows from the registry."""
    try:
        from pgmonkey.contrib.django.postgis.base import DatabaseWrapper
    except ImproperlyConfigured:
        need(None, "GDAL (.ci/install-servers)")
    from django.contrib.gis.db.backends.postgis.operations import PostGISOperations

    wrapper = DatabaseWrapper(connections.settings["default"], "default")
    try:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert isinstance(wrapper.ops, PostGISOperations)
        assert project.pool().used == 1
    finally:
        wrapper.close()


# Commands


def test_the_commands_of_a_database_work(project, registry_dir):
    """With the settings of the recipe, `migrate` makes tables, `inspectdb` reads them, `check` is content."""
    settings: dict[str, Any] = {"BASE_DIR": registry_dir.path.parent}
    exec(recipe("recipes/django", "Settings"), settings)
    project.settings(**settings["DATABASES"]["default"])
    output = StringIO()
    with override_settings(PGMONKEY=settings["PGMONKEY"]), get_registry():
        for command in (
            ["migrate", "shop", "zero"],
            ["migrate", "shop"],
            ["inspectdb", "shop_item"],
            ["check", "--database=default"],
        ):
            call_command(*command, stdout=output, no_color=True)
        connection.close()
        connection.close_pool()

    text = output.getvalue()
    assert "Unapplying shop.0001_initial... OK" in text
    assert "Applying shop.0001_initial... OK" in text
    assert "class ShopItem(models.Model):" in text
    assert "details = models.JSONField()" in text
    assert "no issues" in text


@pytest.fixture
def hostile_password(project: Project, canary: Canary) -> Iterator[str]:
    """The password of the user, with all that means something to programs."""
    database = project.database
    database.password = canary.secret(hostile=True)
    database.server.set_password(database.user, database.password)
    yield database.password
    database.rotate()


@pytest.mark.parametrize("source", ["a file", "a command", "a password file"])
def test_the_shell_gets_what_the_file_says_and_no_password_in_its_arguments(
    project, hostile_password, tmp_path, monkeypatch, source
):
    """`dbshell` runs psql. Only a file without a name has the password, or the password file."""
    psql = tmp_path / "psql"
    psql.write_text(PSQL)
    psql.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for variable in ("PGDATABASE", "PGPASSWORD", "PGOPTIONS"):
        monkeypatch.setenv(variable, "another")
    secret = tmp_path / "secret"
    escaped = hostile_password.replace("\\", "\\\\").replace(":", "\\:")
    secret.write_text(f"*:*:*:*:{escaped}\n" if source == "a password file" else hostile_password)
    secret.chmod(0o600)
    sources = {
        "a file": {"password": {"from_file": str(secret)}},
        "a command": {"password": {"from_command": ["cat", str(secret)]}},
        "a password file": {"password": None, "passfile": str(secret)},
    }
    project.declare(connection=sources[source], sync_settings={"statement_timeout": "7s"})
    project.registry.reload()

    call_command("dbshell", "--", "-c", "SELECT 1")

    assert (tmp_path / "arguments").read_text().split("\n") == ["-c", "SELECT 1", ""]
    text = (tmp_path / "environment").read_text()
    assert hostile_password not in text
    environment = dict(line.split("=", 1) for line in text.split("\0") if line.startswith("PG"))
    assert "PGPASSWORD" not in environment
    in_memory = environment["PGPASSFILE"].startswith("/dev/fd/")
    assert in_memory == (source != "a password file")
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "passfile"))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "servicefile"))
    with psycopg.connect() as conn:
        assert conn.info.user == project.database.user
        assert conn.info.dbname == project.database.name
        assert conn.execute("SHOW statement_timeout").fetchone() == ("7s",)


#: Writes down what psql gets.
PSQL = """#!/bin/sh
umask 077
printf '%s\\n' "$@" >arguments
env -0 >environment
cat "$PGPASSFILE" >passfile
cat "$PGSERVICEFILE" >servicefile
"""


def test_the_shell_of_a_test_database_leads_there(project, tmp_path, monkeypatch):
    """`dbshell` connects to the database that NAME is while tests run, with all else of the file."""
    psql = tmp_path / "psql"
    psql.write_text(PSQL)
    psql.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    project.settings(NAME="test_orders")

    call_command("dbshell")

    variables = (tmp_path / "environment").read_text().split("\0")
    assert "PGDATABASE=test_orders" in variables
    assert f"PGUSER={project.database.user}" in variables


def test_the_shell_of_an_unknown_database_is_a_problem_of_the_settings(project):
    """`dbshell` says what is wrong, as every command does."""
    project.settings(NAME="order", REGISTRY_NAME="order")

    with pytest.raises(ImproperlyConfigured, match='did you mean "orders"'):
        call_command("dbshell")


def test_the_shell_without_credentials_is_a_problem_of_the_settings(project, tmp_path):
    """`dbshell` does not start psql if the command that makes the password fails."""
    command = {"from_command": ["cat", str(tmp_path / "missing")]}
    project.declare(connection={"password": command})
    project.registry.reload()

    with pytest.raises(ImproperlyConfigured, match=r"\[credentials\]"):
        call_command("dbshell")


def test_the_shell_cannot_get_a_secret_that_no_file_holds(project, canary):
    """`dbshell` names it, and no local variable of the error shows it or another secret."""
    secret = {"password": f"{canary.secret()}\ntea", "sslpassword": canary.secret()}
    project.declare(connection=secret, sync_settings={"app.token": canary.secret()})
    project.registry.reload()

    with pytest.raises(ImproperlyConfigured, match="psql cannot get its password: "):
        call_command("dbshell")


# Tests of the project


@pytest.fixture
def run(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Run Python in the project, as a user with `manage.py` does, and return its output."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 0, "max_size": MAX_SIZE})

    def run(*arguments: str) -> str:
        with Process(
            [sys.executable, "-W", "error", *arguments],
            canary=canary,
            cwd=tmp_path,
            env=plain_environment()
            | {
                "DJANGO_SETTINGS_MODULE": "tests.contrib.django_project.settings",
                "PGMONKEY_REGISTRY": str(registry_dir),
            },
        ) as process:
            assert process.code(PATIENCE) == 0, process.text
            return process.text

    yield run
    for name in _test_databases(database):
        database.server.drop_database(name)


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_tests_have_databases_of_their_own(run, database):
    """Django's runner makes one for each process and drops them; `--keepdb` keeps one, and uses it."""
    test = ["test", "--noinput", "--pattern=shop_tests.py", "tests.contrib.django_project.shop"]
    runs = [[*test, "--parallel=2", "--verbosity=2"], [*test, "--keepdb"], [*test, "--keepdb"]]
    lines = [
        "import django",
        "from django.core.management import call_command",
        "django.setup()",
        *(f"call_command(*{one!r})" for one in runs),
    ]

    text = run("-c", "\n".join(lines))

    assert text.count("Ran 3 tests") == text.count("\nOK\n") == 3
    assert text.count("Cloning test database for alias 'default' ('test_orders')") == 2
    assert "Using existing test database" in text
    assert _test_databases(database) == {"test_orders"}
    assert database.backends() == []


@pytest.mark.parametrize("name", ["orders", "the declared one"])
def test_tests_never_get_the_declared_database(project, name):
    """A test database that would be the declared one, which tests empty and drop, is refused."""
    name = project.database.name if name == "the declared one" else name
    project.settings(TEST={**connection.settings_dict["TEST"], "NAME": name})

    with pytest.raises(ImproperlyConfigured, match="Write another name"):
        connection.creation.create_test_db(verbosity=0)

    assert Item.objects.count() == 0


@pytest.fixture
def closed_postgres(server: PostgresServer) -> Iterator[None]:
    """Only superusers may connect to the database `postgres`, as with many providers."""
    server.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    yield
    server.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC")


@pytest.fixture
def mirror(project: Project) -> Iterator[Any]:
    """The connection of a second alias, whose database has a file of its own."""
    project.directory.declare("mirror", project.database)
    project.registry.reload()
    settings = connections.settings
    settings["mirror"] = settings["default"] | {"NAME": "mirror", "REGISTRY_NAME": "mirror"}
    yield connections["mirror"]
    connections["mirror"].close()
    del connections["mirror"], settings["mirror"]


def test_the_registry_leads_to_the_test_database_while_there_is_one(
    project, mirror, closed_postgres
):
    """Plain connections get there, those of a mirror, too, and are in the way of no clone and no end."""
    creation = connection.creation

    def plain(name: str = "orders") -> str:
        with project.registry.get(name) as conn:
            return conn.info.dbname

    declared = plain()
    try:
        made = creation.create_test_db(verbosity=0)
        assert plain() == made != declared
        creation.clone_test_db("1", verbosity=0)
        assert plain() == made
        creation.setup_worker_connection(1)
        assert plain() == f"{made}_1"
        mirror.creation.set_as_test_mirror(connection.settings_dict)
        assert plain("mirror") == f"{made}_1"
        creation.destroy_test_db("orders", verbosity=0)
        assert plain() == plain("mirror") == declared
        assert Item.objects.count() == 0
        assert f"{made}_1" not in _test_databases(project.database)
    finally:
        for name in ("test_orders", "test_orders_1"):
            project.database.server.drop_database(name)


def test_a_rollback_of_the_registry_is_refused(project):
    """Django would commit: the error names what rolls back. It works again after the block."""
    Item.objects.create(name="tea")  # on a connection that is open when the block begins
    for _ in range(2):
        with (
            project.registry.override("orders", rollback=True),
            pytest.raises(ImproperlyConfigured, match="TestCase"),
        ):
            Item.objects.create(name="cake")
        connection.close()

    assert Item.objects.count() == 1


def _test_databases(database: TemporaryDatabase) -> set[str]:
    rows = database.server.execute("SELECT datname FROM pg_database")
    return {name for (name,) in rows if name.startswith("test_orders")}


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_pytest_django_has_a_database_of_its_own(run, database, tmp_path):
    """Tests that ask for `db` run in a test database, which is dropped at the end."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_shop.py").write_text(
        "import pytest\n"
        "from tests.contrib.django_project.shop.models import Item\n"
        "from tests.contrib.django_project.shop.shop_tests import _orders\n"
        "@pytest.mark.django_db\n"
        "def test_an_item(client):\n"
        "    Item.objects.create(name='tea')\n"
        "    assert client.get('/order').status_code == 200\n"
        "    assert Item.objects.count() == 2\n"
        "@pytest.mark.django_db(transaction=True)\n"
        "def test_another(client, transactional_db):\n"
        "    assert client.get('/order').status_code == 200\n"
        "    assert Item.objects.count() == 1\n"
        "    assert _orders() == ['test_orders', 'tea']\n"
    )

    text = run("-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:xdist")

    assert "2 passed" in text
    assert _test_databases(database) == set()
