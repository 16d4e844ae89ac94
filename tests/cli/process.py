"""The command line as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.kit import Canary, eventually

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


class Running:
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
        self._canary = canary
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            program(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            cwd=cwd,
            env=environment(**(env or {})),
            **identity,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(_PATIENCE)
        text = self.text
        self._output.close()
        self._canary.check(text, "the output of the process")
        print(text)  # captured: only a failed test shows it
        assert "Traceback" not in text, text

    @property
    def text(self) -> str:
        """All that was printed so far."""
        size = self._output.seek(0, os.SEEK_END)
        return os.pread(self._output.fileno(), size, 0).decode()

    def wait_for(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """Wait until the output matches."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.text)
            if match is None and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.text}")
            return match

        match = eventually(found, timeout, f"output matches {pattern!r}")
        assert match is not None
        return match

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def code(self, timeout: float = 10.0) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout)
