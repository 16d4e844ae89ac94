"""Free ports on loopback, for servers that are stopped and started again."""

from __future__ import annotations

import os
import random
import socket
from collections import deque
from typing import Final

# Below the ports that Linux and macOS give to outgoing connections: no client socket takes the
# port of a server that is stopped for a moment.
_PORTS: Final = range(15_000, 30_000)
# Each process looks in its own part, so that it does not take the port of a server that another
# process has stopped for a moment.
_PARTS: Final = 30
# The last ones: a cluster asks for all of its ports before it uses the first.
_given: Final[deque[int]] = deque(maxlen=100)


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free and not one of the last hundred.

    It is not reserved: be ready to retry.

    Raises:
        OSError: None was found.
    """
    part = _PORTS[os.getpid() % _PARTS :: _PARTS]
    for port in random.SystemRandom().sample(part, len(part)):
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.append(port)
        return port
    raise OSError(f"no free port between {_PORTS.start} and {_PORTS.stop}")
