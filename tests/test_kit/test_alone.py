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
    """Of two workers, one waits while the other runs the tests that are `alone`, one after the other."""
    kit()
    pytester.makepyfile(
        test_a="ALONE = False\n" + SIDE_BY_SIDE,
        test_b="ALONE = True\nimport pytest\npytestmark = pytest.mark.alone\n" + SIDE_BY_SIDE,
        test_c="ALONE = False\n" + SIDE_BY_SIDE,
    )

    result = pytester.runpytest_subprocess("-n", "2", "--dist", "worksteal", "-p", "no:randomly")

    result.assert_outcomes(passed=18)
    rows = [line.split() for line in (pytester.path / "presence").read_text().splitlines()]
    spans = [(worker, float(begun), float(ended), alone) for worker, begun, ended, alone in rows]
    assert len({worker for worker, *_ in spans}) == 2
    for worker, begun, ended, alone in spans:
        for other, other_begun, other_ended, _ in spans:
            if alone == "True" and other != worker:
                assert other_ended <= begun or ended <= other_begun
    in_order = sorted(spans, key=lambda span: span[1])
    together = [alone for *_, alone in in_order]
    first = together.index("True")
    assert together[first : first + 6] == ["True"] * 6, "no other test runs between them"
    worker = in_order[first][0]
    assert next(alone for one, *_, alone in in_order if one == worker) == "True", "they come first"
