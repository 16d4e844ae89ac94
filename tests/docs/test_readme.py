"""The README: one screen, which reads well on PyPI, too."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.docs.snippets import ROOT, snippets

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINKS = re.findall(r"\]\(([^)\s]+)\)", TEXT)
_OURS = re.compile(
    r"https://(?:github|raw\.githubusercontent)\.com/\w+/pgmonkey/(?:blob/)?main/(.+)"
)


def test_it_begins_with_what_pgmonkey_is():
    """Its first sentence is the description of the package."""
    assert " ".join(TEXT.split("\n\n")[1].split()) == PROJECT["description"]


def test_it_is_short():
    """It has fewer than 90 lines, of which no line of code has more than 80 columns."""
    assert len(TEXT.splitlines()) < 90
    lines = [line for one in snippets(ROOT / "README.md") for line in one.text.splitlines()]
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("link", LINKS)
def test_every_link_works_on_pypi(link):
    """A link or picture is absolute; one into the repository leads to a file that is there."""
    assert link.startswith("https://")
    assert (
        link.startswith(PROJECT["urls"]["Repository"]) or "github" not in link or _OURS.match(link)
    )
    if ours := _OURS.match(link):
        assert (ROOT / ours[1].partition("#")[0]).is_file()
