"""Take the picture of the quickstart: `orders` after the five steps of a demonstration.

python -m tests.demo.picture    writes docs/demo.png
"""

from __future__ import annotations

import signal
from tempfile import TemporaryDirectory
from typing import Final

from tests.docs.snippets import ROOT
from tests.kit import Canary
from tests.kit.browser import browser
from tests.kit.command import Running

PATH: Final = ROOT / "docs" / "demo.png"


def main() -> None:
    """Run a demonstration, and take the picture when its steps are done and `orders` is at work."""
    with (
        TemporaryDirectory() as directory,
        Running("demo", "--port", "0", "--pause", "3", canary=Canary(), cwd=directory) as demo,
        browser() as chromium,
    ):
        url = demo.wait_for(r"page +(http://\S+)/\n", 60).group(1)
        demo.wait_for("Your turn", 120)
        page = chromium.new_page(
            viewport={"width": 1200, "height": 900}, device_scale_factor=2, reduced_motion="reduce"
        )
        page.goto(f"{url}/databases/orders")
        page.wait_for_selector("#contact[data-contact=live]")
        page.wait_for_selector("td code")
        page.evaluate(
            "here => document.querySelectorAll('td code').forEach("
            "one => one.textContent = one.textContent.replace(here, 'site-packages'))",
            str(ROOT),
        )
        below = page.locator("h2", has_text="Events").bounding_box()
        assert below is not None
        PATH.write_bytes(
            page.screenshot(
                full_page=True, clip={"x": 0, "y": 0, "width": 1200, "height": below["y"] - 24}
            )
        )
        demo.send(signal.SIGINT)
        demo.code(20)


if __name__ == "__main__":
    main()
