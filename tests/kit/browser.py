"""A real browser: the distribution's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.kit.components import need

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, and end it with everything that belongs to it.

    Playwright keeps an event loop on the thread while it runs: no `async def` test can share it.
    """
    program = need(next(filter(None, map(shutil.which, _NAMES)), None), "Chromium")
    with sync_playwright() as playwright:
        # Without a sandbox, for tests run as root. Only pages of ours are opened.
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield started
        finally:
            started.close()
