"""The gate: how many server connections a handle may have, and what it met."""

from __future__ import annotations

import asyncio
import threading

from pgmonkey.pool.connect_failure import ConnectFailure, classify
from pgmonkey.pool.limits import Gate
from pgmonkey.pool.usage import Usage
from tests.kit.eventually import eventually


def never() -> bool:
    return False


def test_a_gate_lets_in_its_limit_and_a_probe_one_more() -> None:
    """Slots run out at the limit; a probe may be one over it; a slot given back can be taken."""
    gate = Gate(2, Usage())
    first, second = gate.enter(), gate.enter()
    assert first is not None
    assert second is not None
    assert gate.enter() is None

    probe = gate.enter(beyond=1)
    assert probe is not None
    assert gate.enter(beyond=1) is None
    first.release()
    first.release()  # a second time does nothing
    assert gate.count == 2
    assert gate.enter() is None, "the probe's slot counts like any other"


def test_a_worker_waits_until_a_slot_is_free() -> None:
    """A worker thread that finds the gate full goes on when another generation gives a slot back."""
    gate = Gate(1, Usage())
    held = gate.enter()
    assert held is not None
    got: list[object] = []
    worker = threading.Thread(target=lambda: got.append(gate.wait(never)))
    worker.start()
    held.release()
    worker.join(5)

    assert len(got) == 1
    assert got[0] is not None
    assert gate.count == 1


def test_a_retired_generation_waits_no_longer() -> None:
    """A worker whose generation is retired while it waits is let go without a slot."""
    gate = Gate(1, Usage())
    gate.enter()
    retired = threading.Event()
    got: list[object] = []
    worker = threading.Thread(target=lambda: got.append(gate.wait(retired.is_set)))
    worker.start()
    retired.set()

    def let_go() -> bool:
        gate.wake()
        return not worker.is_alive()

    eventually(let_go, 5, "the worker ends")
    assert got == [None]
    assert gate.count == 1


async def test_a_worker_task_waits_for_a_slot_that_a_thread_gives_back() -> None:
    """A destructor may run in any thread: the waiting task is woken on its own loop."""
    gate = Gate(1, Usage())
    held = gate.enter()
    assert held is not None
    waiting = asyncio.create_task(gate.wait_async(never))
    await asyncio.sleep(0)
    await asyncio.to_thread(held.release)

    assert await asyncio.wait_for(waiting, 5) is not None
    assert gate.count == 1


async def test_a_cancelled_wait_leaves_no_slot_taken() -> None:
    """A task that is cancelled while it waits for a slot takes none."""
    gate = Gate(1, Usage())
    held = gate.enter()
    assert held is not None
    waiting = asyncio.create_task(gate.wait_async(never))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    held.release()

    assert waiting.cancelled()
    assert gate.count == 0


def test_the_first_failure_and_the_recovery_are_told_apart() -> None:
    """`note` says when connects begin to fail and when they work again, so each is said once."""
    gate = Gate(1, Usage())
    failure = ConnectFailure("refused", "connection refused")

    assert gate.note(None) is None
    assert gate.note(failure) == 0.0
    again = gate.note(failure)
    assert again is not None
    assert again > 0.0
    outage = gate.note(None)
    assert outage is not None
    assert outage >= again
    assert gate.note(None) is None


def test_reasons_are_read_from_libpqs_words() -> None:
    """Each text that libpq or a server gives has its reason; what is unknown is `other`."""
    texts = {
        'FATAL:  password authentication failed for user "app"': "auth",
        'FATAL:  role "app" does not exist': "auth",
        'FATAL:  role "app" is not permitted to log in': "auth",
        "fe_sendauth: no password supplied": "auth",
        'FATAL:  database "orders" does not exist': "no_database",
        'FATAL:  too many connections for role "app"': "too_many_connections",
        "FATAL:  sorry, too many clients already": "too_many_connections",
        "FATAL:  remaining connection slots are reserved for roles": "too_many_connections",
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1"': "hba",
        "FATAL:  pg_hba.conf rejects connection for host": "hba",
        'connection to server at "127.0.0.1", port 1 failed: Connection refused': "refused",
        "FATAL:  the database system is starting up": "refused",
        "FATAL:  the database system is shutting down": "refused",
        "FATAL:  the database system is not yet accepting connections": "refused",
        "FATAL:  the database system is not accepting connections\n"
        "DETAIL:  Hot standby mode is disabled.": "refused",
        "FATAL:  the database system is in recovery mode": "refused",
        "server closed the connection unexpectedly": "refused",
        'could not translate host name "nowhere" to address': "dns",
        "failed to resolve host 'nowhere': [Errno -2] Name or service not known": "dns",
        "server does not support SSL, but SSL was required": "tls",
        "SSL error: certificate verify failed": "tls",
        'server certificate for "a" does not match host name "b"': "tls",
        'root certificate file "/ca.crt" does not exist': "tls",
        "connection timeout expired": "timeout",
        'FATAL:  unrecognized configuration parameter "statement_timout"': "setting",
        'FATAL:  invalid value for parameter "statement_timeout": "soon"': "setting",
        "something new": "other",
    }

    assert {text: classify(RuntimeError(text), ()).reason for text in texts} == texts


def test_no_more_than_two_connects_are_under_way_at_a_time() -> None:
    """A third one waits until one of the two has its connection, or has failed; a probe does not."""
    gate = Gate(10, Usage())
    first, second = gate.enter(), gate.enter()
    assert first is not None
    assert second is not None
    assert gate.enter() is None
    probe = gate.enter(beyond=1)
    assert probe is not None
    probe.release()

    got: list[object] = []
    workers = [threading.Thread(target=lambda: got.append(gate.wait(never))) for _ in range(2)]
    for worker in workers:
        worker.start()
    second.release()
    eventually(lambda: len(got) == 1, 5, "a failed one lets the next one in")
    connection = Connection()
    first.fill(connection)  # type: ignore[arg-type]  # the gate looks at nothing of it
    eventually(lambda: len(got) == 2, 5, "a finished one does so too")
    for worker in workers:
        worker.join()
    assert gate.count == 3


class Connection:
    """Stand where a connection is kept, by a weak reference."""
