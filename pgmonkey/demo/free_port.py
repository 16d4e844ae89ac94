"""A free port on loopback, for a server that is stopped and started again."""

from __future__ import annotations

import os
import random
import socket
from typing import Final

# Below the ports that Linux and macOS give to outgoing connections: while the server is stopped
# for a moment, no client socket can take its port.
_PORTS: Final = range(15_000, 30_000)
# Processes side by side look in different parts, so that one does not take the port of a server
# that another has stopped for a moment.
_PARTS: Final = 30


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on. It is not reserved: be ready to retry.

    Raises:
        OSError: None was found.
    """
    part = _PORTS[os.getpid() % _PARTS :: _PARTS]
    for port in random.SystemRandom().sample(part, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {_PORTS.start} and {_PORTS.stop}")
