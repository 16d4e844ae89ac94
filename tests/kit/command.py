"""Commands of `pgmonkey`: in a process of their own, as a user runs them, or faster in this one."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pgmonkey.cli.app import app
from pgmonkey.cli.output import run as run_command
from tests.kit.canary import Canary
from tests.kit.process import Process, end

_PATIENCE = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ROOT = Path(__file__).parents[2]


def command(*arguments: object) -> list[str]:
    """Return the argument list of a `pgmonkey` command; warnings of ours are errors in it."""
    return [sys.executable, "-W", "error", "-m", "pgmonkey", *map(str, arguments)]


#: Runs a command, then prints its largest memory so far, in bytes.
_MEASURED = """\
import re, resource, sys
from pathlib import Path
from pgmonkey.cli.app import app
from pgmonkey.cli.output import run
code = run(app, sys.argv[1:])
if sys.platform == "linux":  # what getrusage says begins with the memory of the parent
    print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def measured(*arguments: object) -> list[str]:
    """Return a program that runs a command, and ends its output with its largest memory in bytes."""
    return [sys.executable, "-c", _MEASURED, *map(str, arguments)]


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
    """The exit code and the output of a command."""

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
    """Run a command to its end in a process. It shows no secret and no traceback, whatever happens.

    For signals, streams and the interpreter itself; everything else is faster with `invoke`.
    """
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


def invoke(
    *arguments: object,
    canary: Canary,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command to its end in this process, with the environment that `run` gives it.

    For commands that start no process, handle no signal and configure no log. An unexpected
    exception reaches the test.
    """
    with in_this_process(canary=canary, cwd=cwd, env=env) as streams:
        code = run_command(app, [str(argument) for argument in arguments])
    return Finished(code, *(stream.getvalue() for stream in streams))


@contextmanager
def in_this_process(
    *, canary: Canary, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Run a block as a program of its own would run: directory, environment, standard streams."""
    out, err = io.StringIO(), io.StringIO()
    ours = logging.getLogger("pgmonkey")
    handlers = ours.handlers[:]
    signals = {number: signal.getsignal(number) for number in _SIGNALS}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, environment(**(env or {})), clear=True))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        if cwd is not None:
            stack.enter_context(chdir(cwd))
        try:
            yield out, err
        finally:
            ours.handlers[:] = handlers
            for number, handler in signals.items():
                signal.signal(number, handler)
            canary.check(out.getvalue(), "standard output")
            canary.check(err.getvalue(), "standard error")


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
