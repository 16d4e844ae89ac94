"""The status page in a real browser, over an application that uses its databases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect

from pgmonkey import Registry
from pgmonkey.service import status_app
from pgmonkey.telemetry import events
from tests.kit import Canary, ChaosProxy, RegistryDirectory, TemporaryDatabase
from tests.kit.browser import browser as start_browser
from tests.kit.fixtures import Share
from tests.service.accessibility import serious
from tests.service.mounted import answering

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
PATIENCE = 15_000  # milliseconds: the page asks every two seconds, and the machine may be loaded
SCRIPT = "<script>document.title = 'taken over'</script>"


@dataclass
class Visit:
    """One browser window on one page, and what it did on its own account."""

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def note(self) -> None:
        """Write down every request, error and complaint of the browser."""
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )

    def open(self, path: str = "/") -> Page:
        """Go to a page of the application."""
        self.page.goto(self.url + path)
        return self.page


@pytest.fixture(scope="module")
def browser(share: Share) -> Iterator[Browser]:
    """A browser, in which each test has windows of its own."""
    with share(start_browser) as browser:
        yield browser


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """Open a window."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    visit = Visit(context.new_page(), url)
    visit.note()
    try:
        yield visit
    finally:
        context.close()


@pytest.fixture(autouse=True)
def no_events_of_other_tests() -> None:
    """The events that are kept are those of this test."""
    events._recent.clear()


@pytest.fixture
def registry(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    """A registry whose database `orders` is in use; its path is relative, as it mostly is."""
    monkeypatch.chdir(registry_dir.path.parent)
    registry_dir.declare(
        "orders", database, description="order intake", pool_settings={"max_size": 6, "min_size": 1}
    )
    with Registry(registry_dir.path.name, metrics=None) as registry:
        with registry.get("orders") as conn:
            conn.execute("SELECT 1")
        yield registry


@pytest.fixture
def url(registry: Registry) -> Iterator[str]:
    """An application of FastAPI with the page under a path of its own."""
    app = FastAPI()
    app.mount("/pgmonkey", status_app(registry))
    with answering(app) as url:
        yield f"{url}/pgmonkey"


def test_a_rotation_appears_by_itself(
    browser: Browser, url: str, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A changed file shows as a new version within the running page; the focus stays."""
    with visiting(browser, url) as visit:
        page = visit.open()
        card = page.locator("#database-orders")
        expect(card.locator("dd").nth(1)).to_have_text("1")
        card.get_by_role("link", name="orders").focus()
        page.evaluate("window.kept = 'the same document'")
        database.rotate()
        registry_dir.declare("orders", database, pool_settings={"max_size": 3})
        expect(card.locator("dd").nth(1)).to_have_text("2", timeout=PATIENCE)
        expect(card.locator("dd").nth(2)).to_contain_text("applied")
        expect(page.get_by_text("config.applied")).to_be_visible()
        assert page.evaluate("window.kept") == "the same document"
        assert page.evaluate("document.activeElement.textContent") == "orders"
        assert visit.complaints == []


def test_an_outage_appears_by_itself_and_is_told(
    browser: Browser,
    url: str,
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
) -> None:
    """A server that refuses shows as down with its reason, is announced once, and ends again."""
    registry_dir.declare("orders", database, connection={"port": proxy.port})
    registry.reload()
    with visiting(browser, url) as visit:
        page = visit.open()
        badge = page.locator("#database-orders .badge")
        expect(badge).to_have_text("ready")
        expect(page.locator("h1")).to_have_text("The database is well")
        proxy.set("refuse")
        registry.probe("orders")
        expect(badge).to_have_text("down", timeout=PATIENCE)
        expect(page.locator("h1")).to_have_text("1 of 1 database needs attention")
        expect(page.locator("#database-orders .note")).to_contain_text("refused")
        expect(page.locator("#news")).to_have_text("orders is down")
        proxy.set("pass")
        registry.probe("orders")
        expect(badge).to_have_text("ready", timeout=PATIENCE)
        expect(page.locator("#news")).to_have_text("orders is ready")
        assert visit.complaints == []


def test_an_error_text_is_text(
    browser: Browser,
    url: str,
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
) -> None:
    """A database called like a script tag is shown as the server says it, and runs nothing."""
    registry_dir.declare(
        "orders", database, connection={"dbname": SCRIPT}, description=SCRIPT + " of ours"
    )
    registry.reload()
    registry_dir.declare("odd", database, connection={"dbname": SCRIPT}, description=SCRIPT)
    registry.reload()
    registry.probe("odd")
    with visiting(browser, url) as visit:
        for path in ("/", "/databases/orders", "/databases/odd"):
            page = visit.open(path)
            expect(page.get_by_text(SCRIPT).first).to_be_visible()
            assert "taken over" not in page.title()
            assert page.locator("script").count() == 1
        assert visit.complaints == []


def test_no_request_leaves_the_host(browser: Browser, url: str, canary: Canary) -> None:
    """The pages load, and go on asking for, nothing but what they come from."""
    with visiting(browser, url) as visit:
        for path in ("/databases/orders", "/"):
            page = visit.open(path)
            canary.check(page.content(), path)
        with page.expect_response(f"{url}/", timeout=PATIENCE):
            pass  # the first update: each page has the same script
        assert len(visit.requests) >= 6
        assert [one for one in visit.requests if not one.startswith(url)] == []
        assert visit.complaints == []


def test_lost_contact_is_said(browser: Browser, registry: Registry) -> None:
    """When the service is gone the page says so and since when, and finds back by itself."""
    app = status_app(registry)
    with ExitStack() as first:
        url = first.enter_context(answering(app))
        with visiting(browser, url) as visit:
            page = visit.open()
            expect(page.locator("#contact-text")).to_contain_text("Live")
            first.close()
            expect(page.locator("#lost")).to_contain_text("Lost contact", timeout=PATIENCE)
            expect(page.locator("#contact-text")).to_have_text("Lost contact")
            expect(page.locator("#database-orders")).to_be_visible()
            with answering(app, url.removeprefix("http://")):
                expect(page.locator("#contact-text")).to_contain_text("Live", timeout=PATIENCE)
                expect(page.locator("#lost")).to_be_empty()


def test_it_needs_no_javascript(browser: Browser, url: str) -> None:
    """Without JavaScript the pages say everything, and of when it is; links work."""
    with visiting(browser, url, java_script_enabled=False) as visit:
        page = visit.open()
        expect(page.locator("#contact")).to_contain_text("As of")
        expect(page.locator("#database-orders")).to_contain_text("order intake")
        page.get_by_role("link", name="orders", exact=True).click()
        expect(page.locator("h1")).to_contain_text("orders")
        expect(page.get_by_text("***REDACTED***")).to_be_visible()
        expect(page.locator("tr", has_text="max_size").locator(".from").first).to_contain_text(
            "orders.yaml"
        )
        page.get_by_role("link", name="All databases").click()
        expect(page.locator("#database-orders")).to_be_visible()


def test_it_is_used_by_keyboard(browser: Browser, url: str) -> None:
    """The first Tab reaches a link to the content; from there the states are next, then the databases."""
    with visiting(browser, url) as visit:
        page = visit.open()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        reached = []
        for _ in range(3):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.getAttribute('href')"))
        assert reached == ["/pgmonkey/", "/pgmonkey/?state=ready", "/pgmonkey/databases/orders"]
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_contain_text("orders")


@pytest.fixture
def trouble(
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
) -> Iterator[None]:
    """A registry with every state, connections in use, and something to tell."""
    registry_dir.declare(
        "events", database, description="what happened in the shop", pool_settings={"max_size": 4}
    )
    registry_dir.declare(
        "ledger",
        database,
        description="the books",
        connection={"port": proxy.port, "connect_timeout": 2},
        pool_settings={"max_size": 8},
    )
    registry_dir.declare("reports", database, "normal", description="for the morning meeting")
    registry.reload()
    with ExitStack() as held:
        for name, number in (("orders", 4), ("events", 1), ("ledger", 1)):
            for _ in range(number):
                held.enter_context(registry.get(name))
        registry_dir.declare(
            "events",
            database,
            description="what happened in the shop",
            pool_settings={"max_sise": 4},
        )
        registry_dir.declare(
            "orders", database, description="order intake", pool_settings={"max_size": 6}
        )
        proxy.set("refuse")
        registry.reload()
        registry.probe("ledger")
        yield


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 800}},
    "dark-narrow": {
        "color_scheme": "dark",
        "viewport": {"width": 360, "height": 740},
        "device_scale_factor": 2,
    },
}
PAGES = {
    "overview": "/",
    "healthy": "/databases/orders",
    "stale": "/databases/events",
    "down": "/databases/ledger",
}
# A cell whose one word takes more than one line.
BROKEN_WORDS = """
    [...document.querySelectorAll("tbody th, td, dd, dt")]
        .filter((cell) => !/[\\s/:.-]/.test(cell.textContent.trim()))
        .filter((cell) => cell.checkVisibility() && new Set(range(cell)).size > 1)
        .map((cell) => cell.textContent);
    function range(cell) {
        const all = document.createRange();
        all.selectNodeContents(cell);
        return [...all.getClientRects()].map((box) => Math.round(box.bottom / 8));
    }
"""


def keep(name: str, page: Page, **options: Any) -> None:
    """Keep a picture of a page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    # Playwright would write the file in a thread that the next test would find.
    (SCREENSHOTS / f"{name}.png").write_bytes(page.screenshot(**options))


def test_it_is_accessible_and_fits(browser: Browser, url: str, trouble: None) -> None:
    """axe-core finds nothing serious or critical, and nothing scrolls sideways or breaks a word.

    In every state, in light and dark, on a desktop and on a phone of 360 px; pictures are in
    build/screenshots.
    """
    for look, options in LOOKS.items():
        with visiting(browser, url, reduced_motion="reduce", **options) as visit:
            for name, path in PAGES.items():
                page = visit.open(path)
                expect(page.locator("#contact")).to_have_attribute("data-contact", "live")
                keep(f"{name}-{look}", page, full_page=True)
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= options["viewport"]["width"], path
                assert page.evaluate(BROKEN_WORDS) == [], (look, path)
                assert serious(page) == {}, (look, path)


def test_the_picture_of_the_documentation(browser: Browser, url: str, trouble: None) -> None:
    """It shows all databases of the overview, sharp, and ends below them."""
    with visiting(
        browser, url, device_scale_factor=2, reduced_motion="reduce", **LOOKS["light"]
    ) as visit:
        page = visit.open()
        expect(page.locator("#contact")).to_have_attribute("data-contact", "live")
        shown = page.locator(".databases").last.bounding_box()
        assert shown is not None
        page.evaluate("document.querySelector('.where code').textContent = 'registry.d'")
        keep(
            "status-page",
            page,
            full_page=True,
            clip={"x": 0, "y": 0, "width": 1200, "height": shown["y"] + shown["height"] + 32},
        )


def test_every_link_stays_below_the_mount(browser: Browser, url: str) -> None:
    """Under a path of an application, all links and assets have that path in front."""
    with visiting(browser, url) as visit:
        page = visit.open()
        for attribute, selector in (("href", "[href]"), ("src", "[src]")):
            links = page.eval_on_selector_all(
                selector, f"all => all.map(one => one.getAttribute('{attribute}'))"
            )
            assert [one for one in links if not re.match(r"#|/pgmonkey/", one)] == []
