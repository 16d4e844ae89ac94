"""Capacity: whether the connection budgets hold what the pools keep open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pgmonkey.problem import Problem

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig


def shortfalls(
    configs: Iterable[DatabaseConfig], max_connections: int | None, path: str
) -> Iterator[Problem]:
    """Yield a problem for each budget that is smaller than the sum of `min_size` under it.

    Such pools could never be filled: the last databases to be used would get no connection.

    Args:
        configs: The databases of a registry, each counted for the type that its file says.
        max_connections: What all of them may have together, or `None`.
        path: Where the problems are said to be.
    """
    servers: dict[str, list[DatabaseConfig]] = {}
    everywhere = []
    for config in configs:
        everywhere.append(config)
        servers.setdefault(config.server, []).append(config)
    if max_connections is not None:
        yield from _shortfall("all databases", everywhere, max_connections, path)
    for server, of_server in sorted(servers.items()):
        limits = [one.max_connections for one in of_server if one.max_connections is not None]
        if limits:
            yield from _shortfall(f"the databases on {server}", of_server, min(limits), path)


def _shortfall(who: str, configs: list[DatabaseConfig], limit: int, path: str) -> Iterator[Problem]:
    kept = {config.name: config.pool(config.connection_type).min_size for config in configs}
    total = sum(kept.values())
    if total <= limit:
        return
    largest = sorted(kept.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{name} {size}" for name, size in largest[:8])
    more = f" and {len(largest) - 8} more" if len(largest) > 8 else ""
    yield Problem(
        path,
        "registry.max_connections",
        f"{who} keep {total} connections open (min_size), and max_connections is {limit}",
        hint=f"raise max_connections, or lower min_size ({listed}{more})",
    )
