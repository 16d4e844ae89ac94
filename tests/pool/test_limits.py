"""The limits of server connections: of a pool, of a server, of the process. No server is asked."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pgmonkey.pool.limits import ConnectionLimits

A, B = "a:5432", "b:5432"


@dataclass(eq=False)
class Pool:
    """Stand for a pool."""

    label: str = "orders/pool"
    max_size: int = 10
    max_connections: int | None = None
    called: list[str] = field(default_factory=list)
    on_call: Callable[[], object] = lambda: None

    def try_again_soon(self) -> None:
        self.called.append(self.label)
        self.on_call()


def held_by(limits: ConnectionLimits, pool: Pool) -> int:
    return sum(limits._held.get(pool, {}).values())


def test_a_pool_has_at_most_its_size_and_one_more_while_it_replaces() -> None:
    """The refusal says which limit it is; a connection that was closed makes room."""
    limits, pool = ConnectionLimits(), Pool(max_size=2)
    assert limits.take(pool, A) is None
    assert limits.take(pool, A) is None
    assert limits.take(pool, A) == "all 2 connections that max_size allows are open"
    assert limits.take(pool, A, beyond=1) is None
    assert limits.take(pool, A, beyond=1) == "all 3 connections that max_size allows are open"
    limits.give(pool, A)
    limits.give(pool, A)
    assert held_by(limits, pool) == 1
    assert limits.take(pool, A) is None


def test_a_pool_counts_over_both_servers_when_it_moves() -> None:
    """Old connections to the one server and new ones to the other are one pool's."""
    limits, pool = ConnectionLimits(), Pool(max_size=2)
    assert limits.take(pool, A) is None
    assert limits.take(pool, B) is None
    assert limits.take(pool, B) is not None
    limits.give(pool, A)
    assert limits.take(pool, B) is None


def test_limits_count_over_all_servers_and_over_each() -> None:
    """The limit of the process and that of a server hold together; a place given back is free."""
    limits = ConnectionLimits(3)
    first, second = Pool("orders/pool", max_connections=2), Pool("audit/pool", max_connections=2)
    assert limits.take(first, A) is None
    assert limits.take(second, A) is None
    assert limits.take(first, A) == (
        "all 2 connections that max_connections allows to a:5432 are held"
    )
    assert limits.take(second, B) is None
    assert limits.take(second, B) == (
        "all 3 connections that max_connections allows to this process are held"
    )
    limits.give(first, A)
    assert limits.take(second, B) is None


def test_the_limit_of_a_server_is_that_of_who_asks() -> None:
    """A pool with a smaller number leaves the rest to the others."""
    limits = ConnectionLimits()
    modest, other = Pool(max_connections=1), Pool(max_connections=3)
    assert limits.take(other, A) is None
    assert limits.take(modest, A) is not None
    assert limits.take(other, A) is None
    assert limits.take(modest, B) is None


def test_an_error_names_who_holds_the_connections() -> None:
    """Most first, added up over the loops of a handle; nothing is full while there is room."""
    limits = ConnectionLimits()
    pools = [Pool("events/async_pool"), Pool("events/async_pool"), Pool("audit/pool")]
    asking = Pool("orders/pool", max_connections=4)
    for pool in (*pools, pools[2]):
        assert limits.take(pool, A) is None
    assert limits.take(pools[2], B) is None
    assert limits.explain(asking, A) == (
        "all 4 connections that max_connections allows to a:5432 are held"
        " (audit/pool 2, events/async_pool 2)"
    )
    assert limits.explain(asking, B) is None
    limits.max_connections = 5
    assert limits.explain(asking, B) == (
        "all 5 connections that max_connections allows to this process are held"
        " (audit/pool 3, events/async_pool 2)"
    )


def test_an_error_names_eight_holders_and_counts_the_rest() -> None:
    """A thousand databases do not make an error of a thousand names."""
    limits = ConnectionLimits(20)
    for number in range(20):
        assert limits.take(Pool(f"db-{number:02}/pool"), A) is None
    assert limits.explain(Pool(), A) == (
        "all 20 connections that max_connections allows to this process are held"
        " (db-00/pool 1, db-01/pool 1, db-02/pool 1, db-03/pool 1, db-04/pool 1, db-05/pool 1,"
        " db-06/pool 1, db-07/pool 1 and 12 more)"
    )


def test_refused_pools_are_called_in_their_order_when_a_connection_was_closed() -> None:
    """Each once, however often it was refused; one that got a connection meanwhile is not called."""
    limits, called = ConnectionLimits(2), []
    holder = Pool()
    pools = [Pool(label, called=called) for label in ("first", "second", "third")]
    assert limits.take(holder, A) is None
    assert limits.take(holder, A) is None
    for pool in (*pools, *pools):
        assert limits.take(pool, A) is not None
    limits.max_connections = 3
    assert limits.take(pools[1], A) is None
    limits.give(holder, A)
    assert called == ["first", "third"]
    limits.give(holder, A)
    assert called == ["first", "third"], "it has asked nothing since"


def test_the_first_pool_that_is_called_takes_the_place() -> None:
    """Those that are refused again wait for the next place."""
    limits = ConnectionLimits(1)
    holder, pools = Pool(), [Pool(), Pool()]
    for pool in pools:
        pool.on_call = lambda pool=pool: limits.take(pool, A)
    assert limits.take(holder, A) is None
    for pool in pools:
        assert limits.take(pool, A) is not None
    limits.give(holder, A)
    assert [held_by(limits, pool) for pool in pools] == [1, 0]
    limits.give(pools[0], A)
    assert [held_by(limits, pool) for pool in pools] == [0, 1]


def test_the_place_of_a_closed_connection_goes_to_its_successor_before_all_others() -> None:
    """A reload under a full limit: the probe has the place of the connection closed for it."""
    limits, called = ConnectionLimits(1), []
    pool, other = Pool(max_connections=1), Pool(called=called)
    assert limits.take(pool, A) is None
    assert limits.take(other, A) is not None
    assert limits.take(pool, A, instead_of=A) is None
    assert limits.take(pool, B, instead_of=A) is None, "the limit of a server is of each server"
    assert called == []
    assert held_by(limits, pool) == 1
    limits.give(pool, B)
    assert called == ["orders/pool"]
    assert limits.take(other, A) is None


def test_a_refused_successor_leaves_the_place_to_be_given_back() -> None:
    """The other server is full: the connection that was closed still counts until it is given."""
    limits = ConnectionLimits()
    pool, other = Pool(max_connections=1), Pool()
    assert limits.take(pool, A) is None
    assert limits.take(other, B) is None
    assert limits.take(pool, B, instead_of=A) is not None
    assert held_by(limits, pool) == 1
    limits.give(pool, A)
    assert held_by(limits, pool) == 0


def test_a_child_process_begins_with_nothing() -> None:
    """The parent's connections do not count, and closing one of them changes nothing."""
    limits, pool = ConnectionLimits(1), Pool()
    assert limits.take(pool, A) is None
    limits.reset()
    limits.give(pool, A)
    assert limits.take(pool, A) is None
    assert limits.take(pool, A) is not None


def test_a_place_may_be_given_back_by_a_destructor_at_any_moment() -> None:
    """Also while this very thread counts: nothing waits for itself, and nothing is lost."""
    limits, pool = ConnectionLimits(1000), Pool(max_size=1000)

    class Connection:
        def __init__(self) -> None:
            self.itself = self  # the collector finds it, at a moment of its own

        def __del__(self) -> None:
            limits.give(pool, A)

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(2000):
            while limits.take(pool, A) is not None:
                gc.collect()
            Connection()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert held_by(limits, pool) == 0


def test_threads_lose_no_count_and_never_exceed_a_limit() -> None:
    """Eight threads take and give back; each refused one is called."""
    limits, peak = ConnectionLimits(3), []

    def work(pool: Pool, wanted: int) -> None:
        again = threading.Event()
        pool.on_call = again.set
        for _ in range(wanted):
            while limits.take(pool, A) is not None:
                assert again.wait(20), "it is called when there is room"
                again.clear()
            peak.append(sum(held_by(limits, one) for one in pools))
            limits.give(pool, A)

    pools = [Pool(max_size=1) for _ in range(8)]
    threads = [threading.Thread(target=work, args=(pool, 300)) for pool in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(peak) == 2400
    assert [held_by(limits, pool) for pool in pools] == [0] * 8


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([A, B]), st.booleans()), max_size=60),
)
def test_what_is_counted_is_what_was_taken_and_not_given_back(
    limit: int, steps: list[tuple[int, str, bool]]
) -> None:
    """Whatever happens, counts are exact and every limit holds."""
    limits = ConnectionLimits(limit)
    pools = [Pool("a", max_size=2), Pool("b", max_connections=2), Pool("c", max_connections=3)]
    held = Counter[tuple[int, str]]()
    for number, server, taking in steps:
        pool = pools[number]
        own = sum(count for (one, _), count in held.items() if one == number)
        there = sum(count for (_, one), count in held.items() if one == server)
        if not taking:
            if held[number, server]:
                limits.give(pool, server)
                held[number, server] -= 1
            continue
        full = (
            own >= pool.max_size
            or held.total() >= limit
            or (pool.max_connections is not None and there >= pool.max_connections)
        )
        if limits.take(pool, server) is None:
            held[number, server] += 1
            assert not full
        else:
            assert full
    for number, pool in enumerate(pools):
        assert held_by(limits, pool) == held[number, A] + held[number, B]
