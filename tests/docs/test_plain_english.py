"""Words that make a sentence slow to read are in no comment, docstring, message or page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

#: `nobody` in quotes, or in a URL, is an account. The last three lines are from sentences that a
#: reader had to read twice.
_WORDS = (
    r"\b(?:what came of|(?:is|are|was|were|be) said\b(?! to)|whoever|shall|anew|be it)\b"
    r"|\b(?:hence|whence|thence|thereby|whereto|upon|lest|ought|whilst|all the same)\b"
    r"|\bwhat (?:stands|lies)\b|\b(?:but every other|the bigger half|nobody but|(?:never|not) pass(?:es)? for)\b"
    r"|\b(?:the occasion|all is well|where they lie|belongs? into|the latter two|when it is whole)\b"
    r"|(?<![\"'`/])\bnobody\b(?![\"@])"
)
#: A phrase may go on in the next line, in a comment as well.
AVOIDED = re.compile(_WORDS.replace(" ", r"(?: |\n *(?:#:? )?)"), re.IGNORECASE)
FILES = sorted(
    path
    for pattern in (
        "pgmonkey/**/*.py",
        "tests/**/*.py",
        "benchmarks/**/*.py",
        "docs/**/*.md",
        "*.md",
    )
    for path in ROOT.glob(pattern)
    if path.name != Path(__file__).name
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_none_of_the_words_to_avoid(path):
    """A file says things directly, without words such as `whoever` or `shall`."""
    text = path.read_text(encoding="utf-8")
    found = [
        f"{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for match in AVOIDED.finditer(text)
    ]
    assert found == []
