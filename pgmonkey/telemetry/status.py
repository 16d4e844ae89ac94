"""Status records: what runs, as plain values. Metrics, page and command line read only these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from pgmonkey.errors import Problem
from pgmonkey.telemetry.timings import Durations

if TYPE_CHECKING:
    from pgmonkey.errors import Reason

DatabaseState = Literal["failed", "down", "stale", "ready", "idle"]

#: Outcomes of a reload that are counted.
OUTCOMES: Final = ("applied", "rejected", "removed")
#: Every state of a database, the worst first.
STATES: Final[tuple[DatabaseState, ...]] = get_args(DatabaseState)


def database_state(
    *, configured: bool, connect_failed: bool, stale: bool, opened: bool
) -> DatabaseState:
    """Decide the state of a declared database.

    Args:
        configured: Whether a valid configuration is in force.
        connect_failed: Whether the last background probe failed, or the last connect of a pool.
        stale: Whether the files differ from what runs.
        opened: Whether a pool is open in this process.

    Example:
        >>> database_state(configured=True, connect_failed=False, stale=False, opened=True)
        'ready'
    """
    if not configured:
        return "failed"
    if connect_failed:
        return "down"
    if stale:
        return "stale"
    return "ready" if opened else "idle"


class CheckoutStatus(NamedTuple):
    """Describe one checkout that is out: who holds it, since when, and where it was borrowed."""

    holder: str
    seconds: float
    place: str
    #: The calls that led there, innermost first; empty without `leak_stack`.
    stack: tuple[str, ...] = ()


class PoolStatus(NamedTuple):
    """Describe the pools of one handle, all loops and generations together."""

    database: str
    connection_type: str
    version: int
    opened: bool
    idle: int
    used: int
    retired: int
    waiting: int
    min_size: int
    max_size: int
    longest_checkout: float
    requests: int
    queued: int
    errors: Mapping[str, int]
    waits: Durations
    uses: Durations
    connects: Durations
    connect_attempts: int
    connect_failures: Mapping[str, int]
    evicted: Mapping[str, int]
    leaks: int
    last_failure: str | None
    last_failure_reason: Reason | None
    last_failure_hint: str | None
    checkouts: tuple[CheckoutStatus, ...]


class ProbeStatus(NamedTuple):
    """Say what came of the last background probe: whether it got through, and its seconds."""

    up: bool
    seconds: float


class ReloadRecord(NamedTuple):
    """Describe what one reload of a database came to.

    Args:
        outcome: applied, rejected or removed.
        at: Unix time.
        version: The version that was in force afterwards; 0 if there never was one.
        details: The keys that changed, or the problems that it was rejected for.
    """

    outcome: str
    at: float
    version: int
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """Describe one database: what is declared, what runs, and why they differ, if they do.

    `state` is `None` if the file was removed: then only the counters of the database are left.
    """

    name: str
    connection_type: str | None
    description: str
    required: bool
    state: DatabaseState | None
    version: int
    stale: bool
    reached: bool
    reason: Reason | None
    last_error: str | None
    last_error_reason: Reason | None
    last_error_hint: str | None
    problems: tuple[Problem, ...]
    outcomes: Mapping[str, int]
    last_reload: str | None
    last_reload_at: float | None
    secret_modified: float | None
    config_hash: int
    pools: tuple[PoolStatus, ...]
    probe: ProbeStatus | None = None
    #: Gives `config`; a scrape of a thousand databases does not ask.
    redacted: Callable[[], Mapping[str, object]] = field(default=dict, repr=False, compare=False)

    @property
    def config(self) -> Mapping[str, object]:
        """The configuration in force, secrets masked; nothing if there never was one."""
        return self.redacted()

    history: tuple[ReloadRecord, ...] = ()


class RegistryStatus(NamedTuple):
    """Describe a registry. All of it was read without waiting for a database."""

    path: str
    databases: tuple[DatabaseStatus, ...]
    problems: tuple[Problem, ...]
    watched: bool
    watching: bool
    polling: bool
    watcher_errors: int
    last_reload_successful: bool
    last_reload_success_at: float | None
    reload_durations: Durations


def merged_databases(databases: Iterable[DatabaseStatus]) -> list[DatabaseStatus]:
    """Return one record for each name: two registries may declare the same."""
    found: dict[str, DatabaseStatus] = {}
    for one in databases:
        other = found.get(one.name)
        found[one.name] = one if other is None else _merged_database(one, other)
    return list(found.values())


def merged_pools(pools: Iterable[PoolStatus]) -> list[PoolStatus]:
    """Return one record for each name and type, of all registries together."""
    found: dict[tuple[str, str], PoolStatus] = {}
    for one in pools:
        key = (one.database, one.connection_type)
        other = found.get(key)
        found[key] = one if other is None else _merged_pool(one, other)
    return list(found.values())


def _merged_database(one: DatabaseStatus, other: DatabaseStatus) -> DatabaseStatus:
    modified = [when for when in (one.secret_modified, other.secret_modified) if when is not None]
    states = {one.state, other.state}
    return replace(
        other if one.state is None else one,
        state=next((state for state in STATES if state in states), None),
        version=max(one.version, other.version),
        stale=one.stale or other.stale,
        outcomes=_added(one.outcomes, other.outcomes),
        secret_modified=max(modified, default=None),
        config_hash=max(one.config_hash, other.config_hash),
        probe=one.probe if other.probe is None or other.probe.up else other.probe,
    )


def _merged_pool(one: PoolStatus, other: PoolStatus) -> PoolStatus:
    changes: dict[str, Any] = {}
    for name in one._fields:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, Mapping):
            changes[name] = _added(a, b)
        elif name == "longest_checkout":
            changes[name] = max(a, b)
        elif isinstance(a, (int, Durations)) and name not in ("version", "opened"):
            changes[name] = a + b
    return one._replace(opened=one.opened or other.opened, **changes)


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
