"""Tests that are alone, among those that run side by side."""

from __future__ import annotations

SIDE_BY_SIDE = '''
import os, time
from pathlib import Path

import pytest

@pytest.fixture(autouse=True)
def presence():
    begun = time.monotonic()
    time.sleep(0.05)
    with open("presence", "a") as presence:
        presence.write(f"{os.environ['PYTEST_XDIST_WORKER']} {begun} {time.monotonic()} {ALONE}\\n")
    yield

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    """d"""
'''


def test_a_test_that_is_alone_overlaps_with_no_other(pytester, kit):
    """Of two workers, one waits while the other runs a test that is marked `alone`."""
    kit()
    pytester.makepyfile(
        test_alone="ALONE = True\nimport pytest\npytestmark = pytest.mark.alone\n" + SIDE_BY_SIDE,
        test_others="ALONE = False\n" + SIDE_BY_SIDE,
    )

    result = pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile", "-p", "no:randomly")

    result.assert_outcomes(passed=12)
    rows = [line.split() for line in (pytester.path / "presence").read_text().splitlines()]
    spans = [(worker, float(begun), float(ended), alone) for worker, begun, ended, alone in rows]
    assert len({worker for worker, *_ in spans}) == 2
    for worker, begun, ended, alone in spans:
        for other, other_begun, other_ended, _ in spans:
            if alone == "True" and other != worker:
                assert other_ended <= begun or ended <= other_begun
