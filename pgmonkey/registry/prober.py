"""Probe in the background whether each database of a registry can be reached."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Final, Protocol

from pgmonkey.errors import ConnectError, UnknownDatabaseError
from pgmonkey.pool.dialer import Dialer
from pgmonkey.pool.limits import Budget, Gate, Share
from pgmonkey.pool.target import Target
from pgmonkey.pool.usage import Usage
from pgmonkey.registry.entry import Entry
from pgmonkey.telemetry.status import DatabaseStatus, ProbeStatus

#: Seconds before a database that was not reached is probed again, at first.
_FIRST_PAUSE: Final = 1.0
#: How many probes run at once; a slow database holds up one of them.
_WORKERS: Final = 4
_TICK: Final = 0.5  # seconds until a name that came with a reload is noticed
#: Seconds that a probe waits for a connection when the other databases use all that are allowed.
_ROOM: Final = 1.0


class Probed(Protocol):
    """The part of a `Registry` that a `Prober` uses."""

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""

    @property
    def names(self) -> Iterable[str]:
        """Return the names of its databases."""

    def probe(self, name: str) -> DatabaseStatus:
        """Connect to a database once."""


def probe(entry: Entry, budget: Budget) -> None:
    """Connect to a database once, and record in its entry whether its server was reached.

    The connection counts against the budget of all databases.
    """
    if entry.applied is None or entry.removed:
        entry.probe = ProbeStatus(up=False, seconds=0.0)  # nothing to connect with
        return
    config = entry.applied.config
    share = Share(budget, Target(entry.applied), f"{entry.name}/probe")
    gate = Gate(1, Usage(), share)
    dialer = Dialer(config, config.connection_type, gate)
    began = time.monotonic()
    try:
        if (refusal := dialer.refusal()) is not None:
            raise refusal.error(entry.name)
        slot = gate.wait(lambda: False, server=config.server, timeout=_ROOM)
        if slot is None:
            raise ConnectError(
                f"{share.explain()}, so none is left for the probe",
                database=entry.name,
                reason="too_many_connections",
                hint="raise max_connections",
            )
        dialer.dial(slot, probe=True).close()
    except ConnectError as error:
        entry.last_error = error
    else:
        entry.reached = True
        entry.last_error = None
    entry.probe = ProbeStatus(entry.last_error is None, time.monotonic() - began)


class Prober:
    """Probe every database of a registry, a few at a time, in threads of its own.

    A probe makes one connection and closes it. A database that was reached is probed again
    after the interval, one that was not sooner; both with jitter, so that many processes don't
    probe at the same moment. The results are in the status of the registry.

    Args:
        registry: The registry.
        interval: Seconds between two probes of a database that was reached.
    """

    def __init__(self, registry: Probed, interval: float) -> None:
        self._registry = weakref.ref(registry)
        self._interval = interval
        self._due: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._running: set[str] = set()
        # Guards `_due`, `_pauses` and `_running`. Never held while probing.
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def start(self) -> None:
        """Start probing."""
        for number in range(_WORKERS):
            name = f"pgmonkey-probe-{number}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def stop(self) -> None:
        """Start no more probes. One that runs ends by itself, at the latest at its timeout."""
        self._stop.set()

    def _work(self) -> None:
        while not self._stop.is_set():
            registry = self._registry()  # weak: the prober does not keep a registry alive
            if registry is None or registry.closed:
                return
            name, pause = self._take(registry.names)
            if name is None:
                del registry
                self._stop.wait(pause)
                continue
            try:
                probe = registry.probe(name).probe
            except UnknownDatabaseError:
                probe = None  # its file was removed meanwhile
            self._put(name, probe)
            del registry

    def _take(self, names: Iterable[str]) -> tuple[str | None, float]:
        """Return the name to probe now, or the seconds to wait until one is due."""
        now = time.monotonic()
        with self._lock:
            for gone in self._due.keys() - set(names):
                del self._due[gone]
            waiting = [name for name in names if name not in self._running]
            if not waiting:
                return None, _TICK
            name = min(waiting, key=lambda one: self._due.setdefault(one, 0.0))
            pause = self._due[name] - now
            if pause > 0:
                return None, min(pause, _TICK)
            self._running.add(name)
            return name, 0.0

    def _put(self, name: str, probe: ProbeStatus | None) -> None:
        with self._lock:
            self._running.discard(name)
            if probe is None:
                self._due.pop(name, None)
                return
            if probe.up:
                pause = self._interval
                self._pauses.pop(name, None)
            else:
                pause = min(self._pauses.get(name, _FIRST_PAUSE / 2) * 2, self._interval)
                self._pauses[name] = pause
            self._due[name] = time.monotonic() + pause * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
