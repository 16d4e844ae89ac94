"""Small Python programs as separate processes that exchange lines with a test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kit.canary import Canary
from tests.kit.process import Output, Process

_ROOT = Path(__file__).parents[2]


class Program(Process):
    """Run Python code whose `say(...)` the test can wait for. It is killed when the block ends.

    Args:
        code: The program; `say(text)` prints a line to the test, `argv` is `sys.argv[1:]`.
        arguments: Its arguments.
        canary: Its secrets must not be in the output.
        options: Options of the interpreter, such as `-X dev`.
        env: More variables.
        prefix: A command that runs the interpreter.
        more: More arguments of `Process` and of `subprocess.Popen`.
    """

    def __init__(
        self,
        code: str,
        *arguments: object,
        canary: Canary,
        options: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        **more: Any,
    ) -> None:
        self._said = Output()
        prelude = (
            "import os, signal, sys\n"
            # Where the tests run in the background of a shell, Ctrl-C is ignored by their children.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"sys.path.insert(0, {str(_ROOT)!r})\n"
            f"def say(*words): os.write({self._said.file.fileno()},"
            " (' '.join(map(str, words)) + '\\n').encode())\n"
            "argv = sys.argv[1:]\n"
        )
        super().__init__(
            [
                *prefix,
                sys.executable,
                *options,
                "-c",
                prelude + textwrap.dedent(code),
                *map(str, arguments),
            ],
            canary=canary,
            stdin=subprocess.PIPE,
            pass_fds=(self._said.file.fileno(),),
            env={**os.environ, **(env or {})},
            **more,
        )

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._said.file.close()

    @property
    def said(self) -> list[str]:
        """The lines that it sent to the test."""
        return self._said.text.splitlines()

    def wait_for(self, line: str, timeout: float = 20.0) -> None:
        """Wait until it sends this line."""
        self.wait_until(
            lambda: line in self.said, timeout, f"the program says {line!r}; it said {self.said}"
        )

    def tell(self) -> None:
        """Let its `sys.stdin.readline()` return."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
