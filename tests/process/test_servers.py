"""Servers that fork: gunicorn with `--preload`, Celery's prefork, multiprocessing. No code is needed."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pgmonkey import Registry
from tests.kit import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume

_ROOT = Path(__file__).parents[2]


@contextmanager
def server(
    directory: Path, canary: Canary, *command: object
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a server with its children; end it, and look at what it has printed."""
    output = directory / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            cwd=directory,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{_ROOT}"},
        )
    try:
        yield process, output
    except BaseException:
        print(output.read_text())
        raise
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(15)
        finally:
            for left in (process, *children):
                if psutil.pid_exists(left.pid) and left is not process:
                    left.kill()
            if process.poll() is None:
                process.kill()
                process.wait()
    text = output.read_text()
    canary.check(text, "the output of the server")
    assert "Traceback" not in text, text


APPLICATION = """
import os
from pgmonkey import Registry

registry = Registry({directory!r}, metrics=None)
with registry.get("orders") as connection:  # the parent opens the pool before it forks
    connection.execute("SELECT 1")
parent = os.getpid()

def app(environ, start_response):
    with registry.get("orders") as connection:
        number = environ["PATH_INFO"].strip("/")
        row = connection.execute(
            "SELECT %s, pg_backend_pid(), current_user, pg_sleep(0.01)", [number]
        ).fetchone()
    start_response("200 OK", [("Content-Type", "text/plain")])
    words = (row[0], row[1], os.getpid(), os.getpid() != parent)
    return [" ".join(map(str, words)).encode()]
"""


def test_gunicorn_with_preload_gives_each_worker_connections_of_its_own(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    canary: Canary,
    tmp_path: Path,
) -> None:
    """Three workers, forked from a parent with an open pool, answer right; a rotation reaches all."""
    registry_dir.declare(
        "orders", database, volume=volume, pool_settings={"min_size": 1, "max_size": 2}
    )
    (tmp_path / "application.py").write_text(APPLICATION.format(directory=str(registry_dir)))
    with server(
        tmp_path,
        canary,
        "gunicorn",
        "--preload",
        "--workers=3",
        "--threads=2",
        "--bind=127.0.0.1:0",
        "--no-control-socket",
        "application:app",
    ) as (_process, output):
        port = eventually(lambda: _port(output), 20, "gunicorn listens")

        def ask(number: int) -> tuple[int, int, int, bool]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("GET", f"/{number}")
                words = connection.getresponse().read().decode().split()
            finally:
                connection.close()
            return int(words[0]), int(words[1]), int(words[2]), words[3] == "True"

        seen: dict[int, set[int]] = {}

        def ask_all(first: int) -> None:
            with ThreadPoolExecutor(8) as threads:
                answers = list(threads.map(ask, range(first, first + 120)))
            assert [answer[0] for answer in answers] == list(range(first, first + 120))
            for _, backend, worker, is_child in answers:
                assert is_child
                seen.setdefault(worker, set()).add(backend)

        ask_all(0)
        eventually(lambda: len(seen) == 3 or ask_all(1000), 20, "all three workers have answered")
        backends = [pid for pids in seen.values() for pid in pids]
        assert len(backends) == len(set(backends)), "no backend serves two processes"

        database.rotate()
        write_credentials(volume, database)
        database.terminate_backends()  # a worker that has not seen the new password cannot go on
        seen.clear()
        eventually(lambda: _answers(ask), 20, "the workers answer with the new password")
        ask_all(2000)
    eventually(lambda: database.backends() == [], 5, "nothing stays connected")


def _answers(ask: Any) -> bool:
    try:
        return all(ask(number)[0] == number for number in range(24))
    except (ValueError, IndexError, OSError):
        return False


def _port(output: Path) -> int:
    text = output.read_text()
    _, found, rest = text.partition("Listening at: http://127.0.0.1:")
    return int(rest.split()[0]) if found else 0


TASKS = """
import os
from celery import Celery
from pgmonkey import Registry

app = Celery(
    "tasks",
    broker_url="filesystem://",
    broker_transport_options={{
        "data_folder_in": {queue!r}, "data_folder_out": {queue!r}, "polling_interval": 0.05,
    }},
    broker_connection_retry_on_startup=False,
    worker_hijack_root_logger=False,
    task_ignore_result=True,
)
registry = Registry({directory!r}, metrics=None)
with registry.get("orders") as connection:
    connection.execute("SELECT 1")
parent = os.getpid()

@app.task(name="work")
def work(number):
    with registry.get("orders") as connection:
        connection.execute(
            "INSERT INTO rows SELECT %s, pg_backend_pid(), %s, %s FROM pg_sleep(0.02)",
            [number, os.getpid(), os.getpid() != parent],
        )
"""


def test_celery_with_prefork_gives_each_child_connections_of_its_own(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
    tmp_path: Path,
) -> None:
    """A module that opens its pool at import works in every child: all tasks end, on own backends."""
    database.execute("CREATE TABLE public.rows (id int, backend int, pid int, child bool)")
    database.execute(f'GRANT ALL ON public.rows TO "{database.user}"')
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 2})
    queue = tmp_path / "queue"
    queue.mkdir()
    (tmp_path / "tasks.py").write_text(TASKS.format(directory=str(registry_dir), queue=str(queue)))
    enqueue = "import tasks\nfor number in range(60): tasks.work.delay(number)\nprint('sent')\n"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{_ROOT}"}
    sent = subprocess.run(
        [sys.executable, "-c", enqueue],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment,
    )
    assert sent.stdout == "sent\n", sent.stderr
    with server(
        tmp_path,
        canary,
        "celery",
        "--app=tasks",
        "worker",
        "--pool=prefork",
        "--concurrency=3",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
    ):
        count = "SELECT count(DISTINCT id) FROM public.rows"
        eventually(lambda: database.execute(count) == [(60,)], 40, "every task has run")
        rows = database.execute("SELECT backend, pid, child FROM public.rows")
    assert all(child for _, _, child in rows)
    owners: dict[int, set[int]] = {}
    for backend, pid, _ in rows:
        owners.setdefault(backend, set()).add(pid)
    assert all(len(pids) == 1 for pids in owners.values()), "no backend serves two processes"
    eventually(lambda: database.backends() == [], 5, "nothing stays connected")


_registry: Registry | None = None


def _work(number: int) -> tuple[int, int, int]:
    assert _registry is not None
    with _registry.get("orders") as connection:
        row = connection.execute("SELECT %s::int, pg_backend_pid()", [number]).fetchone()
    assert row is not None
    return row[0], row[1], os.getpid()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_pool_of_forked_processes_uses_the_registry_that_it_was_forked_with(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """`multiprocessing` with fork: each child has its own backends, and the parent keeps its own."""
    global _registry
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 2})
    with Registry(registry_dir, metrics=None) as registry:
        _registry = registry
        try:
            before = _work(0)
            context = multiprocessing.get_context("fork")
            with context.Pool(3) as pool:
                results = pool.map(_work, range(60), chunksize=4)
                pool.close()
                pool.join()
            assert [result[0] for result in results] == list(range(60))
            owners: dict[int, set[int]] = {}
            for _, backend, pid in results:
                owners.setdefault(backend, set()).add(pid)
            assert all(len(pids) == 1 for pids in owners.values())
            assert before[1] not in owners
            assert _work(1)[1] == before[1]
        finally:
            _registry = None


def test_a_fork_is_reported_by_the_child(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """`fork.detected` says in the child's log that it starts with connections of its own."""
    registry_dir.declare("orders", database)
    log = tmp_path / "log"
    program = (
        "import logging, os, sys\n"
        "logging.basicConfig(filename=sys.argv[2], level='INFO')\n"
        "from pgmonkey import Registry\n"
        "registry = Registry(sys.argv[1], metrics=None)\n"
        "handle = registry.get('orders')\n"
        "handle.open()\n"
        "if (child := os.fork()) == 0:\n"
        "    with handle: pass\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "registry.close()\n"
    )
    done = subprocess.run(
        # Python 3.12 warns of every fork in a process with threads, whatever the threads are.
        [
            *(sys.executable, "-W", "ignore:This process:DeprecationWarning"),
            *("-c", program, str(registry_dir), str(log)),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert log.read_text().count("fork.detected") == 1
