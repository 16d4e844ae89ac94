"""Status records: plain values, which metrics, page, API and command line show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from pgmonkey.errors import Problem
from pgmonkey.telemetry.timings import Durations

if TYPE_CHECKING:
    from pgmonkey.errors import Reason

DatabaseState = Literal["failed", "down", "stale", "ready", "idle"]
Outcome = Literal["applied", "rejected", "removed"]

#: Outcomes of a reload that are counted.
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
#: Characters of a text of a server that a notebook shows.
_LONGEST: Final = 300
#: Every state of a database, the worst first.
STATES: Final[tuple[DatabaseState, ...]] = get_args(DatabaseState)


def database_state(
    *, configured: bool, connect_failed: bool, stale: bool, opened: bool
) -> DatabaseState:
    """Decide the state of a declared database.

    Args:
        configured: Whether a valid configuration was applied.
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
    """Describe one checkout in progress.

    Attributes:
        holder: The thread or task that holds the connection.
        seconds: For how long.
        place: The line of code that borrowed it.
        stack: The calls that led to that line, innermost first; empty without `leak_stack`.
    """

    holder: str
    seconds: float
    place: str
    stack: tuple[str, ...] = ()


class PoolStatus(NamedTuple):
    """Describe the pools of one handle, in all event loops together.

    Attributes:
        database: The name of the database.
        connection_type: The type of the handle.
        version: The version of the configuration that new connections get.
        opened: Whether a pool is open in this process.
        idle: Connections that wait for a client.
        used: Connections that a client has, of the current version.
        retired: Connections that a client has, of an older version.
        waiting: Clients that wait for a connection.
        min_size: As configured, for all event loops together.
        max_size: As configured, for all event loops together.
        longest_checkout: Seconds of the oldest checkout in progress; 0 if there is none.
        requests: Checkouts so far.
        queued: Checkouts that had to wait.
        errors: Checkouts that failed, by reason.
        waits: How long checkouts waited.
        uses: How long clients had a connection.
        connects: How long connects took.
        connect_attempts: Connects that were tried.
        connect_failures: Connects that failed, by reason.
        evicted: Connections that the pool closed itself, by reason.
        leaks: Checkouts that lasted longer than `leak_detection`, or were abandoned.
        last_failure: What the last connect answered, if it failed; else `None`.
        last_failure_reason: Its reason, as in `ConnectError`.
        last_failure_hint: What to do about it.
        checkouts: The checkouts in progress.
        listeners: Blocks of `listen()` that are entered. Each has a connection of its own.
    """

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
    listeners: int = 0


class ProbeStatus(NamedTuple):
    """Describe the last background probe.

    Attributes:
        up: Whether it connected.
        seconds: How long it took.
    """

    up: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Change:
    """Describe one change of a database and its outcome, as `Registry.subscribe` reports it.

    Args:
        database: The name of the database.
        outcome: `applied`, `rejected` or `removed`.
        version: The version that runs now; 0 if there never was one.
        at: Unix time.
        changed: The keys that differ from the version before, such as
            `connection_settings.password`; `*` for a new database. Only if it was applied.
        problems: Why it was rejected; empty otherwise.
    """

    database: str
    outcome: Outcome
    version: int
    at: float
    changed: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def details(self) -> tuple[str, ...]:
        """Return the changed keys, or the problems, as texts."""
        return self.changed or tuple(map(str, self.problems))


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """Describe one database: its files, what runs, and why they differ, if they do.

    Attributes:
        name: The name.
        connection_type: The type that the file declares; `None` if it never had a valid one.
        description: The text of the file.
        required: Whether the service needs it to be ready.
        state: `ready`, `idle`, `stale`, `down` or `failed`; `None` if the file was removed: then only
            the counters are left.
        version: The version that runs; 0 if there never was one.
        stale: Whether the files differ from what runs.
        reached: Whether a connect has worked in this process.
        reason: Why the probe of the new configuration failed, as in `ConnectError`; `None` if it did not.
        last_error: What the last probe or connect answered, if it failed.
        last_error_reason: The reason of that.
        last_error_hint: What to do about that.
        problems: What is wrong with its files.
        outcomes: How many reloads were `applied`, `rejected` or `removed`.
        last_reload: The outcome of the last one; `None` if there was none.
        last_reload_at: When that was, in Unix time.
        secret_modified: When the newest secret file was written, in Unix time.
        config_hash: A number that is equal in all processes that run the same configuration. Secrets
            are not part of it, `revision` is.
        pools: The pools of its handles.
        probe: The last background probe; `None` without `probe_interval`.
        history: The last changes, oldest first.
        overridden: The keys that `override` has replaced for now, and `rollback`.
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
    #: Returns `config`; a scrape of a thousand databases does not call it.
    redacted: Callable[[], Mapping[str, object]] = field(default=dict, repr=False, compare=False)
    history: tuple[Change, ...] = ()
    overridden: tuple[str, ...] = ()

    @property
    def config(self) -> Mapping[str, object]:
        """Return the applied configuration, secrets masked; empty if there never was one."""
        return self.redacted()


class RegistryStatus(NamedTuple):
    """Describe a registry.

    Attributes:
        path: Its directory.
        databases: Its databases, by name.
        problems: What is wrong with the directory itself.
        watched: Whether the files should be watched. In a child process: from its first checkout.
        watching: Whether they are.
        polling: Whether it reads the files twice a second, because file events do not arrive.
        watcher_errors: How often file events stopped.
        last_reload_successful: Whether everything that the files say is applied.
        last_reload_success_at: When the registry last read files that it then applied completely, in
            Unix time.
        reload_durations: How long reloads took.
        only: The only databases whose files it reads, as `names` says; `None`: all.
    """

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
    only: tuple[str, ...] | None

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a table with a row for each database."""
        titles = ("database", "state", "type", "in use", "waiting", "version", "last reload", "why")
        rows = [_cells(one) for one in self.databases if one.state]
        return "\n".join(
            [
                f"<table><caption>{escape(self.path)}</caption>",
                f"<thead>{_row('th', titles)}</thead>",
                f"<tbody>{''.join(_row('td', row) for row in rows)}</tbody></table>",
            ]
        )


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _cells(database: DatabaseStatus) -> Iterator[str]:
    """Yield the texts of one row."""
    yield database.name
    yield database.state or ""
    yield database.connection_type or ""
    used = sum(pool.used + pool.retired for pool in database.pools)
    size = sum(pool.max_size for pool in database.pools)
    yield f"{used} of {size}" if size else ""
    yield str(sum(pool.waiting for pool in database.pools) or "")
    yield str(database.version or "")
    at = database.last_reload_at
    day = "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield f"{database.last_reload or ''} {day}".strip()
    why = [database.last_error, *map(str, database.problems)]
    yield next((text for text in why if text), "")[:_LONGEST]
