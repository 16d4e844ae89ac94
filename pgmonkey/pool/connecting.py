"""When to connect again after a failure. It decides and remembers, and never waits."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from psycopg.conninfo import timeout_from_conninfo

from pgmonkey.pool.clock import monotonic

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.failures import ConnectFailure

#: Seconds between two failed connects of a pool: the first pause, doubled up to the longest.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0
#: The longest pause while the server is full, for a pool without a connection and for one that has
#: some. So the place that one process gives up goes to one that has none.
_LONGEST_PAUSE_WITHOUT: Final = 0.5
_PAUSE_WITH: Final = 2.0
#: Seconds for which it is not reported again that the server is full: while processes share it, each
#: is refused again and again.
_TELL_FULL_AGAIN: Final = 60.0
#: Seconds between two tries of a login that a server refused, and the longest pause, up to which
#: it is doubled between wrong passwords.
_LOGIN_PAUSE: Final = 1.0
_LONGEST_PASSWORD_PAUSE: Final = 30.0
#: How many refused logins of one account are remembered.
_MOST_LOGINS: Final = 32


def connect_timeout(config: DatabaseConfig) -> float:
    """Return the seconds within which a host must answer."""
    # The one in force, of the file or by default. Nothing keeps the secrets beside it.
    return timeout_from_conninfo(config.connect_kwargs("normal"))


class Outage:
    """Remember since when the connects of one pool fail, and how long to pause before the next."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._pause = 0.0
        self._next = 0.0
        self._told = False
        self._told_full_until = 0.0
        #: Why the last connect failed; `None` if it worked.
        self.failure: ConnectFailure | None = None
        # Guards the above: workers, rotations and reloads connect side by side.
        self._lock = threading.Lock()

    def failed(self, failure: ConnectFailure, held: int = 0) -> bool:
        """Note that a connect failed, and tell whether this is to be reported: once per outage.

        Args:
            failure: Why it failed.
            held: How many connections the pool has.
        """
        now = monotonic()
        with self._lock:
            full = failure.reason == "too_many_connections"
            if self._since is None:
                self._since = now
                self._pause = 0.0
                self._told = False
            self.failure = failure
            tells = not self._told and (not full or now >= self._told_full_until)
            if tells:
                self._told = True
                self._told_full_until = now + _TELL_FULL_AGAIN if full else 0.0
            longest = _LONGEST_PAUSE_WITHOUT if full else _LONGEST_PAUSE
            self._pause = min(max(self._pause * 2, _FIRST_PAUSE), longest)
            jitter = random.uniform(0.8, 1.0)  # noqa: S311 - pools must not retry in step
            pause = self._pause * jitter
            if full and held:
                pause = _PAUSE_WITH * random.uniform(0.5, 1.0)  # noqa: S311 - as above
            self._next = now + pause
        return tells

    def ended(self) -> float | None:
        """Note that a connect worked; return the seconds of the outage, if one was reported."""
        with self._lock:
            since, self._since = self._since, None
            self.failure = None
        return None if since is None or not self._told else monotonic() - since

    def retry(self) -> None:
        """Try again at once: the configuration has changed."""
        with self._lock:
            self.failure = None
            self._pause = self._next = 0.0

    def pause_left(self) -> float:
        """Return the seconds to wait before the next connect."""
        return 0.0 if self._since is None else max(0.0, self._next - monotonic())


@dataclass(slots=True)
class _Refused:
    """One refused login: user, password, server, database, and all else that connects."""

    failure: ConnectFailure
    until: float


@dataclass(slots=True)
class _Account:
    """The refused logins of one user at one server."""

    logins: dict[bytes, _Refused] = field(default_factory=dict)
    #: The pause between wrong passwords, until when none is tried, and whether one is tried now.
    pause: float = 0.0
    until: float = 0.0
    trying: bool = False

    def until_when(self, refused: _Refused) -> float:
        """Return when a refused login may be tried again."""
        return self.until if refused.failure.wrong_password else refused.until


class RefusedLogins:
    """Space the tries of logins that a server refuses: of all pools, loops and probes together.

    A refused login is tried again after a second. Wrong passwords of an account, after which a
    server may lock it, are tried less and less often, up to 30 seconds apart. A login that was
    not refused yet, because a file has changed, is tried at once.
    """

    def __init__(self) -> None:
        self._accounts: dict[bytes, _Account] = {}
        # Guards the accounts. Never held while waiting; not taken while no login is refused.
        self._lock = threading.Lock()

    def claim(self, config: DatabaseConfig) -> ConnectFailure | None:
        """Take the next try of a login, or return why there is none at this moment."""
        if not self._accounts:
            return None
        account, login, now = config.account, config.connect_digest, monotonic()
        with self._lock:
            known = self._accounts.get(account)
            if known is None or (refused := known.logins.get(login)) is None:
                return None
            if now < known.until_when(refused):
                return refused.failure
            # No other pool or probe tries meanwhile.
            refused.until = now + _LOGIN_PAUSE
            if refused.failure.wrong_password:
                known.trying = True
                known.until = now + known.pause
            return None

    def paused(self, config: DatabaseConfig) -> ConnectFailure | None:
        """Return why no login would be tried at this moment, without taking a try."""
        if not self._accounts:
            return None
        known = self._accounts.get(config.account)
        if known is None or (refused := known.logins.get(config.connect_digest)) is None:
            return None
        return refused.failure if monotonic() < known.until_when(refused) else None

    def is_refused(self, config: DatabaseConfig) -> bool:
        """Tell whether the server refused a login when it last judged it; a full one does not."""
        known = self._accounts.get(config.account)
        return known is not None and config.connect_digest in known.logins

    def refused(self, config: DatabaseConfig, failure: ConnectFailure) -> None:
        """Note a refusal that waiting does not change."""
        now = monotonic()
        with self._lock:
            known = self._accounts.setdefault(config.account, _Account())
            known.logins[config.connect_digest] = _Refused(failure, now + _LOGIN_PAUSE)
            if len(known.logins) > _MOST_LOGINS:
                del known.logins[next(iter(known.logins))]
            if not failure.wrong_password:
                return
            if known.trying or known.pause == 0.0:  # not one of several that were under way
                known.pause = min(max(known.pause * 2, _LOGIN_PAUSE), _LONGEST_PASSWORD_PAUSE)
            known.trying = False
            known.until = max(known.until, now + known.pause)

    def accepted(self, config: DatabaseConfig) -> None:
        """Note that a login works."""
        if not self._accounts:
            return
        account = config.account
        with self._lock:
            known = self._accounts.get(account)
            if known is None or known.logins.pop(config.connect_digest, None) is None:
                return
            known.pause = known.until = 0.0
            known.trying = False
            if not known.logins:
                del self._accounts[account]

    def reset(self) -> None:
        """Take a new lock, in a child process whose parent may have held it."""
        self._lock = threading.Lock()


#: Those of this process: an account does not care which registry asks.
refused_logins: Final = RefusedLogins()
