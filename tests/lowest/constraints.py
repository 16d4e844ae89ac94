"""Print the lowest version of each dependency that pyproject.toml allows, as constraints for pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

#: A name, perhaps with extras, a lower bound, perhaps an upper one, perhaps a marker.
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([^,;\s]+)(?:,[^;]*)?(;.*)?")


def constraints(pyproject: Path = PYPROJECT) -> list[str]:
    """Return a line such as `structlog==24.1` for each dependency of the core and of the extras.

    Raises:
        ValueError: A dependency has no lower bound.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = []
    for requirement in (requirement for group in groups for requirement in group):
        if requirement.startswith(f"{project['name']}["):
            continue  # an extra that includes another one
        found = _REQUIREMENT.fullmatch(requirement)
        if found is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        name, lowest, marker = found.groups(default="")
        lines.append(f"{name}=={lowest}{marker}")
    return lines


if __name__ == "__main__":
    print("\n".join(constraints()))
