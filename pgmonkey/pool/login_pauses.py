"""Do not repeat a refused login at once, in any pool of the process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pgmonkey.pool.connect_failure import ConnectFailure

#: Seconds between attempts after a login that was refused: the first pause, and the longest.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
#: Refused logins of one account that are remembered; the oldest is forgotten.
_MOST_LOGINS: Final = 32


class _Account:
    """Keep which logins of one account were refused, and until when none of them is repeated."""

    __slots__ = ("claimed", "pause", "refused", "until")

    def __init__(self) -> None:
        self.refused: dict[bytes, ConnectFailure] = {}
        self.pause = 0.0
        self.until = 0.0
        #: Whether somebody tries at this moment, after a pause.
        self.claimed = False


class LoginPauses:
    """Space the attempts of logins that a server refuses: it may lock the account.

    An account is a user on a server. A process asks it at most once a second, and less and less
    often, for all of its pools, event loops and background probes together. A login that was
    not refused yet, because a file has changed, is tried at once.
    """

    def __init__(self) -> None:
        self._accounts: dict[bytes, _Account] = {}
        # Guards the accounts. Never held while waiting, nor taken while no login is refused.
        self._lock = threading.Lock()

    def claim(self, account: bytes, login: bytes, now: float) -> ConnectFailure | None:
        """Take the next attempt, or return why there is none at this moment.

        Args:
            account: The digest of server and user.
            login: The digest of all that a connection is made with.
            now: The monotonic clock.

        Returns:
            `None` if the caller may try now; else the failure of the last try.
        """
        if account not in self._accounts:
            return None
        with self._lock:
            known = self._accounts.get(account)
            if known is None or (failure := known.refused.get(login)) is None:
                return None
            if now < known.until:
                return failure
            known.claimed = True
            known.until = now + known.pause  # no other caller tries meanwhile
            return None

    def is_paused(self, account: bytes, login: bytes, now: float) -> bool:
        """Tell whether no attempt would be made at this moment."""
        known = self._accounts.get(account)
        return known is not None and login in known.refused and now < known.until

    def refused(self, account: bytes, login: bytes, failure: ConnectFailure, now: float) -> None:
        """Note a refusal that waiting alone will not mend."""
        with self._lock:
            known = self._accounts.setdefault(account, _Account())
            known.refused[login] = failure
            if len(known.refused) > _MOST_LOGINS:
                del known.refused[next(iter(known.refused))]
            if known.claimed or known.pause == 0.0:  # not one of several that were under way
                known.pause = min(max(known.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            known.claimed = False
            known.until = max(known.until, now + known.pause)

    def accepted(self, account: bytes, login: bytes) -> None:
        """Note that a login works; if it was refused before, the server has changed its mind."""
        if account not in self._accounts:
            return
        with self._lock:
            known = self._accounts.get(account)
            if known is None or known.refused.pop(login, None) is None:
                return
            known.pause = known.until = 0.0
            known.claimed = False
            if not known.refused:
                del self._accounts[account]

    def forget(self) -> None:
        """Take a new lock, in a child process whose parent may have held it."""
        self._lock = threading.Lock()


#: Those of this process: an account does not care which registry asks.
login_pauses: Final = LoginPauses()
os.register_at_fork(after_in_child=login_pauses.forget)
