"""PG* variables never fill or override anything in a registry's database."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psycopg
import pytest
from psycopg import pq

from pgmonkey.config.libpq import keywords
from pgmonkey.config.loader import load_file
from pgmonkey.errors import ConfigError

# A value for each variable that breaks the connection, or shows in it, if libpq heard it.
HOSTILE = {
    "PGPASSWORD": "wrong",
    "PGPASSFILE": "/nonexistent/pgpass",
    "PGCHANNELBINDING": "require",
    "PGCONNECT_TIMEOUT": "soon",
    "PGDATABASE": "no_such_database",
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGCLIENTENCODING": "LATIN1",
    "PGOPTIONS": "-c no_such_setting=1",
    "PGAPPNAME": "evil",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCOMPRESSION": "1",
    "PGSSLCERT": "/nonexistent/cert",
    "PGSSLKEY": "/nonexistent/key",
    "PGSSLCERTMODE": "require",
    "PGSSLROOTCERT": "/nonexistent/root",
    "PGSSLCRL": "/nonexistent/crl",
    "PGSSLCRLDIR": "/nonexistent/crls",
    "PGSSLSNI": "0",
    "PGREQUIREPEER": "nobody",
    "PGREQUIREAUTH": "none",
    "PGMINPROTOCOLVERSION": "9.9",
    "PGMAXPROTOCOLVERSION": "9.9",
    "PGSSLMINPROTOCOLVERSION": "bogus",
    "PGSSLMAXPROTOCOLVERSION": "bogus",
    "PGGSSENCMODE": "require",
    "PGKRBSRVNAME": "evil",
    "PGGSSLIB": "evil",
    "PGGSSDELEGATION": "1",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "bogus",
}
PROGRAM = """
import json, sys, psycopg
from pgmonkey.config.loader import load_file
with psycopg.connect(**load_file(sys.argv[1]).connect_kwargs("normal")) as conn:
    row = conn.execute("SELECT current_user, current_database(), "
        "current_setting('application_name'), current_setting('client_encoding')").fetchone()
print(json.dumps(row))
"""


@pytest.fixture
def file(database, tmp_path):
    """A config file of a real database, without anything that is not needed."""
    path = tmp_path / "orders.yaml"
    (tmp_path / "password").write_text(database.password)
    path.write_text(
        f"connection_settings: {{host: {database.host}, port: {database.port}, user: {database.user}, "
        f"dbname: {database.name}, password: {{from_file: password}}}}"
    )
    return path


def test_every_variable_of_libpq_is_tried_here():
    """A new libpq with a new variable must get a value in this file."""
    known = {option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}
    assert known <= HOSTILE.keys() | {"PGSERVICE"}


def test_a_hostile_environment_changes_nothing(database, file):
    """With every variable set to something harmful, the connection is what the file says."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file)],
        env=os.environ | HOSTILE,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [database.user, database.name, "", "UTF8"]


def test_a_missing_password_is_not_filled(database, file):
    """Neither PGPASSWORD nor a password file gives one to a config that has none."""
    file.write_text(
        f"connection_settings: {{host: {database.host}, port: {database.port}, "
        f"user: {database.user}, dbname: {database.name}}}"
    )
    pgpass = file.with_name("pgpass")
    pgpass.write_text(f"*:*:*:*:{database.password}\n")
    pgpass.chmod(0o600)
    code = (
        "import sys, psycopg\nfrom pgmonkey.config.loader import load_file\ntry:\n"
        "    psycopg.connect(**load_file(sys.argv[1]).connect_kwargs('normal'))\n"
        "except psycopg.OperationalError as error:\n    print('no password supplied' in str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env=os.environ | {"PGPASSWORD": database.password, "PGPASSFILE": str(pgpass)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("variable", ["PGTZ", "PGDATESTYLE", "PGGEQO", "PGSERVICE"])
def test_what_cannot_be_kept_out_is_a_problem(file, monkeypatch, variable):
    """Libpq listens to these whatever it is told."""
    monkeypatch.setenv(variable, "x")
    with pytest.raises(ConfigError) as caught:
        load_file(file)
    (problem,) = caught.value.problems
    assert problem.code == "environment.intrudes"
    assert variable in problem.message
    load_file(file, isolate=False)


def test_with_a_service_every_variable_is_a_problem(tmp_path, monkeypatch):
    """The service must be heard, so nothing else can be passed to drown the environment."""
    path = tmp_path / "orders.yaml"
    path.write_text("connection_settings: {service: orders, port: 5432}")
    assert "host" not in load_file(path).connect_kwargs("normal")
    monkeypatch.setenv("PGPORT", "1")  # the file has its own
    load_file(path)
    monkeypatch.setenv("PGHOST", "db.example")
    with pytest.raises(ConfigError, match="PGHOST is set"):
        load_file(path)


def test_the_older_api_lets_libpq_fill_gaps(database, monkeypatch, tmp_path):
    """As ever: what the file does not say comes from PG* variables."""
    path = tmp_path / "orders.yaml"
    path.write_text(
        f"connection_settings: {{dbname: {database.name}}}\nsync_settings: {{jit: off}}"
    )
    for name, value in {
        "PGHOST": database.host, "PGPORT": str(database.port), "PGUSER": database.user,
        "PGPASSWORD": database.password, "PGOPTIONS": "-c geqo=off", "PGCONNECT_TIMEOUT": "7",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    kwargs = load_file(path, isolate=False).connect_kwargs("normal")
    assert "connect_timeout" not in kwargs
    with psycopg.connect(**kwargs) as conn:
        assert conn.execute("SELECT current_user").fetchone() == (database.user,)
        assert conn.execute("SHOW geqo").fetchone() == ("off",)
        assert conn.execute("SHOW jit").fetchone() == ("off",)


def test_every_keyword_with_a_variable_is_passed_or_watched(file):
    """Nothing is left open: a value for each, except for what is a problem when it is set."""
    given = load_file(file).connect_kwargs("pool").keys()
    open_ones = {k.name for k in keywords().values() if k.variable and k.name not in given}
    assert open_ones == {"service"}
