"""Real components that a machine may lack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def need(found: T | None, what: str) -> T:
    """Return a component; if it is missing, skip the test, or fail it under `CI=true`.

    Args:
        found: The component, or something false.
        what: Its name, for the reason.
    """
    if found:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing: nothing is skipped in CI", pytrace=False)
    pytest.skip(f"needs {what}")


def postgres_with_tls() -> Path:
    """Return the `binaries` for an `PostgresServer` with TLS: the distribution's newest."""
    found = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        key=lambda path: int(path.parent.name),
    )
    return need(found[-1] if found else None, "a PostgreSQL with TLS (.ci/install-servers)")
