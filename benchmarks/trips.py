"""Round trips: what a statement costs in a transaction, alone, and prepared, near and far away."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.comparison import Race, Result
from benchmarks.setting import setting
from pgmonkey import Registry
from tests.kit.proxy import ChaosProxy

QUERIES = 20
ROUNDS = 15
STATEMENT = "SELECT relname FROM pg_class WHERE oid = %s"


def run() -> list[Result]:
    """Compare ways to run one statement; print them for each distance."""
    results = []
    with setting() as place, ChaosProxy(place.server.host, place.server.port) as proxy:
        for name, autocommit, prepare in (
            ("transaction", False, "5"),
            ("checked", False, "5"),
            ("autocommit", True, "null"),
            ("prepared", True, "0"),
        ):
            more = f"  prepare_threshold: {prepare}"
            if name == "checked":
                more += "\ncheck_on_checkout: true"
            place.declare(name, "pool", port=proxy.port, autocommit=autocommit, more=more)
        with Registry(place.directory, watch=False, metrics=None) as registry:
            for delay in (0.0, 0.0005, 0.0025):
                proxy.set("delay" if delay else "pass", delay=delay)
                race = Race(
                    {
                        "a transaction: BEGIN, statement, COMMIT": _act(registry, "transaction"),
                        "the same with check_on_checkout": _act(registry, "checked"),
                        "autocommit": _act(registry, "autocommit"),
                        "autocommit, prepared": _act(registry, "prepared"),
                    },
                    rounds=ROUNDS,
                    operations=QUERIES,
                )
                where = f"{delay * 2000:g} ms away" if delay else "on the same machine"
                base = "a transaction: BEGIN, statement, COMMIT"
                print(race.table(f"One statement, the server {where}, through a proxy", base))
                results.append(
                    race.result(f"autocommit / a transaction, {where}", "autocommit", base)
                )
    return results


def _act(registry: Registry, name: str) -> Callable[[], object]:
    handle = registry.get(name)

    def act() -> None:
        for number in range(QUERIES):
            with handle as connection:
                connection.execute(STATEMENT, [number]).fetchone()

    return act
