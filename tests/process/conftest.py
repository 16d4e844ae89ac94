"""Fixtures of tests that fork."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_log() -> Iterator[None]:
    """Write no log: the stream that pytest captures has a lock that a child would inherit."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
