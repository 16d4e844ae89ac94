"""Status records: what runs, as plain values. Metrics, page and command line read only these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pgmonkey.problem import Problem
from pgmonkey.timings import Durations

DatabaseState = Literal["ready", "idle", "stale", "failed", "removed"]


@dataclass(frozen=True, slots=True)
class CheckoutStatus:
    """Describe one checkout that is out: who holds it, since when, and where it was borrowed."""

    holder: str
    seconds: float
    place: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Describe the pools of one handle, all loops and generations together."""

    database: str
    connection_type: str
    version: int
    opened: bool
    idle: int
    used: int
    retiring: int
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
    last_failure_reason: str | None
    checkouts: tuple[CheckoutStatus, ...]


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """Describe one database: what is declared, what runs, and why they differ, if they do."""

    name: str
    connection_type: str | None
    description: str
    required: bool
    state: DatabaseState
    version: int
    stale: bool
    reached: bool
    reason: str | None
    last_error: str | None
    last_error_reason: str | None
    problems: tuple[Problem, ...]
    outcomes: Mapping[str, int]
    last_reload: str | None
    last_reload_at: float | None
    secret_modified: float | None
    pools: tuple[PoolStatus, ...]
    config: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RegistryStatus:
    """Describe a registry. All of it was read without waiting for a database."""

    path: str
    databases: tuple[DatabaseStatus, ...]
    problems: tuple[Problem, ...]
    watching: bool
    polling: bool
    watcher_errors: int
    last_reload_successful: bool
    last_reload_success_at: float | None
    reload_durations: Durations
    config_hash: int
