"""Stop an embedded PostgreSQL and remove its directory when the process that owns it ends.

`EmbeddedServer` starts this file as a program: `python guard.py DIRECTORY`, with a pipe as
standard input. The pipe closes when the owner closes the server, or ends in any way: a normal
exit, an exception, SIGKILL. (The kernel's parent-death signal is no substitute: it comes when the
*thread* that started the server ends, and it removes no files.)

It imports only the standard library, so it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

_PATIENCE = 10.0  # seconds for PostgreSQL to end before it is killed, and for its files to go
_PAUSE = 0.02  # seconds between two looks


def postmaster_pid(data_directory: Path) -> int | None:
    """Return the process id of the server that runs on the data directory, or `None`."""
    try:
        with (data_directory / "postmaster.pid").open(encoding="ascii") as lock:
            pid = int(lock.readline())
        # A killed server leaves its lock file; another process may have that id now.
        if Path("/proc/self/cwd").exists():
            return pid if Path(f"/proc/{pid}/cwd").readlink() == data_directory.resolve() else None
    except (OSError, ValueError):
        return None
    return pid if is_running(pid) else None


def is_running(pid: int) -> bool:
    """Tell whether a process with this id exists. Where there is /proc, a zombie does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return stat.rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def end(pid: int) -> None:
    """End PostgreSQL at once; kill it if that takes too long."""
    deadline = time.monotonic() + _PATIENCE
    try:
        os.kill(pid, signal.SIGQUIT)
        while is_running(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(_PAUSE)
    except ProcessLookupError:
        return


def main(directory: Path) -> None:
    """Wait for the owner's end, then stop the server and remove its files."""
    # Ctrl-C and a closed terminal are for the owner; the guard outlives it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    pid = postmaster_pid(directory / "data")
    if pid is not None:
        end(pid)
    # The backends of a killed server may write for another moment.
    deadline = time.monotonic() + _PATIENCE
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(_PAUSE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
