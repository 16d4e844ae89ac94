"""The quickstart, followed word by word: every file saved, every command run, every line seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from pgmonkey.demo.server import wheel_binaries
from tests.docs.environment import shim
from tests.docs.snippets import ROOT
from tests.kit import Canary
from tests.kit.process import Process
from tests.kit.server import PostgresServer

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PROGRAM = "python shop.py\n"
#: Where the page says that it is followed.
_HOME = "/home/you/shop"


def fences() -> list[tuple[str, str]]:
    """Return language and text of each fence, from the first one after the installation on."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    followed = page.partition("## Make a database")[2].partition("## What else there is")[0]
    return _FENCE.findall(followed)


class Reader:
    """Somebody who does what the page says, in an empty directory.

    Args:
        directory: Where it is done.
        server: The PostgreSQL of the reader, who is its administrator.
        stack: Ends what goes on.
    """

    def __init__(self, directory: Path, server: PostgresServer, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self._program: Process | None = None
        self._seen = 0
        programs = [shim(directory), Path(sys.executable).parent, wheel_binaries()]
        self._variables = {
            "PATH": os.pathsep.join([*map(str, programs), os.defpath]),
            "PYTHONPATH": str(ROOT),
            "HOME": str(directory),
            "PGHOST": server.host,
            "PGPORT": str(server.port),
            "PGUSER": server.superuser,
            "PGPASSWORD": server.superuser_password,
        }

    def follow(self, language: str, text: str) -> None:
        """Do what one fence says."""
        name = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if name:
            (self.directory / name[1]).write_text(text, encoding="utf-8")
        elif text == _PROGRAM:
            self._program = self._stack.enter_context(
                Process(["bash", "-c", f"exec {text}"], env=self._variables, cwd=self.directory)
            )
        elif language == "shell":
            self._run(text)
        elif language == "console":
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                assert pattern(output).search(self._run(command, ends_well=False))
        else:
            self._see(text)

    def _run(self, command: str, *, ends_well: bool = True) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            env=self._variables,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
            check=False,
        )
        assert not ends_well or done.returncode == 0, done.stdout
        return done.stdout

    def _see(self, text: str) -> None:
        """Wait until the program prints these lines, after those that were seen before."""
        program = self._program
        assert program is not None
        wanted = pattern(text.replace(_HOME, str(self.directory)))
        found = program.wait_until(
            lambda: wanted.search(program.text, self._seen), 20, f"the program prints {text!r}"
        )
        assert found is not None
        self._seen = found.end()


def pattern(text: str) -> re.Pattern[str]:
    """Match these lines in this order, with any numbers, and with other lines between them."""
    lines = [re.sub(r"\d+", r"\\d+", re.escape(line)) for line in text.splitlines()]
    return re.compile(r"(?:^.*\n)*?".join(f"^{line}\n" for line in lines), re.MULTILINE)


def test_the_quickstart_works_word_by_word(
    tmp_path: Path, server: PostgresServer, canary: Canary
) -> None:
    """Role, secrets, file and program; a rotated password, a typo and a wrong port, as it says."""
    steps = fences()
    assert len(steps) > 10
    try:
        with ExitStack() as stack:
            reader = Reader(tmp_path, server, stack)
            for language, text in steps:
                reader.follow(language, text)
    finally:
        server.drop_database("orders")
        server.drop_role("orders_app")
