"""The state of a database."""

from __future__ import annotations

import pytest

from pgmonkey.telemetry.status import STATES, database_state


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("connect_failed", [False, True])
@pytest.mark.parametrize("configured", [False, True])
def test_the_worst_that_is_known_decides(
    configured: bool, connect_failed: bool, stale: bool, opened: bool
) -> None:
    """No valid config is worse than no connection, that is worse than files that differ."""
    expected = {
        "failed": not configured,
        "down": connect_failed,
        "stale": stale,
        "ready": opened,
        "idle": True,
    }
    assert tuple(expected) == STATES
    assert database_state(
        configured=configured, connect_failed=connect_failed, stale=stale, opened=opened
    ) == next(state for state, applies in expected.items() if applies)
