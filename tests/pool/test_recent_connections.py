"""The connection that came back last is the first one to be handed out again."""

from __future__ import annotations

import inspect
import threading
from types import FrameType

from pgmonkey import CheckoutTimeout, Registry
from pgmonkey.pool._sync.checkout import SyncCheckout
from tests.kit.database import TemporaryDatabase
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.interruption import at_each_line
from tests.pool.side import Make

BACKEND = "SELECT pg_backend_pid()"
#: The code of a return.
RETURN = inspect.getfile(SyncCheckout)


def test_one_client_uses_one_connection(make: Make) -> None:
    """In a pool with several idle connections, checkouts one after another use the same backend."""
    client = make(pool={"min_size": 3, "max_size": 3})
    client.fill(3)

    assert len({client.ask(BACKEND) for _ in range(10)}) == 1


def test_surplus_connections_are_closed_while_one_is_in_use(make: Make) -> None:
    """A pool that one client at a time uses shrinks to `min_size` after `max_idle`."""
    client = make(pool={"min_size": 1, "max_size": 4, "max_idle": "200ms"})
    client.fill(4)

    def shrunk() -> bool:
        client.ask()
        return bool(client.handle.status().idle == 1)

    eventually(shrunk, 20)


def test_a_client_that_comes_at_any_line_of_a_return_gets_the_connection(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """Wherever the thread that gives back the only connection is left, a client that comes is served."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 1, "max_size": 1})
    lines = 0
    refused: list[str] = []

    with Registry(registry_dir, metrics=None, watch=False) as registry:
        handle = registry.get("orders").open()

        def borrow(at: str) -> None:
            try:
                with handle.connection(timeout=2):
                    pass
            except CheckoutTimeout:
                refused.append(at)

        def come(frame: FrameType) -> threading.Thread:
            other = threading.Thread(target=borrow, args=(f"line {frame.f_lineno}",))
            other.start()
            eventually(lambda: handle.status().waiting or not other.is_alive())
            return other

        def give_back(number: int) -> threading.Thread | None:
            """Let the other client come at that line; return its thread if there is such a line."""
            left, other = number, None

            def count(frame: FrameType) -> None:
                nonlocal left, other
                left -= 1
                if left == 0:
                    other = come(frame)

            checkout = handle.connection()
            checkout.__enter__()
            with at_each_line(RETURN, count):
                checkout.__exit__(None, None, None)
            return other

        while (other := give_back(lines + 1)) is not None:
            lines += 1
            other.join()

    assert refused == []
    assert lines > 10, "there was something to interrupt"
