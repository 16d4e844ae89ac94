"""The state of one declared database: what its file says, what is applied, and its reloads."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from pgmonkey.telemetry.status import (
    DatabaseStatus,
    PoolStatus,
    ReloadRecord,
    database_state,
)

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.errors import ConnectError, Problem, Reason
    from pgmonkey.pool.target import Applied
    from pgmonkey.telemetry.status import ProbeStatus

#: Seconds before a failed probe is tried again: the first pause, and the longest ones.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 2.0
_LONGEST_PAUSE_LASTING: Final = 30.0
#: How many reloads of a database are remembered for the status page.
_REMEMBERED: Final = 20


class Rejection(NamedTuple):
    """Why the files of a database are not applied.

    Args:
        problems: The problems of the files, or of the failed probe.
        reason: Why the probe failed; `None` if the files have problems.
    """

    problems: tuple[Problem, ...] = ()
    reason: Reason | None = None


@dataclass(slots=True)
class Entry:
    """Keep the state of one declared database.

    Changed only by the reload that holds `reloading`; may be read at any time.

    Args:
        name: The name of the database.
        applied: The configuration in use, or `None` if the files were never valid.
        rejection: Why the files are not applied, or `None` when they are.
    """

    name: str
    applied: Applied | None = None
    rejection: Rejection | None = None
    #: Whether the file was removed, and no valid one came back.
    removed: bool = False
    #: Whether the server was reached at least once.
    reached: bool = False
    #: Why the last background probe failed, or `None`.
    last_error: ConnectError | None = None
    #: The result of that probe, or `None` before the first one.
    probe: ProbeStatus | None = None
    outcomes: Counter[str] = field(default_factory=Counter)
    #: The last reloads, oldest first.
    history: tuple[ReloadRecord, ...] = ()
    _hashed: tuple[Applied, int] | None = None
    #: The newest configuration in the files, until it is applied.
    wanted: DatabaseConfig | None = None
    #: When `wanted` was found, on the monotonic clock.
    wanted_since: float = 0.0
    #: When a failed probe is due again, on the monotonic clock, and how long the pause was.
    retry_at: float | None = None
    pause: float = 0.0
    # Held while one reload of this database runs, probe included: newer ones wait, and then find
    # that the newest configuration was applied already. No checkout waits for it.
    reloading: threading.Lock = field(default_factory=threading.Lock)
    # Guards `wanted`, `rejection` and `removed`, which a look at the files changes, and the step
    # in which a reload applies what is still wanted. Without it, a reload could undo a removal
    # that came during its probe. Never held while probing.
    deciding: threading.Lock = field(default_factory=threading.Lock)

    @property
    def stale(self) -> bool:
        """Tell whether the files differ from what runs."""
        return self.rejection is not None

    @property
    def declared(self) -> bool:
        """Tell whether a file of this name exists, valid or not."""
        return not self.removed or self.rejection is not None

    @property
    def public_hash(self) -> int:
        """48 bits of the public part of the configuration in use; 0 without one. Computed once."""
        applied = self.applied
        if applied is None or self.removed:
            return 0
        hashed = self._hashed
        if hashed is None or hashed[0] is not applied:
            hashed = self._hashed = (applied, applied.config.public_hash)
        return hashed[1]

    def ended(self, outcome: str, at: float, details: tuple[str, ...] = ()) -> None:
        """Record the result of a reload, with the keys that changed or the problems."""
        version = self.applied.version if self.applied else 0
        record = ReloadRecord(outcome, at, version, details)
        self.history = (*self.history, record)[-_REMEMBERED:]
        self.outcomes[outcome] += 1

    def settle(self) -> None:
        """Record that the files are applied."""
        self.rejection = None
        self.retry_at = None
        self.pause = 0.0

    def postpone(self, now: float, *, lasting: bool) -> float:
        """Plan the next try of a probe that failed, and return the seconds until then.

        `lasting`: only a change of the file or the server helps. Then the pauses grow longer,
        because a server may lock an account that fails too often.
        """
        longest = _LONGEST_PAUSE_LASTING if lasting else _LONGEST_PAUSE
        self.pause = min(max(self.pause * 2, _FIRST_PAUSE), longest)
        pause = self.pause * random.uniform(1.0, 1.2)  # noqa: S311 - jitter: pods must not retry in step
        self.retry_at = now + pause
        return pause

    def status(self, pools: Sequence[PoolStatus]) -> DatabaseStatus:
        """Return the state of the database, with the pools of its handles, as plain values."""
        config = self.applied.config if self.applied else None
        # Why connects fail now: the error of the last probe, else that of a pool's last connect.
        text, reason, hint = None, None, None
        if error := self.last_error:
            text, reason, hint = error.text, error.reason, error.hint
        elif failing := next((pool for pool in pools if pool.last_failure), None):
            text, reason = failing.last_failure, failing.last_failure_reason
            hint = failing.last_failure_hint
        state = None
        if self.declared:
            state = database_state(
                configured=config is not None and not self.removed,
                connect_failed=text is not None,
                stale=self.stale,
                opened=any(pool.opened for pool in pools),
            )
        versions = [pool.version for pool in pools]
        if self.applied:
            versions.append(self.applied.version)
        rejection = self.rejection
        last = self.history[-1] if self.history else None
        return DatabaseStatus(
            name=self.name,
            connection_type=config.connection_type if config else None,
            description=config.description if config else "",
            required=config.required if config else True,
            state=state,
            version=max(versions, default=0),
            stale=self.stale,
            reached=self.reached or any(pool.connects.count for pool in pools),
            reason=rejection.reason if rejection else None,
            last_error=text,
            last_error_reason=reason,
            last_error_hint=hint,
            problems=rejection.problems if rejection else (),
            outcomes=dict(self.outcomes),
            last_reload=last.outcome if last else None,
            last_reload_at=last.at if last else None,
            # Also of a configuration that is not applied yet: the alert is about that one.
            secret_modified=max(
                (
                    modified
                    for one in (config, self.wanted)
                    if one is not None and (modified := one.secret_modified) is not None
                ),
                default=None,
            ),
            config_hash=self.public_hash,
            pools=tuple(pools),
            probe=self.probe,
            redacted=config.redacted if config else dict,
            history=self.history,
        )
