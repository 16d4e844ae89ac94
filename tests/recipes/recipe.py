"""The recipes of the documentation, as the programs that they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docs.snippets import ROOT, parse
from tests.kit import TemporaryDatabase

DOCS = ROOT / "docs"
#: Seconds from the last thing that a program prints to its end: less than the 5 that psycopg_pool waits
#: for a thread that hangs. It takes 0.4 s, and up to 3 beside the other tests on a busy machine.
ENDS_WITHIN = 4.0
# In development mode asyncio reports each step that took a tenth of a second: the machine was busy.
_SLOW_STEP = re.compile(r"^Executing <.*> took [\d.]+ seconds\n", re.MULTILINE)


def recipe(page: str, heading: str, language: str = "python", number: int = 0) -> str:
    """Return a fence of a page of recipes, as it stands there.

    Args:
        page: The page, without its suffix; with a directory, one of docs, such as `from-4.0/flask`.
        heading: The heading that it stands under.
        language: The language of the fence.
        number: Which one of several.
    """
    path = f"{page}.md" if "/" in page else f"recipes/{page}.md"
    text = (DOCS / path).read_text(encoding="utf-8")
    pattern = rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)"
    section = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"{page}.md has no heading {heading!r}"
    return [one.text for one in parse(section[1], page) if one.language == language][number]


@dataclass(frozen=True)
class Ended:
    """What became of a program.

    Args:
        code: Its exit code.
        output: The lines of its standard output.
        errors: Its standard error.
        lingered: Seconds from its last line to its end.
    """

    code: int
    output: list[str]
    errors: str
    lingered: float


def run(
    program: str,
    directory: Path,
    *,
    environ: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = ("-X", "dev", "-W", "error"),
    meanwhile: Callable[[subprocess.Popen[str]], object] = lambda _process: None,
) -> Ended:
    """Run a program to its end, with every warning an error.

    Args:
        program: Its text.
        directory: Where it runs, and is written to.
        environ: What it finds in the environment, beside what Python needs.
        arguments: Those of Python.
        meanwhile: Called once it has been started.
    """
    path = directory / "app.py"
    path.write_text(program, encoding="utf-8")
    with (
        (directory / "stderr.txt").open("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, "-u", *arguments, str(path)],
            cwd=directory,
            env=plain_environment() | dict(environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            meanwhile(process)
            output = []
            last = time.monotonic()
            for line in process.stdout:
                last = time.monotonic()
                output.append(line.rstrip("\n"))
            code = process.wait()
            lingered = time.monotonic() - last
        finally:
            process.kill()
        errors.seek(0)
        return Ended(code, output, _SLOW_STEP.sub("", errors.read()), lingered)


def plain_environment() -> dict[str, str]:
    """Return what a program needs from the environment, without any `PG*`."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    return kept | {"PYTHONPATH": str(ROOT)}


def environ(database: TemporaryDatabase) -> dict[str, str]:
    """Return the variables that the recipes refer to, for a database that exists."""
    return {
        "PGUSER": database.user,
        "PGPASSWORD": database.password,
        "PGHOST": database.host,
        "PGPORT": str(database.port),
        "PGDATABASE": database.name,
    }


def leave_traces(database: TemporaryDatabase) -> None:
    """Make every query of the recipes write a row, so that their commits can be seen.

    `users` and `orders` are views whose reading calls a function that writes; `version()` and
    `now()` are functions of ours, where `search_path` puts them before PostgreSQL's own.
    """
    with database.connect() as conn:
        conn.execute(
            """
            CREATE TABLE trace (number serial, what text);
            CREATE FUNCTION traced(what text) RETURNS text LANGUAGE plpgsql VOLATILE AS
                $$ BEGIN INSERT INTO trace (what) VALUES (what); RETURN what; END $$;
            CREATE VIEW users AS SELECT 1 AS id, public.traced('users') AS name;
            CREATE VIEW orders AS
                SELECT 1 AS id, 2 AS total, public.traced('orders') AS note OFFSET 0;
            CREATE FUNCTION version() RETURNS text LANGUAGE sql VOLATILE AS
                $$ SELECT public.traced('version') $$;
            CREATE FUNCTION now() RETURNS text LANGUAGE sql VOLATILE AS
                $$ SELECT public.traced('now') $$;
            """
        )
        conn.execute(
            f'ALTER ROLE "{database.user}" IN DATABASE "{database.name}"'
            " SET search_path = public, pg_catalog"
        )
    database.disconnect()


def traces(database: TemporaryDatabase) -> list[str]:
    """Return what was committed, in its order."""
    return [what for (what,) in database.execute("SELECT what FROM public.trace ORDER BY number")]
