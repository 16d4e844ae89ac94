"""Small programs in processes of their own, which a test talks to line by line."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.kit import Canary, eventually

_ROOT = Path(__file__).parents[2]


class Program:
    """Run Python code whose `say(...)` the test can wait for; killed at the end if need be.

    Args:
        code: The program; `say(text)` prints a line to the test, `argv` is `sys.argv[1:]`.
        arguments: What it is given.
        canary: What must not show in its output.
        options: Options of the interpreter, such as `-X dev`.
        stdout, stderr: Where its own output goes instead of to the test.
        env: More variables.
        prefix: A command that the interpreter is run by.
        identity: More arguments of `subprocess.Popen`.
    """

    def __init__(
        self,
        code: str,
        *arguments: object,
        canary: Canary,
        options: tuple[str, ...] = (),
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        **identity: Any,
    ) -> None:
        self._canary = canary
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        prelude = (
            "import os, signal, sys\n"
            # Where the tests run in the background of a shell, Ctrl-C is ignored by their children.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"sys.path.insert(0, {str(_ROOT)!r})\n"
            f"def say(*words): os.write({self._said.fileno()},"
            " (' '.join(map(str, words)) + '\\n').encode())\n"
            "argv = sys.argv[1:]\n"
        )
        self.process = subprocess.Popen(
            [
                *prefix,
                sys.executable,
                *options,
                "-c",
                prelude + textwrap.dedent(code),
                *map(str, arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=self._out if stdout is None else stdout,
            stderr=self._out if stderr is None else stderr,
            pass_fds=(self._said.fileno(),),
            env={**os.environ, **(env or {})},
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
        self.process.wait(20)
        assert self.process.stdin is not None
        self.process.stdin.close()
        output = self.output
        self._said.close()
        self._out.close()
        self._canary.check(output, "the output of the process")
        if error is not None:
            print(output)

    @property
    def output(self) -> str:
        """What it printed."""
        return _text(self._out)

    @property
    def said(self) -> list[str]:
        """What it has said to the test."""
        return _text(self._said).splitlines()

    def wait_for(self, line: str, timeout: float = 20.0) -> None:
        """Wait until it says this."""

        def heard() -> bool:
            if line in self.said:
                return True
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.output}")
            return False

        eventually(heard, timeout, f"the program says {line!r}; it said {self.said}")

    def tell(self) -> None:
        """Let its `sys.stdin.readline()` return."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def code(self, timeout: float = 20.0) -> int:
        """Wait for the end and return the exit code; negative for a signal."""
        return self.process.wait(timeout)


def _text(file: IO[Any]) -> str:
    size = file.seek(0, os.SEEK_END)
    return os.pread(file.fileno(), size, 0).decode("utf-8", "replace")
