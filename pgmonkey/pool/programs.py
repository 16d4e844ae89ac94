"""Run a program for its output: bounded in time and size, and killed with its children."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from pgmonkey.pool.clock import monotonic

#: How many bytes of its standard error are kept: the end, in which no secret is cut.
_LAST_ERRORS: Final = 128 * 1024
_PIECE: Final = 65536
#: How often to look whether the program has ended: a child of it may keep its output open.
_LOOK: Final = 0.05


class Ended(NamedTuple):
    """What became of a program.

    Args:
        code: Its exit code, negative for a signal; `None` if it was killed because of its time or
            the size of its output.
        output: Its standard output.
        errors: The end of its standard error.
    """

    code: int | None
    output: bytes
    errors: bytes

    def __repr__(self) -> str:
        return f"<Ended {self.code}>"  # the output is a secret


def run(
    arguments: Sequence[str],
    directory: str,
    *,
    environment: Mapping[str, str],
    timeout: float,
    limit: int,
) -> Ended:
    """Run a program without a shell, and without input.

    Args:
        arguments: The program, found in PATH, and its arguments.
        directory: Where it runs.
        environment: Its variables, all of them.
        timeout: Seconds after which it is killed, with the children that it has.
        limit: Bytes of output after which it is killed.

    Raises:
        OSError: it cannot be started.
    """
    deadline = monotonic() + timeout
    process = subprocess.Popen(
        arguments,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a group of its own, which is killed as a whole
    )
    try:
        output, errors = _collect(process, deadline, limit)
        code = process.returncode
    finally:
        if process.returncode is None:
            # Not waited for yet, so the number of the group is still its own.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()
    return Ended(code, output, errors)


def _collect(process: subprocess.Popen[bytes], deadline: float, limit: int) -> tuple[bytes, bytes]:
    """Return output and errors: all if the program ends in time, else what there is."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = process.stdout.fileno(), process.stderr.fileno()
    read = {output: b"", errors: b""}
    with selectors.DefaultSelector() as selector:
        for pipe in read:
            os.set_blocking(pipe, False)
            selector.register(pipe, selectors.EVENT_READ)
        while True:
            left = max(0.0, deadline - monotonic())
            # Looked at before the last reads: what it has written is there by then.
            ended = process.poll() is not None
            ready = selector.select(0 if ended else min(left, _LOOK))
            for key, _ in ready:
                piece = os.read(key.fd, _PIECE)
                read[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
            read[errors] = read[errors][-_LAST_ERRORS:]
            if len(read[output]) > limit or (ended and not ready) or (left == 0 and not ended):
                return read[output], read[errors]
            if not selector.get_map():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(left)
