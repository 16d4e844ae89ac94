"""The site of the documentation: every page has a place, and the generator finds nothing to warn of."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.snippets import ROOT

DOCS = ROOT / "docs"
GROUPS = ["Start", "Guides", "Reference", "Explanation"]


class Loader(yaml.SafeLoader):
    """Read the configuration of the site, and take the default of a variable."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])


def configuration() -> dict[str, Any]:
    """Return the configuration of the site."""
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def pages(entries: Any) -> list[str]:
    """Return the files of a part of the navigation, in their order."""
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [page for value in values for page in pages(value)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it, every warning an error."""
    pytest.importorskip("zensical", reason="the dependency group docs is not installed")
    directory = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, directory / "docs")
    shutil.copy(ROOT / "mkdocs.yml", directory)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=directory,
        env={**os.environ, "SITE_NAME": "pgmonkey 5.4.3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / "site"


def test_the_navigation_has_every_page_once():
    """Four groups hold every page of the documentation, each page in one place."""
    navigation = configuration()["nav"]

    assert [name for group in navigation for name in group] == GROUPS
    assert sorted(pages(navigation)) == sorted(
        str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")
    )


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_what_belongs_to_an_item_of_a_list_stays_in_it(page):
    """Code in a list is indented by four: with less, the site would count from 1 again after it."""
    text = re.sub(
        r"^( *)(```+).*?^\1\2$",
        r"\1\2",
        page.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )

    assert re.findall(r"^(?:    )* {1,3}(?:```|[-*] |\d+\. ).*", text, re.MULTILINE) == []


def test_a_page_has_its_version_and_its_links(site):
    """A page names the version, the page before and after it, and where to edit it."""
    page = (site / "reload" / "index.html").read_text(encoding="utf-8")

    assert "<title>Reload - pgmonkey 5.4.3</title>" in page
    assert re.search(r'<link rel="prev" href="\.\./how-it-works/', page)
    assert re.search(r'<link rel="next" href="\.\./checkouts/', page)
    assert f"{configuration()['repo_url']}/edit/main/docs/reload.md" in page
    assert "icon.svg" in page


def test_a_page_loads_nothing_from_elsewhere(site):
    """Scripts, styles, fonts and pictures of every page come from the site itself."""
    loaded = re.compile(
        r'<(?:script|img)[^>]* src="?(https?:[^">]*)|<link[^>]* href="?(https?:[^">]*)'
    )
    for path in site.rglob("*.html"):
        assert loaded.findall(path.read_text(encoding="utf-8")) == [], path


def test_the_search_finds_a_problem_by_its_code(site):
    """The index of the search has each section, such as the one of a problem."""
    index = json.loads((site / "search.json").read_text(encoding="utf-8"))

    assert "config.pgbouncer" in json.dumps(index)
