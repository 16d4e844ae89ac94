"""Stop an embedded PostgreSQL and remove its directory when the process that owns it is gone.

`EmbeddedServer` starts this file as a program of its own: `python guard.py DIRECTORY`,
with a pipe as standard input. The pipe closes when the owner ends, however it ends: a normal
exit, an exception, SIGKILL. (The kernel's parent-death signal is no substitute: it comes as soon
as the *thread* that started the server ends, and it removes no files.)

It imports only the standard library, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

_PATIENCE = 10.0  # seconds for PostgreSQL to end by itself before it is killed


def postmaster_pid(data_directory: Path) -> int | None:
    """Return the process id of the server that runs on the data directory, or `None`."""
    try:
        with (data_directory / "postmaster.pid").open(encoding="ascii") as lock:
            pid = int(lock.readline())
        # A killed server leaves its lock file, and by now its number may be somebody else's.
        if Path("/proc/self/cwd").exists():
            return pid if Path(f"/proc/{pid}/cwd").readlink() == data_directory.resolve() else None
    except (OSError, ValueError):
        return None
    return pid if is_running(pid) else None


def is_running(pid: int) -> bool:
    """Say whether a process with this id exists (a zombie does not count where /proc tells)."""
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
    """End PostgreSQL at once; kill it if it does not obey."""
    deadline = time.monotonic() + _PATIENCE
    try:
        os.kill(pid, signal.SIGQUIT)
        while is_running(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.02)
    except ProcessLookupError:
        return


def main(directory: Path) -> None:
    """Wait for the owner's end, then leave nothing behind."""
    # Ctrl-C and a closed terminal are the owner's business; the guard outlives it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    # After an orderly stop the owner has removed the directory already.
    pid = postmaster_pid(directory / "data")
    if pid is not None:
        end(pid)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
