"""Print the lowest version of each dependency that pyproject.toml allows, as constraints for pip.

With `frameworks`, that of each framework.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

#: A name, perhaps with extras, a lower bound, perhaps an upper one, perhaps a marker.
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([^,;\s]+)(?:,[^;]*)?(;.*)?")
#: No dependencies, but `pgmonkey.contrib` works with them from their lower bound on.
_FRAMEWORKS = ("django", "fastapi", "flask", "sqlalchemy")


def constraints(pyproject: Path = PYPROJECT) -> list[str]:
    """Return a line such as `structlog==24.1` for each dependency of the core and of the extras.

    Raises:
        ValueError: A dependency has no lower bound.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [
        _lowest(requirement)
        for group in groups
        for requirement in group
        if not requirement.startswith(f"{project['name']}[")  # an extra that includes another one
    ]


def frameworks(pyproject: Path = PYPROJECT) -> list[str]:
    """Return a line for each framework that has a module: its lower bound is that of the tests.

    Raises:
        ValueError: A framework has no lower bound.
    """
    tests = tomllib.loads(pyproject.read_text(encoding="utf-8"))["dependency-groups"]["test"]
    return [_lowest(one) for one in tests if re.split(r"\W", one)[0] in _FRAMEWORKS]


def _lowest(requirement: str) -> str:
    found = _REQUIREMENT.fullmatch(requirement)
    if found is None:
        raise ValueError(f"{requirement!r} has no lower bound")
    name, lowest, marker = found.groups(default="")
    return f"{name}=={lowest}{marker}"


if __name__ == "__main__":
    print("\n".join(frameworks() if sys.argv[1:] == ["frameworks"] else constraints()))
