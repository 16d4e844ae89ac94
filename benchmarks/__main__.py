"""Run the benchmarks, on one CPU, and print the table."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import checkout, database_down, loading, manager, rotation, scrape, starting
from benchmarks.comparison import table

BENCHMARKS = {
    "loading": loading.run,
    "checkout": checkout.run,
    "manager": manager.run,
    "starting": starting.run,
    "scrape": scrape.run,
    "rotation": rotation.run,
    "database_down": database_down.run,
}


def main() -> None:
    """Run what the arguments name, or all; keep the figures in build/bench.json."""
    if hasattr(os, "sched_setaffinity"):
        # Client and server on one CPU: a wake-up across CPUs costs more than what is measured.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    results = [one for name in sys.argv[1:] or BENCHMARKS for one in BENCHMARKS[name]()]
    if results:
        print(table(results))
    kept = Path("build", "bench.json")
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps([asdict(one) for one in results], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
