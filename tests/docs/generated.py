"""The generated pages of the documentation: `python -m tests.docs.generated` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pgmonkey.cli.output import as_json
from pgmonkey.config.json_schema import schema
from tests.docs import api_page, metrics_page, problems_page, reference_page
from tests.docs.snippets import ROOT

#: What makes each page, by its file in `docs`.
PAGES: Mapping[str, Callable[[], str]] = {
    "api.md": api_page.page,
    "reference.md": reference_page.page,
    "problems.md": problems_page.page,
    "metrics.md": metrics_page.page,
    "pgmonkey.schema.json": lambda: as_json(schema()) + "\n",
}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
