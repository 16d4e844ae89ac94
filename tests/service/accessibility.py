"""What axe-core finds on a page."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


def serious(page: Page) -> dict[str, list[str]]:
    """Return what axe-core finds serious or critical on a page: the elements, by the rule."""
    # The policy of the page forbids scripts of others: axe comes in by the debugger.
    return {
        violation["id"]: [node["html"][:200] for node in violation["nodes"]]
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    }
