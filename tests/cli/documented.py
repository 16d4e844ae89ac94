"""The output that the page of the command line shows is what the commands print."""

from __future__ import annotations

from tests.docs.snippets import ROOT


def is_documented(output: str) -> None:
    """Fail unless the page has this output, whole, in a fence."""
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert f"\n```text\n{output}```\n" in page, output
