"""The generated pages are what they are generated from."""

from __future__ import annotations

import pytest

from pgmonkey.config.json_schema import libpq
from tests.docs.generated import PAGES
from tests.docs.snippets import ROOT


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name):
    """`make docs-reference` would change nothing."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    if name in ("reference.md", "pgmonkey.schema.json") and libpq() not in text:
        pytest.skip("the page lists the parameters of another libpq")
    assert text == PAGES[name]()
