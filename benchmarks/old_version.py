"""The older version, 4.0: it has our package's name, so it runs in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

VERSION = "pgmonkey==4.0.0"


def environment() -> str | None:
    """Return the interpreter of an environment with the older version, made at first use."""
    place = Path("build", "pgmonkey-4.0").absolute()
    python = place / "bin" / "python"
    made = place / ".made"
    if made.exists():
        return str(python)
    try:
        subprocess.run([sys.executable, "-m", "venv", place], check=True, capture_output=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", VERSION, "psycopg[binary]"],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    made.touch()
    return str(python)


class OldVersion:
    """Run one round at a time in a process with the older version, and return its seconds.

    Args:
        file: The database file that it is given.
    """

    def __init__(self, file: Path) -> None:
        python = environment()
        self._process = None
        if python is not None:
            client = Path(__file__).with_name("old_version_client.py")
            self._process = subprocess.Popen(
                [python, client, file],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=file.parent,
            )

    def __bool__(self) -> bool:
        return self._process is not None

    def __call__(self, what: str, times: int) -> float:
        """Let it do something so many times, and return how long all of them took."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, times, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
