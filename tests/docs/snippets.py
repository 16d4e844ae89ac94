"""Find the fenced snippets of the README and the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w+-]*)(?P<info>.*)$")
_DIRECTIVE = re.compile(r"^ *<!-- *snippet: *(?P<text>.*?) *-->$")

LANGUAGES = {
    "python": "python",
    "py": "python",
    "yaml": "yaml",
    "yml": "yaml",
    "shell": "shell",
    "bash": "shell",
    "sh": "shell",
    "console": "console",
    "json": "json",
    "toml": "toml",
}


@dataclass(frozen=True)
class Snippet:
    """One fence: its page, the line of its first line of text, and what a comment above it asks for.

    The comment is `<!-- snippet: WORD REST -->`, on the line above the fence:

    - `skip REASON`: neither run nor validated;
    - `invalid CODE`: a database file that must be refused with a problem of this code;
    - `raises ERROR`: Python that ends with this exception;
    - `run`: a shell snippet that is run, and must end with 0; `run exit=1` with 1;
    - `walk`: the same, in the course of the story that its page tells.
    """

    page: str
    line: int
    language: str
    text: str
    directive: str = ""

    @property
    def word(self) -> str:
        """The directive's first word."""
        return self.directive.partition(" ")[0]

    @property
    def rest(self) -> str:
        """The text after the directive's first word."""
        return self.directive.partition(" ")[2].strip()

    @property
    def place(self) -> str:
        """Where it is, as an editor understands it."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return the README and every page of the documentation."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page.exists()]


def snippets(page: Path) -> list[Snippet]:
    """Return the fences of a page whose language is run or validated."""
    name = str(page.relative_to(ROOT))
    return list(parse(page.read_text(encoding="utf-8"), name))


def parse(text: str, page: str) -> Iterator[Snippet]:
    """Yield the fences of Markdown text."""
    lines = text.splitlines()
    directive = ""
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if match := _DIRECTIVE.match(line):
            directive = match["text"]
            continue
        if not (match := _FENCE.match(line)):
            if line.strip():
                directive = ""
            continue
        start = position
        closing = re.compile(rf"^ *{re.escape(match['fence'])}{match['fence'][0]}* *$")
        while position < len(lines) and not closing.match(lines[position]):
            position += 1
        body = [_dedent(part, len(match["indent"])) for part in lines[start:position]]
        position += 1
        language = LANGUAGES.get(match["language"].lower())
        if language is not None:
            yield Snippet(page, start + 1, language, "\n".join(body) + "\n", directive)
        directive = ""


def _dedent(line: str, width: int) -> str:
    return line[min(width, len(line) - len(line.lstrip(" "))) :]
