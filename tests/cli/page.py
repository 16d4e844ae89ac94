"""What the page of the command line shows as output is what the commands print."""

from __future__ import annotations

import re

from tests.docs.snippets import ROOT


def _page() -> str:
    return (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")


def is_documented(output: str, language: str = "text") -> None:
    """Fail unless the page has this output, whole, in a fence."""
    assert f"\n```{language}\n{output}```\n" in _page(), output


def shown(command: str, language: str = "text") -> list[str]:
    """Return the outputs that the section of a command shows, in their order."""
    section = _page().partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def without_numbers(text: str) -> str:
    """Return an output without what differs each time: versions, ports, times, numbers."""
    return re.sub(r"\d+(\.\d+)*", "0", text)
