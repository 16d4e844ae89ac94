"""What systemd learns of the service: the datagrams of sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

_TIMEOUT: Final = 1.0  # seconds in which systemd takes a datagram

_log = logging.getLogger("pgmonkey.service")


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to systemd, if it started this process and waits for them.

    A datagram that cannot be sent is a warning: systemd then acts on its own timeouts.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # An abstract socket: its name begins with a NUL, which no variable can hold.
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_TIMEOUT)
            sender.sendto("\n".join(assignments).encode(), name)
    except OSError as error:
        _log.warning("cannot notify systemd at %s: %s", address, error)


def notify_reloading() -> None:
    """Say that a reload begins; `READY=1` ends it.

    The time tells systemd that the reload answers its signal, and not one before.
    """
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify("RELOADING=1", f"MONOTONIC_USEC={now}")


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return the seconds after which systemd restarts this process if it hears no `WATCHDOG=1`."""
    limit = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for a parent of ours
    return int(limit) / 1_000_000 if limit.isdecimal() and int(limit) else None
