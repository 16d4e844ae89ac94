"""The page of many databases: what needs attention first, found by state and by name."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.routing import Mount

from pgmonkey import Registry
from pgmonkey.service import status_app
from tests.kit import RegistryDirectory
from tests.kit.browser import browser as start_browser
from tests.kit.ports import free_port
from tests.service.accessibility import serious
from tests.service.mounted import answering

LOOKS = [("light", 1200), ("dark", 360)]


def file(port: int, more: str = "") -> str:
    """Return the file of a database whose server is not there."""
    return f"connection_settings: {{user: app, dbname: d, port: {port}, host: 127.0.0.1}}\n{more}"


@pytest.fixture
def registry(registry_dir: RegistryDirectory, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """Some databases of which three need attention: `zeta` is failed, `west` down, `amber` stale."""
    port = free_port()
    for number in range(getattr(request, "param", 150)):
        registry_dir.write(f"shard-{number:03}", file(port, f"description: part {number}\n"))
    registry_dir.write("zeta", "pool_settings: 3\n")
    for name in ("west", "amber"):
        registry_dir.write(name, file(port))
    with Registry(registry_dir, metrics=None, watch=False, strict=False) as registry:
        registry_dir.write("amber", file(port, "pool_settings: {max_sise: 3}\n"))
        registry.reload()
        registry.probe("west")
        yield registry


@pytest.fixture
def url(registry: Registry) -> Iterator[str]:
    """The page, mounted under a path."""
    with answering(Starlette(routes=[Mount("/ops", status_app(registry))])) as url:
        yield f"{url}/ops"


def shown(page: str) -> list[str]:
    """Return the names of the databases on a page, in their order."""
    return re.findall(r'data-name="([\w-]+)"', page)


def links(page: str) -> dict[str, str]:
    """Return the links of the counts, by their text."""
    (counts,) = re.findall(r'<ul class="counts">(.*?)</ul>', page, re.DOTALL)
    return {
        re.sub(r"<.*?>|:.*", "", text).strip(): html.unescape(target)
        for target, text in re.findall(r'<a href="(.*?)".*?>(.*?)</a>', counts, re.DOTALL)
    }


def test_what_needs_attention_is_first(url: str) -> None:
    """The worst state first, then all others by name, a hundred of them unless all are asked for."""
    page = httpx.get(f"{url}/").text
    names = shown(page)
    assert names[:4] == ["zeta", "west", "amber", "shard-000"]
    assert len(names) == 100
    assert names[3:] == sorted(names[3:])
    assert "3 of 153 databases need attention" in page
    assert "100 of 153 databases are shown" in page
    (everything,) = re.findall(r'<a href="([^"]+)">Show all 153</a>', page)
    assert everything == "/ops/?all=1"
    assert len(shown(httpx.get(f"{url}/?all=1").text)) == 153


def test_counts_are_links(url: str) -> None:
    """The number of each state leads to its databases; what is chosen is marked, and kept by a search."""
    counts = links(httpx.get(f"{url}/").text)
    assert counts == {
        "153 in all": "/ops/",
        "1 failed": "/ops/?state=failed",
        "1 down": "/ops/?state=down",
        "1 stale": "/ops/?state=stale",
        "150 idle": "/ops/?state=idle",
    }
    page = httpx.get(f"{url}/?state=stale").text
    assert shown(page) == ["amber"]
    assert re.findall(r'<a href="(\S+)" aria-current="true">', page) == ["/ops/?state=stale"]
    assert '<input type="hidden" name="state" value="stale">' in page
    assert "3 of 153 databases need attention" in page  # whatever is shown


def test_a_part_of_a_name_finds_databases(url: str) -> None:
    """It may be in capitals; together with a state both count; the counts are of what has the name."""
    page = httpx.get(f"{url}/", params={"name": " SHARD-01 "}).text
    assert shown(page) == [f"shard-01{digit}" for digit in range(10)]
    assert links(page)["10 idle"] == "/ops/?state=idle&name=shard-01"
    page = httpx.get(f"{url}/", params={"name": "e", "state": "failed"}).text
    assert shown(page) == ["zeta"]
    assert "failed" not in links(httpx.get(f"{url}/?name=shard").text)


def test_a_choice_that_finds_nothing_is_answered(url: str) -> None:
    """The page says what there is none of, as text; a state that does not exist is a bad request."""
    page = httpx.get(f"{url}/", params={"name": "<b>x", "state": "ready"}).text
    assert shown(page) == []
    assert 'No database with "&lt;b&gt;x" in its name is ready' in page
    assert links(page)["0 ready"] == "/ops/?state=ready&name=%3Cb%3Ex"
    answer = httpx.get(f"{url}/?state=broken")
    assert (answer.status_code, answer.text) == (
        400,
        "state is one of failed, down, stale, ready, idle\n",
    )


def test_times_have_their_date(url: str) -> None:
    """Events and the last reload of a database say their day: an incident may be older than a night."""
    today = time.strftime("%Y-%m-%d", time.gmtime())
    for path, marks in (("/", "<time"), ("/databases/amber", '<time|<span class="date"')):
        page = httpx.get(url + path).text
        times = re.findall(rf"({marks})(?: datetime=\S+)?>(.*?)</", page)
        assert {mark for mark, _ in times} == set(marks.split("|"))
        for _, text in times:
            assert re.fullmatch(rf"{today} \d\d:\d\d:\d\d( UTC)?", text)


@pytest.mark.parametrize("registry", [0], indirect=True)
def test_settings_are_in_the_order_in_which_people_think(
    url: str, registry: Registry, registry_dir: RegistryDirectory
) -> None:
    """Host, port, dbname and user come first; sections that the type does not use are left out."""
    sections = {
        "normal": ["sync_settings"],
        "pool": ["pool_settings", "sync_settings"],
        "async": ["async_settings"],
        "async_pool": ["async_pool_settings", "async_settings"],
    }
    for name, expected in sections.items():
        both = "sync_settings: {app.tea: a}\nasync_settings: {app.tea: b}\n"
        registry_dir.write(name, file(1, f"connection_type: {name}\n{both}"))
        registry.reload()
        page = httpx.get(f"{url}/databases/{name}").text
        assert re.findall(r"<summary><h3>(.*?)</h3>", page) == [
            "database", "connection_settings", *expected,
        ]  # fmt: skip
        (connection,) = re.findall(r"Settings of connection_settings(.*?)</table>", page, re.DOTALL)
        keys = re.findall(r'<th scope="row".*?>(.*?)</th>', connection)
        assert keys[:4] == ["host", "port", "dbname", "user"]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(120)
@pytest.mark.parametrize("registry", [1000], indirect=True)
def test_a_thousand_databases_are_usable(url: str) -> None:
    """What is typed finds a database without a further click, with and without JavaScript.

    axe-core finds nothing serious in light and dark, and nothing is wider than a phone.
    """
    with start_browser() as browser:
        for scheme, width in LOOKS:
            page = browser.new_page(
                color_scheme=scheme,
                viewport={"width": width, "height": 800},
                reduced_motion="reduce",
            )
            page.goto(f"{url}/")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.goto(f"{url}/?name=99")  # axe takes seconds for a hundred databases
            expect(page.locator(".many .card")).to_have_count(19)
            assert serious(page) == {}
            page.close()

        page = browser.new_page()
        page.goto(f"{url}/")
        expect(page.locator(".card")).to_have_count(100)
        page.evaluate("window.kept = 'the same document'")
        page.get_by_label("Name").press_sequentially("shard-99")
        expect(page.locator(".card")).to_have_count(10)
        assert page.url == f"{url}/?name=shard-99"
        assert page.evaluate("document.activeElement.id") == "name"
        assert page.get_by_label("Name").input_value() == "shard-99"
        assert page.evaluate("window.kept") == "the same document"
        assert page.locator("#news").text_content() == ""  # what was found is no news
        page.close()

        page = browser.new_page(java_script_enabled=False)
        page.goto(f"{url}/")
        page.get_by_role("link", name="1 failed").click()
        expect(page.locator(".card")).to_have_count(1)
        page.get_by_label("Name").fill("zet")
        page.get_by_role("button", name="Find").click()
        assert page.url == f"{url}/?name=zet&state=failed"
        expect(page.locator(".card")).to_have_count(1)
