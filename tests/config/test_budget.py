"""How many connections a fleet can open is arithmetic."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmonkey.config.budget import Demand, Fleet, Limits, budget, demand_of, of_process
from pgmonkey.config.loader import load_file

SETTINGS = "connection_settings: {host: db, dbname: orders, user: app}\n"


def limits(**more) -> Limits:
    """Return what a server without limits of roles and databases allows."""
    given = {
        "identity": "1", "max_connections": 100, "superuser_reserved_connections": 3,
        "reserved_connections": 0, "may_use_reserved": False, "superuser": False, "role": "app",
        "role_limit": None, "database": "orders", "database_limit": None, "in_use": 7,
    }  # fmt: skip
    return Limits(**{**given, **more})


@pytest.mark.parametrize(
    "text, expected",
    [
        ("connection_type: normal\n", (1, 2)),
        ("connection_type: async\n", (3, 6)),
        ("connection_type: pool\npool_settings: {max_size: 6}\n", (6, 7)),
        ("connection_type: pool\npool_settings: {min_size: 20}\n", (20, 21)),
        ("connection_type: async_pool\nasync_pool_settings: {max_size: 4}\n", (12, 15)),
        ("connection_type: pool\nmax_connections: 5\n", (5, 5)),
    ],
)
def test_a_type_opens_what_its_pools_hold(text: str, expected: tuple[int, int], tmp_path: Path):
    """One pool in a process, or one in each event loop; each has one more while it rotates."""
    (tmp_path / "orders.yaml").write_text(SETTINGS + text)
    demand = demand_of(load_file(tmp_path / "orders.yaml"), loops=3)
    assert of_process([demand]) == expected


def test_a_fleet_multiplies():
    """Replicas times workers processes, each with all of its databases."""
    demands = [Demand("orders", "db:5432", max_size=6), Demand("events", "db:5432", 2, 4)]
    (one,) = budget(demands, Fleet(3, 4, 2))
    assert (one.server, one.scope, one.databases) == ("db:5432", "server", ("events", "orders"))
    assert (one.open, one.rotating) == (12 * (6 + 8), 12 * (7 + 10))
    assert (one.limit, one.left, one.over) == (None, None, False)


def test_each_of_several_hosts_is_named_with_its_port(tmp_path):
    """An address of IPv6 is in brackets."""
    (tmp_path / "orders.yaml").write_text(
        "connection_settings: {host: 'db,::1', port: '5432,5433', dbname: a, user: a}\n"
    )
    config = load_file(tmp_path / "orders.yaml")
    assert demand_of(config, 1).server == "db:5432,[::1]:5433"


def test_servers_are_counted_apart_unless_they_are_one():
    """Two names of one server are one; PgBouncer at the same address is another."""
    demands = [
        Demand("a", "db:5432"),
        Demand("b", "10.0.0.5:5432"),
        Demand("c", "db:5432"),
        Demand("d", "db:6432", through_pgbouncer=True),
    ]
    apart = budget(demands, Fleet())
    assert [(one.server, one.scope, one.databases) for one in apart] == [
        ("db:5432", "server", ("a", "c")),
        ("10.0.0.5:5432", "server", ("b",)),
        ("db:6432", "pgbouncer", ("d",)),
    ]
    # c could not be asked: it counts where a does.
    together = budget(demands, Fleet(), {"a": limits(), "b": limits()})
    assert [(one.server, one.databases, one.limit) for one in together] == [
        ("10.0.0.5:5432, db:5432", ("a", "b", "c"), 97),
        ("db:6432", ("d",), None),
    ]


def test_each_limit_has_its_sum():
    """The server, a role and a database have limits of their own; the smallest view counts."""
    demands = [Demand("a", "db", max_size=4), Demand("b", "db", max_size=9)]
    found = budget(
        demands,
        Fleet(2),
        {
            "a": limits(role="one", role_limit=10, database_limit=30),
            "b": limits(role="two", may_use_reserved=True, superuser=True, database_limit=30),
        },
    )
    assert [(one.scope, one.name, one.rotating, one.limit, one.over) for one in found] == [
        ("server", "", 30, 97, False),
        ("role", "one", 10, 10, False),
        ("database", "orders", 30, 30, False),
    ]
    (*_, last) = budget(demands, Fleet(3), {"a": limits(database_limit=30), "b": limits()})
    assert (last.scope, last.rotating, last.left, last.over) == ("database", 45, -15, True)


DEMANDS = st.lists(
    st.builds(
        Demand,
        name=st.sampled_from("abcd"),
        server=st.just("db"),
        pools=st.integers(1, 2),
        max_size=st.integers(1, 5),
        cap=st.none() | st.integers(1, 12),
    ),
    max_size=4,
)


@settings(max_examples=50)
@given(DEMANDS)
def test_no_order_of_opening_reaches_more(demands: list[Demand]):
    """The figure is what the worst order of opening pools reaches, and no order exceeds it."""

    def reached(order) -> int:
        total = 0
        for one in order:
            room = one.open if one.cap is None else max(0, one.cap - total)
            total += min(one.open, room)
        return total

    most = max(map(reached, itertools.permutations(demands)))
    assert of_process(demands)[0] == most
    caps = [one.cap for one in demands]
    if caps and None not in caps:
        assert most <= max(caps)
