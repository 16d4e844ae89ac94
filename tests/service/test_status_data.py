"""The JSON behind the status page, and the application that is mounted elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from pgmonkey import Registry
from pgmonkey.service import status_app
from pgmonkey.service.api import LONGEST_TEXT, plain
from pgmonkey.telemetry import events
from tests.kit import Canary, ChaosProxy, RegistryDirectory, TemporaryDatabase
from tests.service.mounted import answering

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def no_events_of_other_tests() -> None:
    """The events that are kept are those of this test."""
    events._recent.clear()


@pytest.fixture
def registry(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> Iterator[Registry]:
    """A registry whose database `orders` is in use."""
    registry_dir.declare("orders", database, description="order intake", leak_detection="30s")
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        with registry.get("orders") as conn:
            conn.execute("SELECT 1")
        yield registry


@pytest.fixture
def client(registry: Registry) -> Iterator[httpx.Client]:
    """A client of an application that has the page under /pgmonkey."""
    app = FastAPI()
    app.mount("/pgmonkey", status_app(registry))
    with (
        answering(app) as url,
        httpx.Client(base_url=url, headers={"Host": "shop.example"}) as client,
    ):
        yield client


def documented(heading: str) -> set[str]:
    """Return the keys at any depth of the first JSON after a heading of the page."""
    page = (DOCS / "service.md").read_text(encoding="utf-8").partition(heading)[2]
    found = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return keys(json.loads(found.group(1)))


def keys(value: object, above: str = "") -> set[str]:
    """Return the dotted keys of a shape; what is counted by reason or outcome is not followed."""
    if isinstance(value, list):
        return set().union(*(keys(item, above) for item in value))
    if not isinstance(value, dict) or above.endswith(("request_errors", "connect_failures")):
        return set()
    found = {f"{above}.{key}" for key in value}
    return found.union(*(keys(item, f"{above}.{key}") for key, item in value.items()))


def test_the_shapes_are_those_of_the_documentation(
    client: httpx.Client,
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
    canary: Canary,
) -> None:
    """Every key of /api/v1/databases is documented, and what is documented is there."""
    proxy.set("refuse")
    registry_dir.declare("orders", database, description="order intake")
    registry_dir.declare("down", database, connection={"port": proxy.port})
    registry.reload()
    registry.probe("down")
    body = client.get("/pgmonkey/api/v1/databases").json()
    canary.check(json.dumps(body))
    assert keys(body) == documented("## JSON")


def test_listeners_are_counted(client: httpx.Client, registry: Registry) -> None:
    """The data and the page show how many listeners a database has."""
    with registry.get("orders").listen("news"), registry.get("orders").listen("news"):
        (database,) = client.get("/pgmonkey/api/v1/databases").json()["databases"]
        assert [pool["listeners"] for pool in database["pools"]] == [2]
        assert "<b>2</b> listening" in client.get("/pgmonkey/").text
    assert "listening" not in client.get("/pgmonkey/").text


def test_what_happened_to_a_database(
    client: httpx.Client,
    registry: Registry,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
) -> None:
    """One database has its checkouts, settings with sources, reloads and events, newest first."""
    file = registry_dir.declare("orders", database, pool_settings={"max_size": 3})
    registry.reload()
    registry_dir.declare("orders", database, pool_settings={"max_sise": 3})
    registry.reload()
    with registry.get("orders"):
        answer = client.get("/pgmonkey/api/v1/databases/orders")
    canary.check(answer.text)
    body = answer.json()
    assert (body["state"], body["version"]) == ("stale", 2)
    assert body["problems"][0]["key"] == "pool_settings.max_sise"
    assert [one["outcome"] for one in body["reloads"]] == ["rejected", "applied"]
    assert "max_sise" in body["reloads"][0]["details"][0]
    assert "pool_settings.max_size" in body["reloads"][1]["details"]
    assert [one["holder"] for one in body["checkouts"]] == ["thread MainThread"]
    names = [one["event"] for one in body["events"]]
    assert names.index("config.rejected") < names.index("config.applied")
    settings = {one["key"]: one for one in body["settings"]}
    assert settings["pool_settings.max_size"]["value"] == 3
    assert settings["pool_settings.max_size"]["source"]["path"] is None  # the file says otherwise
    assert settings["connection_settings.password"]["value"] == "***REDACTED***"

    registry_dir.declare("orders", database, pool_settings={"max_size": 3})
    registry.reload()
    body = client.get("/pgmonkey/api/v1/databases/orders").json()
    source = {one["key"]: one["source"] for one in body["settings"]}["pool_settings.max_size"]
    line = next(
        number for number, text in enumerate(file.read_text().splitlines(), 1) if "max_size" in text
    )
    assert (source["path"], source["line"]) == (str(file), line)


def test_events_are_asked_for_from_a_number_on(client: httpx.Client, registry: Registry) -> None:
    """`after` gives what is newer; what is no number is a bad request, not the empty list."""
    found = client.get("/pgmonkey/api/v1/events").json()["events"]
    assert [one["event"] for one in found][-1] == "registry.loaded"
    assert [one["id"] for one in found] == sorted((one["id"] for one in found), reverse=True)
    newer = client.get("/pgmonkey/api/v1/events", params={"after": found[1]["id"]}).json()["events"]
    assert newer == found[:1]
    for wrong in ("x", "-1", "9" * 50):
        assert client.get("/pgmonkey/api/v1/events", params={"after": wrong}).status_code == 400


def test_the_kept_events_are_bounded() -> None:
    """However much happens, the last 500 events are kept, and no configuration with them."""
    for number in range(events.KEPT + 100):
        events.emit("config.removed", database=f"d{number}", config={"large": "x"})
    kept = events.recent()
    assert len(kept) == events.KEPT
    assert kept[-1].fields == {"database": f"d{events.KEPT + 99}"}


def test_the_history_of_a_database_is_bounded(
    registry: Registry, registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The last 20 reloads of a database are remembered."""
    for number in range(25):
        registry_dir.declare("orders", database, description=f"number {number}")
        registry.reload()
    (status,) = registry.status().databases
    assert [record.version for record in status.history] == list(range(7, 27))


def test_two_registries_show_their_own_events(
    client: httpx.Client, tmp_path: Path, database: TemporaryDatabase
) -> None:
    """Events of a database that only another registry of the process has are not shown."""
    other = RegistryDirectory(tmp_path / "other.d")
    other.declare("foreign", database)
    with Registry(other, metrics=None, watch=False) as second:
        other.remove("foreign")
        second.reload()
        assert "config.removed" not in client.get("/pgmonkey/api/v1/events").text


def test_mounted_it_answers_for_the_host_of_the_application(
    client: httpx.Client, registry: Registry
) -> None:
    """Mounted, the application's name is fine; with `hosts` only those are; nothing is changed."""
    assert client.get("/pgmonkey/").status_code == 200
    assert client.get("/pgmonkey", follow_redirects=False).status_code == 307
    assert client.post("/pgmonkey/-/reload").status_code == 404
    assert client.get("/pgmonkey/metrics").status_code == 404
    with answering(status_app(registry, hosts=["ops.example"])) as url:
        assert httpx.get(url, headers={"Host": "ops.example"}).status_code == 200
        assert httpx.get(url, headers={"Host": "shop.example"}).status_code == 421


def test_large_answers_are_compressed_for_those_who_take_it(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """A page of many databases takes a tenth on the line if the client says so; small answers do not."""
    for number in range(100):
        registry_dir.declare(f"shard-{number}", database)
    with (
        Registry(registry_dir, metrics=None, watch=False) as registry,
        answering(status_app(registry)) as url,
        httpx.Client(base_url=url) as client,
    ):
        for path in ("/", "/api/v1/databases"):
            packed = client.get(path, headers={"Accept-Encoding": "gzip"})
            plain = client.get(path, headers={"Accept-Encoding": "identity"})
            assert packed.headers["Content-Encoding"] == "gzip"
            assert "Accept-Encoding" in packed.headers["Vary"]
            assert int(packed.headers["Content-Length"]) * 10 < len(packed.content)
            assert "Content-Encoding" not in plain.headers
            assert "shard-99" in packed.text
            assert "shard-99" in plain.text
        small = client.get("/api/v1/events?after=999", headers={"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in small.headers


def test_the_policy_of_the_page(client: httpx.Client) -> None:
    """The page may run its own script and load from its own host; nothing inline is in it."""
    answer = client.get("/pgmonkey/databases/orders")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", answer.text)
    assert re.findall(r"<script[^>]*>(.*?)</script>", answer.text, re.DOTALL) == [""]
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("one\r\ntwo\x1b[31m\x00", "one two [31m"),
        ("x" * 400, "x" * (LONGEST_TEXT - 1) + "…"),
        ("right\u202eto left", "right to left"),
    ],
)
def test_texts_of_others_are_tamed(text: str, shown: str) -> None:
    """A server's message has no control characters, and at most 300 others."""
    assert plain(text) == shown
