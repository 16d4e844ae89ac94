"""The page of the Python API has everything that is public, with every argument."""

from __future__ import annotations

import re

import pytest

import pgmonkey
from tests.docs import api_page
from tests.docs.snippets import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in pgmonkey.__all__ if name != "__version__"])
def test_a_public_name_has_a_chapter_of_its_own(name):
    """Each name that `from pgmonkey import ...` gives is a heading of the page."""
    assert name in HEADINGS


def test_a_method_has_its_arguments_its_errors_and_an_example():
    """The signature, the meaning and the type of an argument, what is raised, and code that runs."""
    chapter = PAGE.partition("#### Registry.get\n")[2].partition("\n#### ")[0]

    assert "get(name, connection_type=None, force_reload=False) -> Database" in chapter
    assert "- `connection_type` (`str | None`): Another type than the file declares." in chapter
    assert "- [`UnknownDatabaseError`](#unknowndatabaseerror): no file declares" in chapter
    assert '```pycon\n>>> registry.get("orders") is registry.get("orders")\nTrue\n```' in chapter


def test_an_error_has_what_it_derives_from_and_its_fields():
    """An except clause for the driver's class catches it, and a handler can ask for the reason."""
    chapter = PAGE.partition("### ConnectError\n")[2].partition("\n### ")[0]

    assert "Derives from [`PgmonkeyError`](#pgmonkeyerror), `psycopg.OperationalError`." in chapter
    assert "- `reason` (`str`): One of `auth`," in chapter


def test_the_tree_of_errors_has_each_of_them():
    """The chapter on errors begins with all of them, and what each one reports."""
    tree = PAGE.partition("## Errors\n")[2].partition("\n### ")[0]

    for error in api_page._errors():
        assert f"{error.__name__} " in tree or f"{error.__name__}\n" in tree


def test_an_argument_without_an_explanation_is_refused():
    """A public function whose docstring lacks an argument fails the page, with both names."""

    def borrow(timeout: float) -> None:
        """Borrow a connection."""

    with pytest.raises(ValueError, match="borrow: timeout has no explanation"):
        list(api_page._described(borrow, api_page.Entry("borrow", borrow)))
