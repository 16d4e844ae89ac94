"""Bad files, as data: `tests/configs/*.bad.yaml` name in comments the problems to expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgmonkey.config.loader import load_file
from pgmonkey.errors import ConfigError

_BAD = Path(__file__).parents[1] / "configs"
_EXPECTED = re.compile(r"# expect: (-|\d+:\d+) ([a-z_.]+): (.*)")
_HINT = re.compile(r"# hint: (.*)")


def _name(path):
    return path.name.removesuffix(".bad.yaml")


def _expectations(text):
    """Return what a file says must be found: place, code, message, hint."""
    found = []
    for line in text.splitlines():
        # Both forms must be whole: a line that is misspelt would expect nothing.
        if line.startswith("# expect"):
            assert _EXPECTED.fullmatch(line), line
        if match := _EXPECTED.fullmatch(line):
            found.append([*match.groups(), None])
        elif match := _HINT.fullmatch(line):
            found[-1][3] = match.group(1)
    return found


@pytest.mark.parametrize("path", sorted(_BAD.glob("*.bad.yaml")), ids=_name)
def test_every_problem_of_a_bad_file_is_found_with_its_place(path):
    """A bad file gives exactly the problems that it announces, with place, code and hint."""
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    expected = _expectations(path.read_text(errors="replace"))
    problems = caught.value.problems
    assert sorted(_place(p) + " " + p.code for p in problems) == sorted(
        f"{place} {code}" for place, code, _, _ in expected
    )
    for place, code, message, hint in expected:
        said = [
            f"{problem.key}: {problem.message}" if problem.key else problem.message
            for problem in problems
            if (_place(problem), problem.code) == (place, code)
        ]
        assert message in said
        assert hint is None or hint in [problem.hint for problem in problems]


def _place(problem):
    return "-" if problem.line is None else f"{problem.line}:{problem.column}"


@pytest.mark.parametrize("path", sorted(_BAD.glob("*.bad.yaml")), ids=_name)
def test_a_problem_never_shows_what_may_be_secret(path):
    """No problem quotes a value of a sensitive key, nor source text of a file that is no YAML."""
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert "hunter2" not in str(caught.value)


def test_problems_come_in_reading_order():
    """The problems of one file are sorted by line and column."""
    with pytest.raises(ConfigError) as caught:
        load_file(_BAD / "many-at-once.bad.yaml")
    places = [(problem.line, problem.column) for problem in caught.value.problems]
    assert places == sorted(places)
    assert len(places) == 7
