"""CONTRIBUTING.md names files and targets that exist."""

from __future__ import annotations

import re

import pytest

from tests.docs.snippets import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: Words of code, outside of the fences.
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE))
#: The functions and classes that "Where is it?" names.
NAMES = re.findall(
    r"`((?:Async\w+\.)?\w+)`", TEXT.partition("## Where is it?")[2].partition("## The tests")[0]
)
#: Directories that only a run makes.
MADE = ("build/",)


def paths() -> list[str]:
    """Return the paths that the text names; `NAME` stands for any name."""
    named = {
        word
        for word in CODE
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", word) and not word.startswith(MADE)
    }
    # In the table of the packages a file is named beside its package.
    for package, files in re.findall(r"^\| `(pgmonkey/\w+)` \| (.*) \|$", TEXT, re.MULTILINE):
        named |= {f"{package}/{name}" for name in re.findall(r"`([\w]+\.py|[a-z]+)`", files)}
    return sorted(named)


@pytest.mark.parametrize("path", paths())
def test_every_path_exists(path):
    """A file or directory that the text names is in the repository."""
    assert list(ROOT.glob(path.replace("NAME", "*"))), f"{path} is not in the repository"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", TEXT))))
def test_every_target_exists(target):
    """A target that the text names is in the Makefile."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"_async", "_sync"}))
def test_every_function_of_the_pool_exists(name):
    """A function, class or method that "Where is it?" names is in a file that it names."""
    files = [path for path in paths() if re.fullmatch(r"pgmonkey/pool/.*\.py", path)]
    owner, _, function = name.rpartition(".")
    defined = [rf"^ *(class|(async )?def) {function}\b", *([rf"^class {owner}\b"] if owner else [])]
    assert any(
        all(re.search(one, (ROOT / path).read_text(), re.MULTILINE) for one in defined)
        for path in files
    ), f"no file of pgmonkey/pool has {name}"


def test_the_places_for_each_kind_of_change_are_short():
    """The structure and the recipes are one page of at most 45 lines."""
    section = TEXT.partition("## Where things are")[2].partition("\n## ")[0]
    assert len(section.splitlines()) <= 45
