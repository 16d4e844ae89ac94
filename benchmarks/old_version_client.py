"""What `benchmarks.old_version` runs, with the interpreter of the older version's environment."""

from __future__ import annotations

import sys
from time import perf_counter

from pgmonkey import PGConnectionManager


def main() -> None:
    path = sys.argv[1]
    manager = PGConnectionManager()
    pool = manager.get_database_connection(path, "pool")

    def checkout() -> None:
        with pool:
            pass

    def select() -> None:
        with pool as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()

    def cached() -> None:
        manager.get_database_connection(path, "pool")

    acts = {"checkout": checkout, "select": select, "cached": cached}
    for line in sys.stdin:
        name, times = line.split()
        act = acts[name]
        began = perf_counter()
        for _ in range(int(times)):
            act()
        print(perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
