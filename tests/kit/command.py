"""The command line as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit.canary import Canary
from tests.kit.process import Process, end

_PATIENCE = 30.0
_ROOT = Path(__file__).parents[2]


def command(*arguments: object) -> list[str]:
    """Return the argument list of a `pgmonkey` command; warnings of ours are errors in it."""
    return [sys.executable, "-W", "error", "-m", "pgmonkey", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """Return a small environment: none of the caller's PG* variables, no colours."""
    kept = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PYTHONPATH": str(_ROOT),
        "PYTHONDEVMODE": "",
        **more,
    }


@dataclass(frozen=True)
class Finished:
    """What a command came to."""

    code: int
    out: str
    err: str


def run(
    *arguments: object,
    canary: Canary,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    program: list[str] | None = None,
) -> Finished:
    """Run a command to its end. It shows no secret and no traceback, whatever happens."""
    done = subprocess.run(
        program or command(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**(env or {})),
        timeout=_PATIENCE,
        check=False,
    )
    canary.check(done.stdout, "standard output")
    canary.check(done.stderr, "standard error")
    assert "Traceback" not in done.stderr, done.stderr
    return Finished(done.returncode, done.stdout, done.stderr)


class Running(Process):
    """A command that goes on until it is told to stop. Its whole output is in one text."""

    def __init__(
        self,
        *arguments: object,
        canary: Canary,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        program: Callable[..., list[str]] = command,
        **identity: Any,
    ) -> None:
        super().__init__(
            program(*arguments),
            canary=canary,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=environment(**(env or {})),
            **identity,
        )

    def __exit__(self, *exception: object) -> None:
        end(self.process, signal.SIGKILL)
        text = self.text
        super().__exit__(*exception)
        assert "Traceback" not in text, text

    def wait_for(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """Wait until the output matches."""
        match = self.wait_until(
            lambda: re.search(pattern, self.text), timeout, f"output matches {pattern!r}"
        )
        assert match is not None
        return match
