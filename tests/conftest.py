"""Install the test kit: see tests/kit."""

from __future__ import annotations

pytest_plugins = [
    "pytester",
    "tests.kit.canary",
    "tests.kit.leaks",
    "tests.kit.behaviour",
    "tests.kit.fixtures",
    "tests.kit.manager",
    "tests.kit.alone",
]
