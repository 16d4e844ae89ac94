"""Processes of a test: programs that end with it, forked children, and interrupts."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self, TypeVar

from tests.kit.canary import Canary
from tests.kit.eventually import eventually

T = TypeVar("T")

_PATIENCE = 20.0
#: Seconds for which a fork waits at most for threads that are ending.
_ENDING = 0.3
#: Threads that are not Python's own and for which a fork has waited too long: they stay. Each worker of
#: pytest-xdist has one.
_staying: set[int] = set()


class Process:
    """Run a program until it or the test ends, and check that its output has no secret.

    Args:
        command: The program and its arguments.
        canary: Its secrets must not be in the output; `None` for a program that knows none.
        stdout, stderr: Where its output goes instead of to `text`.
        options: More arguments of `subprocess.Popen`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        canary: Canary | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        **options: Any,
    ) -> None:
        self._canary = canary
        self._output = Output()
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdout=self._output.file if stdout is None else stdout,
            stderr=self._output.file if stderr is None else stderr,
            **options,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        end(self.process, signal.SIGKILL)
        if self.process.stdin is not None:
            self.process.stdin.close()
        text = self.text
        self._output.file.close()
        if self._canary is not None:
            self._canary.check(text, "the output of the process")
        print(text)  # captured: only a failed test shows it

    @property
    def text(self) -> str:
        """The output so far."""
        return self._output.text

    def wait_until(self, look: Callable[[], T], timeout: float, what: str) -> T:
        """Wait until `look` returns something true; fail at once if the process ends before.

        Args:
            look: Called again and again.
            timeout: Seconds.
            what: The awaited condition, for the message of the failure.
        """

        def found() -> T:
            ended = self.process.poll()
            value = look()  # after the end, the last output still counts
            if not value and ended is not None:
                raise AssertionError(f"ended with {ended}:\n{self.text}")
            return value

        return eventually(found, timeout, what)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def code(self, timeout: float = _PATIENCE) -> int:
        """Wait for the end and return the exit code; negative for a signal."""
        return self.process.wait(timeout)


class Output:
    """A file without a name that a process writes to and a test reads meanwhile."""

    def __init__(self) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by its owner

    @property
    def text(self) -> str:
        """The text so far."""
        size = self.file.seek(0, os.SEEK_END)
        return os.pread(self.file.fileno(), size, 0).decode("utf-8", "replace")


def end(process: subprocess.Popen[Any], number: signal.Signals = signal.SIGTERM) -> None:
    """End a process if it runs: by a signal, and by SIGKILL after 20 s."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _let_threads_end() -> None:
    """Wait a moment until the threads that have ended are gone for the system, too.

    The last thing a thread does is outside of Python: it takes a lock of OpenSSL, if it has used that.
    A child that is forked in this moment inherits it, held for ever. Before Python 3.13 `join` does
    not wait for that. Threads that are not Python's own, as those of watchfiles, look the same: each
    is waited for once.
    """
    until = time.monotonic() + _ENDING
    while unknown := _unknown_threads():
        if time.monotonic() > until:
            _staying.update(unknown)
            return
        time.sleep(0.001)


def _unknown_threads() -> set[int]:
    known = {thread.native_id for thread in threading.enumerate()}
    return {int(one.name) for one in Path("/proc/self/task").iterdir()} - known - _staying


def in_a_child(act: Callable[[], Any], seconds: int = 20) -> Any:
    """Run a function in a forked child and return its result, or raise what it raised."""
    _let_threads_end()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        # A child that hangs says where and ends, and its pipe with it. A signal handler could not run.
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            try:
                result: Any = (True, act())
            except BaseException:
                result = (False, traceback.format_exc())
            os.write(writing, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        received = pipe.read()
    os.waitpid(child, 0)
    assert received, "the child ended without a result: it hung, or it crashed"
    good, result = pickle.loads(received)
    assert good, result
    return result


@contextmanager
def interrupted_after(seconds: float, error: type[BaseException]) -> Iterator[None]:
    """Raise in the main thread, from a signal handler, as Ctrl-C does."""

    def throw(_number: int, _frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, throw)
    # pytest-timeout watches over this test with the same timer.
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
