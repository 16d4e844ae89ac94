"""A call that stands still before any line of ours that a test chooses."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pgmonkey

_PATIENCE = 20.0
_PACKAGE = str(Path(pgmonkey.__file__).parent)
#: Files whose functions share nothing with another thread: a call that stands still in them is in no
#: other state than before them. They have half of the lines of a call that reads a file.
_PURE = tuple(
    str(Path(_PACKAGE, "config", name))
    for name in ("libpq.py", "redaction.py", "rules.py", "settings.py", "yaml_reader.py")
)


class Stopped:
    """Run a call in a thread, and let it, or a thread that it starts, stand still before one line.

    With every number in turn, a test meets every moment of the call. Only lines of the package count,
    without those of pure functions.

    Args:
        call: What to call.
        number: The line, counted from the first one of the package that it runs.
    """

    def __init__(self, call: Callable[[], object], number: int) -> None:
        self._call = call
        self._left = number
        #: What it returned, and what it raised.
        self.got: Any = None
        self.error: BaseException | None = None
        #: Whether it had so many lines.
        self.stood_still = False
        self._reached, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Return when it stands still, or has ended."""
        self._thread.start()
        assert self._reached.wait(_PATIENCE)

    def finish(self) -> None:
        """Let it run to its end."""
        self._go_on.set()
        self._thread.join()

    def _run(self) -> None:
        threading.settrace(self._trace)  # for the threads that it starts
        sys.settrace(self._trace)
        try:
            self.got = self._call()
        except BaseException as error:
            self.error = error
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self._reached.set()

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(_PACKAGE) or path in _PURE:
            return None
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self.stood_still = True
                self._reached.set()
                self._go_on.wait(_PATIENCE)
        return self._trace
