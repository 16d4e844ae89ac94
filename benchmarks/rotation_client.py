"""One client of the rotation benchmark, in a process of its own: a load, and a way to rotate.

Run by `benchmarks.rotation`, with another interpreter for pgmonkey 4.0. Each line on standard input is
one rotation that has happened on the server and in the file of the password; the answer is a line.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

THREADS = 12
SIZE = 4

Borrow = Callable[[], AbstractContextManager[Any]]
SELECT = "SELECT 1 FROM pg_sleep(0.002)"


def ours(directory: Path, _arguments: dict[str, Any]) -> tuple[Borrow, Callable[[], object]]:
    from pgmonkey import Registry

    registry = Registry(directory / "registry.d", watch=False, metrics=None)
    handle = registry.get("orders")
    return lambda: handle, registry.reload


def naive(directory: Path, arguments: dict[str, Any]) -> tuple[Borrow, Callable[[], object]]:
    from psycopg_pool import ConnectionPool

    def make() -> ConnectionPool[Any]:
        password = (directory / "password").read_text()
        return ConnectionPool(
            kwargs={**arguments, "password": password}, min_size=1, max_size=SIZE, open=True
        )

    current = [make()]

    def rotate() -> None:
        old, current[0] = current[0], make()
        old.close()

    return lambda: current[0].connection(), rotate  # noqa: PLW0108 - the pool of that moment


def drain(directory: Path, arguments: dict[str, Any]) -> tuple[Borrow, Callable[[], object]]:
    from psycopg_pool import ConnectionPool

    def kwargs() -> dict[str, Any]:
        return {**arguments, "password": (directory / "password").read_text()}

    pool: ConnectionPool[Any] = ConnectionPool(kwargs=kwargs, min_size=1, max_size=SIZE, open=True)
    return pool.connection, pool.drain


def dispose(directory: Path, arguments: dict[str, Any]) -> tuple[Borrow, Callable[[], object]]:
    import psycopg
    import sqlalchemy

    def connect() -> Any:
        return psycopg.connect(**arguments, password=(directory / "password").read_text())

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=connect, pool_size=SIZE, max_overflow=0
    )

    class Raw:
        def __enter__(self) -> Any:
            self.connection = engine.raw_connection()
            return self.connection.driver_connection

        def __exit__(self, *_error: object) -> None:
            self.connection.close()

    return Raw, engine.dispose


def force_reload(
    directory: Path, _arguments: dict[str, Any]
) -> tuple[Borrow, Callable[[], object]]:
    from pgmonkey import PGConnectionManager

    manager = PGConnectionManager()
    path = str(directory / "orders-4.0.yaml")
    return (
        lambda: manager.get_database_connection(path, "pool"),
        lambda: manager.get_database_connection(path, "pool", force_reload=True),
    )


CLIENTS = {
    "ours": ours,
    "naive": naive,
    "drain": drain,
    "dispose": dispose,
    "force_reload": force_reload,
}


def main() -> None:
    name, directory, arguments = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    borrow, rotate = CLIENTS[name](directory, arguments)
    stop = threading.Event()
    done: list[None] = []
    errors: list[str] = []

    def work() -> None:
        while not stop.is_set():
            try:
                with borrow() as connection, connection.cursor() as cursor:
                    cursor.execute(SELECT)
            except Exception as error:  # noqa: BLE001 - every failed query counts
                errors.append(type(error).__name__)
            else:
                done.append(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for _ in sys.stdin:
        try:
            rotate()
        except Exception as error:  # noqa: BLE001 - so does a rotation that fails
            errors.append(f"rotation: {type(error).__name__}")
        print("rotated", flush=True)
    stop.set()
    for thread in threads:
        thread.join(5)
    print(json.dumps({"done": len(done), "errors": Counter(errors)}), flush=True)
    import os

    os._exit(0)  # what others leave running is not what is measured


if __name__ == "__main__":
    main()
