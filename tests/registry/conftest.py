"""What the tests of the manager share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgmonkey import PGConnectionManager
from tests.kit import TemporaryDatabase
from tests.recipes.recipe import declare

Declare = Callable[..., Path]

SIZES = {"min_size": 1, "max_size": 4}


@pytest.fixture
def manager(database: TemporaryDatabase) -> Iterator[PGConnectionManager]:
    """A manager, emptied after the test and before the database is looked at."""
    manager = PGConnectionManager()
    yield manager
    manager.clear_cache()


@pytest.fixture
def write(tmp_path: Path, database: TemporaryDatabase) -> Declare:
    """Write a configuration file of the database; returns its path."""

    def write(name: str = "config.yaml", **content: Any) -> Path:
        content = {"pool_settings": SIZES, "async_pool_settings": SIZES} | content
        return declare(tmp_path, database, name, **content)

    return write


@pytest.fixture
def config(write: Declare) -> Path:
    """A configuration file whose pools have from one to four connections."""
    return write()
