"""Run the benchmarks, on one CPU, and print the table; or compare two runs that were kept."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import (
    checkout,
    csv_files,
    database_down,
    django_requests,
    frameworks,
    instructions,
    loading,
    manager,
    queries,
    rotation,
    scale,
    scrape,
    sqlalchemy_sessions,
    starting,
    timeouts,
    trips,
)
from benchmarks.comparison import Result, table

BENCHMARKS = {
    "checkout": checkout.run,
    "queries": queries.run,
    "frameworks": frameworks.run,
    "trips": trips.run,
    "django_requests": django_requests.run,
    "sqlalchemy_sessions": sqlalchemy_sessions.run,
    "manager": manager.run,
    "loading": loading.run,
    "scale": scale.run,
    "starting": starting.run,
    "scrape": scrape.run,
    "instructions": instructions.run,
    "copy": csv_files.run,
    "rotation": rotation.run,
    "timeouts": timeouts.run,
    "database_down": database_down.run,
}
KEPT = Path("build", "bench.json")
BEFORE = Path("build", "bench-before.json")


def main() -> None:
    """Run what the arguments name, or all; keep the figures in build/bench.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", choices=[[], *BENCHMARKS], help="default: all")
    parser.add_argument(
        "--compare", metavar="FILE", type=Path, help="compare the last run with this one, run none"
    )
    arguments = parser.parse_args()
    if arguments.compare is not None:
        print(_compared(_read(KEPT), _read(arguments.compare)))
        return
    if hasattr(os, "sched_setaffinity"):
        # Client and server on one CPU: a wake-up across CPUs costs more than what is measured.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # Servers are stopped on the way, and each pool says so in its own words: the table says it too.
    logging.getLogger().addHandler(logging.NullHandler())
    results: list[Result] = []
    kept = _read(KEPT)
    for name in arguments.name or BENCHMARKS:
        began = time.monotonic()
        of_name = BENCHMARKS[name]()
        print(f"\n{name}: {time.monotonic() - began:.0f} s", flush=True)
        results += of_name
        kept[name] = [asdict(one) for one in of_name]
    print(f"\n{_machine()}\n\n{table(results)}")
    KEPT.parent.mkdir(exist_ok=True)
    if KEPT.exists():
        shutil.copy(KEPT, BEFORE)
    KEPT.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _machine() -> str:
    load = os.getloadavg()[0]
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs of which one is used,"
        f" Python {platform.python_version()}, load {load:.1f}"
    )


def _read(path: Path) -> dict[str, Any]:
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return kept if isinstance(kept, dict) else {}


def _compared(now: dict[str, Any], then: dict[str, Any]) -> str:
    """Return both runs side by side, and how much each figure changed."""
    before = {one["what"]: one for of_name in then.values() for one in of_name}
    lines = ["| what | then | now | change |", "| --- | --- | --- | --- |"]
    for one in (one for of_name in now.values() for one in of_name):
        old = before.get(one["what"])
        if old is None:
            continue
        change = f"{one['ratio'] / old['ratio'] - 1:+.1%}" if old["ratio"] else ""
        low, high = old["quartiles"]
        noise = "" if low <= one["ratio"] <= high else " beyond the quartiles of then"
        lines.append(
            f"| {one['what']} | {old['ratio']:.3g} | {one['ratio']:.3g} | {change}{noise} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
