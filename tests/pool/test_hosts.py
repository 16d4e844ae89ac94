"""Host names: looked up within a deadline, and handed to the driver as addresses."""

from __future__ import annotations

import socket
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from pgmonkey.pool import hosts
from pgmonkey.pool.hosts import look_up, names, resolved, resolved_async, with_addresses


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"host": "db.internal", "port": "5433"}, [("db.internal", "5433")]),
        ({"host": "db.internal"}, [("db.internal", "5432")]),
        ({"host": "a,10.0.0.1,b", "port": "1,2,3"}, [("a", "1"), ("b", "3")]),
        ({"host": "a,b", "port": "6000"}, [("a", "6000"), ("b", "6000")]),
        ({"host": "a", "hostaddr": "10.0.0.1"}, []),
        ({"host": "10.0.0.1"}, []),
        ({"host": "fe80::1%eth0"}, []),
        ({"host": "/run/postgresql"}, []),
        ({"host": "@abstract"}, []),
        ({"service": "orders"}, []),
        ({"host": "a,b", "port": "1,2,3"}, []),
    ],
)
def test_only_names_are_looked_up(
    parameters: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    """Addresses, sockets, services and what the driver will refuse are left to the driver."""
    assert names(parameters) == expected


def test_each_address_becomes_a_host_of_its_own_in_the_same_order() -> None:
    """The driver tries one address after the other, and compares the certificate with the name."""
    answers = {("a", "1"): ("10.0.0.1", "::1"), ("b", "3"): ("10.0.0.3",)}
    found = with_addresses({"host": "a,/run,b,127.0.0.1", "port": "1,2,3,4", "user": "u"}, answers)

    assert found == {
        "host": "a,a,/run,b,127.0.0.1",
        "hostaddr": "10.0.0.1,::1,,10.0.0.3,127.0.0.1",
        "port": "1,1,2,3,4",
        "user": "u",
    }


def test_a_host_without_an_address_is_left_out_as_long_as_another_is_there() -> None:
    """One unknown host of several costs nothing; when none is left, the error names it."""
    unknown = OSError("Name or service not known")
    answers = {("a", "1"): unknown, ("b", "1"): ("10.0.0.2",)}
    assert with_addresses({"host": "a,b", "port": "1"}, answers)["host"] == "b"

    with pytest.raises(psycopg.OperationalError, match="failed to resolve host 'a': Name or"):
        with_addresses({"host": "a", "port": "1"}, answers)


async def test_the_systems_resolver_is_asked() -> None:
    """`localhost` gets its addresses, in either way; without a name nothing is changed."""
    wanted = {"host": "localhost", "port": "5432"}
    for found in (resolved(wanted), await resolved_async(wanted)):
        assert set(found["host"].split(",")) == {"localhost"}
        assert "127.0.0.1" in found["hostaddr"].split(",")
    assert resolved({"host": "127.0.0.1"}) == {"host": "127.0.0.1"}
    assert await resolved_async({"host": "127.0.0.1"}) == {"host": "127.0.0.1"}


def test_a_name_that_is_none_is_an_answer_too() -> None:
    """What the resolver refuses to look at is a failed lookup, and no dead thread."""
    answer = look_up((f"{'a' * 70}.internal", "5432")).result(10)

    assert isinstance(answer, OSError)
    assert not isinstance(answer, socket.timeout)


def test_a_child_process_waits_for_no_lookup_of_its_parent() -> None:
    """The thread that asks does not exist in the child, so a name is asked for again."""
    pending: Future[Any] = Future()
    hosts._under_way["localhost", "1"] = pending
    assert look_up(("localhost", "1")) is pending
    hosts._lock.acquire()  # another thread of the parent had it
    hosts.reset()
    assert "127.0.0.1" in look_up(("localhost", "1")).result(10)
