"""The lowest versions of the dependencies, as `make test-lowest` installs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lowest.constraints import constraints, frameworks


def test_every_dependency_has_a_lower_bound():
    """Each dependency of the core and of the extras is pinned to its lower bound."""
    lines = constraints()

    assert "psycopg==3.3" in lines
    assert "PyYAML==6.0.2; python_version < '3.14'" in lines
    assert any(line.startswith("hypercorn==") for line in lines)
    assert not any(line.startswith("pgmonkey") for line in lines)


def test_every_framework_has_a_lower_bound():
    """Each framework that has a module in `pgmonkey.contrib`, and no other library of the tests."""
    names = {line.partition("==")[0] for line in frameworks()}

    assert names == {"django", "fastapi", "flask", "sqlalchemy"}


def test_a_dependency_without_a_lower_bound_is_an_error(tmp_path: Path):
    """A dependency without a lower bound is an error that names it."""
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[project]\nname = "x"\ndependencies = ["structlog"]\noptional-dependencies = {}\n'
    )

    with pytest.raises(ValueError, match="'structlog' has no lower bound"):
        constraints(pyproject)
