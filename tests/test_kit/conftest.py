from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def kit(pytester, monkeypatch):
    """Install the kit's plugins into an inner pytest run."""
    root = Path(__file__).parents[2]

    def install() -> None:
        monkeypatch.setenv("PYTHONPATH", str(root))
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        conftest = (root / "tests" / "conftest.py").read_text(encoding="utf-8")
        # What the inner tests leave behind is left for good: waiting for it is of no use.
        pytester.makeconftest(f"{conftest}\nfrom tests.kit import leaks\nleaks.GRACE = 0.1\n")

    return install
