"""Passwords that rotate while a process could not look: its first checkouts use the new one."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from typing import Any

import psutil
import pytest

from pgmonkey import Registry
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory, write_credentials
from tests.kit.secret_volume import SecretVolume
from tests.pool.side import FRESH

CLIENTS = 6


def first_checkouts(handle: Any) -> list[str]:
    """Let several clients check out at once; return their errors."""
    errors: list[str] = []

    def work() -> None:
        try:
            with handle.connection(timeout=10) as connection:
                connection.execute("SELECT 1")
        except Exception as error:
            errors.append(str(error))

    async def work_async() -> None:
        try:
            async with handle.connection(timeout=10) as connection:
                await connection.execute("SELECT 1")
        except Exception as error:
            errors.append(str(error))

    async def main() -> None:
        await asyncio.gather(*(work_async() for _ in range(CLIENTS)))
        await handle.close()

    if handle.connection_type.startswith("async"):
        asyncio.run(main())
        return errors
    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def rotate(database: TemporaryDatabase, volume: SecretVolume) -> None:
    database.rotate()
    write_credentials(volume, database)


@pytest.mark.parametrize("connection_type", ["pool", "normal", "async_pool", "async"])
@pytest.mark.parametrize("opened", [True, False], ids=["parent used it", "parent did not"])
def test_a_child_knows_the_password_that_rotated_since_it_was_forked(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    connection_type: str,
    opened: bool,
) -> None:
    """A child that was idle since its fork reads the files before its first connect: no error."""
    registry_dir.declare("orders", database, connection_type, volume=volume)
    with Registry(registry_dir, metrics=None) as registry:
        handle = registry.get("orders")
        if opened:
            assert first_checkouts(handle) == []
        forked_first = Pipe()

        def child() -> list[str]:
            forked_first[1].send("forked")
            assert forked_first[1].poll(20)
            errors = first_checkouts(handle)
            registry.close()
            return errors

        def rotate_behind_its_back() -> None:
            assert forked_first[0].poll(20)
            rotate(database, volume)
            forked_first[0].send("rotated")

        rotates = threading.Thread(target=rotate_behind_its_back)
        rotates.start()
        try:
            assert in_a_child(child) == []
        finally:
            rotates.join()
            for end in forked_first:
                end.close()


@contextmanager
def program(run: Callable[[Connection], None]) -> Iterator[tuple[psutil.Process, Connection]]:
    """Run a function in a forked process; gives the process and the other end of its pipe."""
    mine, its = Pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(50)
            mine.close()
            run(its)
        except BaseException as error:
            its.send([repr(error)])
        finally:
            os._exit(0)
    its.close()
    process = psutil.Process(pid)
    try:
        yield process, mine
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        os.waitpid(pid, 0)
        mine.close()


@pytest.mark.parametrize("connection_type", ["pool", "normal", "async_pool", "async"])
def test_a_process_that_was_paused_knows_the_password_that_rotated_meanwhile(
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    connection_type: str,
) -> None:
    """After SIGSTOP and SIGCONT, or a suspend, clients come before the watcher: no error.

    The server refuses the old password; the files are read before a client hears of that.
    """
    registry_dir.declare("orders", database, connection_type, volume=volume)

    def run(pipe: Connection) -> None:
        with Registry(registry_dir, metrics=None) as registry:
            handle = registry.get("orders")
            assert first_checkouts(handle) == []
            pipe.send("ready")
            assert pipe.recv() == "go"
            pipe.send(first_checkouts(handle))

    with program(run) as (process, pipe):
        assert pipe.poll(20)
        assert pipe.recv() == "ready"
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: process.status() == psutil.STATUS_STOPPED, 10, "it is paused")
        stopped = time.monotonic()
        rotate(database, volume)
        database.terminate_backends()
        # A connection that came back a moment ago is handed out without a look at its socket.
        eventually(lambda: time.monotonic() - stopped > 2 * FRESH, 5, "they are idle")
        pipe.send("go")
        process.send_signal(signal.SIGCONT)
        assert pipe.poll(30)
        assert pipe.recv() == []
