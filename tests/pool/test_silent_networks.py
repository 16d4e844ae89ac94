"""Networks that swallow everything: what they leave behind does not outlast them."""

from __future__ import annotations

import pytest

from tests.kit.eventually import eventually
from tests.kit.proxy import ChaosProxy
from tests.pool.side import Make, refuses, takes

CONNECT_TIMEOUT = 2
#: Seconds from the end of a silence to the first client that is served, besides `connect_timeout`.
RECOVERY = 2.0


@pytest.mark.slow
@pytest.mark.parametrize("idle", [1, 3])
def test_an_idle_connection_that_a_silent_network_forgot_stops_no_client(
    make: Make, proxy: ChaosProxy, idle: int
) -> None:
    """A connect fails while connections are idle that will never answer: the pool recovers.

    Nothing of the pool waits without a deadline for an answer on one of them, so that checkouts
    are served soon after new connections work again.
    """
    client = make(
        through=proxy,
        check_on_checkout=True,
        # Without autocommit the return of a connection would ask the silent server.
        connection={"connect_timeout": CONNECT_TIMEOUT, "autocommit": True},
    )
    with client.holding(idle):
        proxy.set("lost")
        refuses(client, 0.5)
    # No client asks while the pool gives up, so no checkout looks at the idle connections.
    eventually(
        lambda: client.handle.status().connect_failures["timeout"] >= 2, 15, "connects have failed"
    )
    proxy.set("pass")

    with takes(CONNECT_TIMEOUT + RECOVERY):
        assert client.ask(timeout=20) == 1
    with takes(CONNECT_TIMEOUT + RECOVERY), client.holding(4, timeout=20) as backends:
        assert len(set(backends)) == 4
